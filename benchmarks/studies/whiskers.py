"""The figure of crossover.csv: the lengths from which on an attention is ahead of exact ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.studies.found import Line, plain
from benchmarks.studies.lengths import batches
from benchmarks.studies.look import FAINT, INK, SMALL, STRONG, Look, about, log_ticks, looks, number, paper

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTE = (
    "A dot is the length from which on an attention stays ahead of the exact one that is best there; its whisker joins"
    " the measured lengths around it. Open: ahead at every measured length. Below it, small and dark: the same against"
    " unfused softmax (eager) alone; missing where it is never ahead of that."
)
OF = {"model": "Whole model", "core": "Attention alone"}
# Inches: of a line, of a panel and of what is said beside it.
LINE, WIDTH, TEXTS = 0.27, 2.6, 2.75


def state(row: Line) -> str:
    """ "never" ahead at the longest length, "always" ahead, or ahead "from" a length on."""
    if row.perhaps("ahead_from") is None:
        return "never"
    return "always" if row.perhaps("behind_at") is None else "from"


def draw(rows: Sequence[Line], file: Path) -> None:
    """A row of panels for each dtype, batch rule and model or core; time on the left, memory on the right."""
    groups: dict[tuple[str, str, str], list[Line]] = {}
    for row in rows:
        groups.setdefault((row["of"], row["dtype"], row["rule"]), []).append(row)
    look = looks(row["attn"] for row in rows)
    heights = {group: LINE * len({row["attn"] for row in mine}) + 0.15 for group, mine in groups.items()}
    title, height = "From which length on it is ahead of the best exact attention", sum(heights.values()) + len(groups)
    with paper(file, title, about(rows[0]), [NOTE], 1.5 + 2 * (WIDTH + TEXTS), height) as page:
        top = 1.1
        for group, mine in groups.items():
            of, dtype, rule = group
            names = _order(mine)
            for j, measure in enumerate(("time", "memory")):
                axes = page.panel(1.5 + (WIDTH + TEXTS) * j, top, WIDTH, heights[group])
                axes.set_title(f"{OF.get(of, plain(of))}, {measure}; {plain(dtype, 20)}, {batches(rule)}", pad=8)
                _panel(axes, [row for row in mine if row["measure"] == measure], names, look)
                axes.tick_params(axis="y", length=0, labelleft=not j)
            top += heights[group] + 1.0


def _order(rows: Sequence[Line]) -> list[str]:
    """The attentions, those first that are ahead in time from the shortest length on."""

    def length(row: Line) -> float:
        if state(row) == "never":
            return math.inf
        return 0.0 if state(row) == "always" else row.perhaps("length") or row.number("ahead_from")

    times = {row["attn"]: length(row) for row in rows if row["measure"] == "time" and _best(row)}
    names = {row["attn"] for row in rows}
    return sorted(names, key=lambda name: (times.get(name, math.inf), name not in STRONG, name))


def _best(row: Line) -> bool:
    """Whether the row compares with the best exact attention."""
    return row.get("rival", "best") == "best"


def _panel(axes: Axes, rows: Sequence[Line], names: Sequence[str], look: Mapping[str, Look]) -> None:
    lengths = [x for row in rows for key in ("ahead_from", "behind_at", "longest") if (x := row.perhaps(key))]
    low, high = min(lengths, default=512.0) / 1.25, max(lengths, default=512.0) * 1.25
    axes.set_xscale("log", base=2)
    axes.set_xlim(low, high)
    log_ticks(axes.xaxis, low, high, 2)
    axes.set_xlabel("tokens n")
    axes.grid(False, axis="y")
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), [plain(name, 24) for name in names])
    for tick, name in zip(axes.get_yticklabels(), names, strict=True):
        strong = name in STRONG
        tick.set(color=look[name].colour if strong else FAINT, fontweight="bold" if strong else "normal", fontsize=8)
    for row in rows:
        y = names.index(row["attn"])
        if _best(row):
            _line(axes, row, y - 0.12, look[row["attn"]].colour)
        else:
            _beside(axes, row, y + 0.27)


def _beside(axes: Axes, row: Line, y: float) -> None:
    """The small whisker of the other exact attention."""
    if state(row) == "never":
        return
    right = row.number("ahead_from")
    left, at = row.perhaps("behind_at") or right, row.perhaps("length") or right
    axes.plot([left, right], [y, y], linewidth=0.8, color="#aaaaaa", zorder=2)
    face = "white" if state(row) == "always" else INK
    axes.plot([at], [y], "o", markersize=3, markerfacecolor=face, markeredgecolor=INK, markeredgewidth=0.7, zorder=3)


def _line(axes: Axes, row: Line, y: float, colour: str) -> None:
    """The whisker of one attention, its dot and what it says."""
    style: Any = {"color": colour, "clip_on": False}
    left = right = row.number("longest")
    length = row.perhaps("length")
    if state(row) == "never":
        said = f"never up to {number(right)}"
    elif state(row) == "always":
        left = right = row.number("ahead_from")
        said = f"always, from {number(left)}"
        axes.plot([left], [y], "o", markersize=6, markerfacecolor="white", markeredgewidth=1.4, **style)
    else:
        left, right = row.number("behind_at"), row.number("ahead_from")
        said = number(round(length)) if length else f"from {number(right)}"
        axes.plot([left, right], [y, y], linewidth=1.6, alpha=0.6, marker="|", markersize=6, **style)
        if length:
            axes.plot([length], [y], "o", markersize=6, markeredgecolor="white", **style)
    if before := [number(float(n)) for n in row.get("ahead_before", "").split()]:
        said += f" · at {before[0]}{f' to {before[-1]}' if len(before) > 1 else ''} too"
    elif row["against"]:
        said += f" · against {plain(row['against'], 24)}"
    axes.annotate(
        said, (1, y), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points", ha="left",
        va="center_baseline", fontsize=SMALL, color=FAINT, annotation_clip=False,
    )  # fmt: skip
