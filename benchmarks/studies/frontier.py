"""The figure of the approximation study: error against time and against workload, the marks as large as the memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.studies.found import Line, plain
from benchmarks.studies.look import (
    FAINT,
    INK,
    SMALL,
    STRONG,
    Curve,
    Look,
    about,
    configuration,
    failures,
    label,
    log_ticks,
    looks,
    number,
    paper,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXACT = {"eager": "softmax, unfused", "softmax": "softmax, fused"}
BESIDE = (*EXACT, "projections")
# Errors beyond these are drawn at the edge.
LOWEST_ERROR, HIGHEST_ERROR = 1e-4, 10.0
# Points², of the mark of a coloured variant with the most memory; of the largest and the smallest mark of all.
LARGEST, LIMIT, LEAST = 150.0, 600.0, 5.0


def draw(rows: Sequence[Line], file: Path) -> None:
    """Draw the rows of one input at one length and dtype."""
    first = rows[0]
    variants = [row for row in rows if row["attn"] not in BESIDE]
    ran = [row for row in variants if row["result"] == "ok"]
    drawn = [row for row in ran if _x(row, "step_ms") and row.perhaps("error") is not None]
    notes = [
        "Marks are as large as the memory of a step beyond its inputs. A step is forward and backward of the attention"
        " alone, without projections; times and memory are of one instance. Dashed: the same of exact softmax."
    ]
    if any(row["aims"] == "False" for row in drawn):
        notes.append("* does not aim at softmax: it weighs pairs by something else.")
    if far := [row for row in drawn if row.number("error") != shown(row)]:
        values = ", ".join(f"{configuration(row)} {number(row.number('error'))}" for row in far)
        notes.append(f"Open marks at an edge have errors beyond it: {values}.")
    if pale := [configuration(row) for row in drawn if not _x(row, "workload")]:
        notes.append(f"Without a workload, so not on the right: {', '.join(pale)}.")
    if blank := [configuration(row) for row in ran if row not in drawn]:
        notes.append(f"No error or no time: {', '.join(blank)}.")
    notes += failures(rows, configuration)
    most = _most(drawn)
    if huge := [row for row in drawn if _area(row, most) > LIMIT]:
        sizes = ", ".join(f"{configuration(row)} {number(row.number('peak_mb'))} MiB" for row in huge)
        notes.append(f"Marks that would be larger: {sizes}.")
    size = f"batch {first['batch']}, {first['heads']} heads of {first['head_dim']}"
    title = f"Error against time and workload, n = {number(first.number('n'))}"
    facts = about(first, plain(first["dtype"], 20), size, f"inputs {plain(first['inputs'], 60)}")
    with paper(file, title, facts, notes, 11.2, 4.65) as page:
        left = page.panel(0.7, 1.0, 5.0, 3.9)
        right = page.panel(6.1, 1.0, 4.9, 3.9, sharey=left)
        errors = [shown(row) for row in drawn] or [1.0]
        low, high = min(errors) / 1.3, max(errors) * 1.3
        left.set_yscale("log")
        left.set_ylim(low, high)
        log_ticks(left.yaxis, low, high)
        left.set_ylabel("relative error of the output")
        left.set_xlabel("milliseconds of a step")
        right.set_xlabel("workload: share of softmax's pairs")
        right.tick_params(labelleft=False)
        exact = {row["attn"]: time for row in rows if row["attn"] in EXACT and (time := _x(row, "step_ms"))}
        times = [*exact.values(), *(row.number("step_ms") for row in drawn)]
        _scale(left, times, 10)
        _scale(right, [x for row in drawn if (x := _x(row, "workload"))], 2)
        _exact(left, exact)
        _points(left, drawn, "step_ms", most)
        _points(right, [row for row in drawn if _x(row, "workload")], "workload", most)
        _sizes(right, most)
        if not drawn:
            left.text(0.5, 0.5, "nothing that ran", transform=left.transAxes, ha="center", color=FAINT)


def shown(row: Line) -> float:
    """The error, or the edge beyond which it lies."""
    return min(max(row.number("error"), LOWEST_ERROR), HIGHEST_ERROR)


def _most(rows: Sequence[Line]) -> float:
    """The memory that a mark of the size LARGEST stands for: the most of the coloured variants, else of all."""
    found = [(row["attn"] in STRONG, row.perhaps("peak_mb") or 0) for row in rows]
    return (
        max((peak for strong, peak in found if strong), default=0) or max((peak for _, peak in found), default=0) or 1
    )


def _area(row: Line, most: float) -> float:
    return max(LARGEST * (row.perhaps("peak_mb") or 0) / most, LEAST)


def _x(row: Line, key: str) -> float | None:
    """A number above 0, or None."""
    found = row.perhaps(key)
    return found if found and found > 0 else None


def _scale(axes: Axes, values: Sequence[float], base: int) -> None:
    low, high = min(values, default=1.0), max(values, default=1.0)
    room = max((high / low) ** 0.09, 1.25)
    axes.set_xscale("log", base=base)
    axes.set_xlim(low / room, high * room)
    log_ticks(axes.xaxis, low / room, high * room, base)
    if base == 2:
        axes.xaxis.set_major_formatter(lambda value, _: f"1/{1 / value:g}" if value < 1 else f"{value:g}")


def _exact(axes: Axes, times: dict[str, float]) -> None:
    """Vertical lines at the times of exact softmax, their names above the panel."""
    if not times:
        return
    ascending = sorted(times, key=lambda name: times[name])
    places = axes.transAxes.inverted().transform(axes.transData.transform([(times[name], 0) for name in ascending]))
    shares = [float(x) for x, _ in places]
    # The lower name must not be crossed by the line of the upper one.
    upper = 0 if shares[0] < 0.3 else len(shares) - 1
    for i, (name, share) in enumerate(zip(ascending, shares, strict=True)):
        top = 1.065 if i == upper else 1.02
        left = share > 0.7 or (i == 0 and share >= 0.3)
        dashes = (0, (5, 2)) if name == "softmax" else (0, (2, 2))
        axes.plot(
            [share, share], [0, top], transform=axes.transAxes, color=INK, linewidth=1, linestyle=dashes,
            zorder=1, clip_on=False,
        )  # fmt: skip
        axes.annotate(
            f"{EXACT[name]}, {number(times[name])} ms", (share, top), xycoords="axes fraction", fontsize=SMALL,
            color=INK, xytext=(-3 if left else 3, 0), textcoords="offset points", ha="right" if left else "left",
            va="center",
        )  # fmt: skip


def _points(axes: Axes, rows: Sequence[Line], key: str, most: float) -> None:
    """A line through the budgets of each variant, with marks."""
    look = looks(row["attn"] for row in rows)
    curves = []
    for name in dict.fromkeys(row["attn"] for row in rows):
        mine = sorted((row for row in rows if row["attn"] == name), key=lambda row: row.perhaps("value") or 0)
        points = [(row.number(key), shown(row)) for row in mine]
        areas = [min(_area(row, most), LIMIT) for row in mine]
        far = [row.number("error") != shown(row) for row in mine]
        style: Look = look[name]
        axes.plot(*zip(*points, strict=True), **style.line())
        xs, ys = zip(*points, strict=True)
        faces, edges = zip(*(("white", style.colour) if edge else (style.colour, "white") for edge in far), strict=True)
        axes.scatter(
            xs, ys, s=areas, c=faces, edgecolors=edges, linewidths=0.8, alpha=0.9 if style.strong else 0.7,
            zorder=style.line()["zorder"] + 0.5, clip_on=False,
        )  # fmt: skip
        text = plain(name, 24) + ("*" if mine[0]["aims"] == "False" else "")
        curves.append(Curve(text, points, [math.sqrt(area / math.pi) for area in areas], style))
    label(axes, curves)


def _sizes(axes: Axes, most: float) -> None:
    """What sizes of the marks mean, above the panel."""
    power = 10 ** math.floor(math.log10(most))
    largest = next(part * power for part in (5, 2, 1) if part * power <= most)
    x = 0.0
    for value in (largest / 10, largest / 3, largest):
        shown = float(f"{value:.1g}")
        axes.scatter(
            [x + 0.02], [1.05], s=LARGEST * shown / most, color="#bbbbbb", transform=axes.transAxes, clip_on=False
        )
        text = f"{number(shown)} MiB"
        axes.text(x + 0.045, 1.05, text, transform=axes.transAxes, fontsize=SMALL, color=FAINT, va="center")
        x += 0.2
