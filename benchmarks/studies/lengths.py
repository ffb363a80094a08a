"""The figures of the efficiency study: speed and memory against length, and the lengths from which one is ahead."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.studies.found import Line, plain
from benchmarks.studies.look import (
    FAINT,
    INK,
    SMALL,
    Curve,
    about,
    failures,
    label_ends,
    log_ticks,
    looks,
    paper,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, LABELS = 3.3, 3.5, 1.25
# Of a whole model and of the attention alone, a panel for each: its title, and the number of a row.
Panel = tuple[str, str, Callable[[Line], float | None]]
PANELS: tuple[Panel, ...] = (
    ("model", "Whole model: steps a second, softmax = 1", lambda row: _inverse(row.perhaps("ratio"))),
    ("model", "Whole model: peak memory, softmax = 1", lambda row: row.perhaps("memory_ratio")),
    ("core", "Attention alone: milliseconds of a step", lambda row: _for_one(row, "step_ms")),
    ("core", "Attention alone: peak memory, MiB", lambda row: _for_one(row, "peak_mb")),
)


def _for_one(row: Line, key: str) -> float | None:
    """A number of the whole batch, for one example."""
    whole = row.perhaps(key)
    return whole / row.number("batch") if whole else None


def _inverse(ratio: float | None) -> float | None:
    return 1 / ratio if ratio else None


def batches(rule: str) -> str:
    """What makes the batch, in words."""
    tokens = rule.removesuffix("tokens")
    if rule == "max":
        return "the largest batch that fits"
    return f"{int(tokens):,} tokens a batch" if tokens != rule and tokens.isdecimal() else f"batch {plain(rule, 30)}"


def draw(rows: Sequence[Line], file: Path) -> None:
    """Draw efficiency.csv: a row of panels for each dtype and batch rule."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for row in rows:
        groups.setdefault((row["dtype"], row["rule"]), []).append(row)
    notes = [
        "A step of the attention alone is forward and backward; of a model a whole optimizer step. All for one example"
        " of the batch. Dark: exact attention; softmax is torch's fused one, eager has its scores in memory."
    ]
    notes += failures(rows, lambda row: f"{plain(row['attn'], 24)} ({row['of']}, n = {row['n']}, batch {row['batch']})")
    kinds = [panel for panel in PANELS if any(row["of"] == panel[0] for row in rows)]
    columns = min(len(kinds), 2)
    stacked = -(-len(kinds) // 2)
    width = 0.7 + columns * (WIDTH + LABELS + 0.45)
    exact = [row["attn"] for row in rows if row["kind"] == "exact"]
    look = looks((row["attn"] for row in rows), exact)
    height = len(groups) * stacked * (HEIGHT + 0.95)
    with paper(file, "Efficiency against length", about(rows[0]), notes, width, height) as page:
        for i, ((dtype, rule), mine) in enumerate(groups.items()):
            for j, (of, title, value) in enumerate(kinds):
                top = 1.15 + (i * stacked + j // 2) * (HEIGHT + 0.95)
                axes = page.panel(0.7 + (j % 2) * (WIDTH + LABELS + 0.45), top, WIDTH, HEIGHT)
                axes.set_title(title, pad=16)
                text = f"{plain(dtype, 20)}, {batches(rule)}"
                axes.text(0, 1.02, text, transform=axes.transAxes, fontsize=SMALL, color=FAINT, va="bottom")
                _lines(axes, [row for row in mine if row["of"] == of], value, look, relative=of == "model")


def _lines(axes: Axes, rows: Sequence[Line], value: Callable[[Line], float | None], look: dict, relative: bool) -> None:
    """A line for each attention over the lengths at which it ran."""
    found = {}
    for name in dict.fromkeys(row["attn"] for row in rows):
        mine = sorted((row for row in rows if row["attn"] == name), key=lambda row: row.whole("n"))
        points = [(float(row.whole("n")), y) for row in mine if row["result"] == "ok" and (y := value(row)) and y > 0]
        if points:
            found[name] = points
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("tokens n")
    if not found:
        axes.text(0.5, 0.5, "nothing that ran", transform=axes.transAxes, ha="center", color=FAINT)
        return
    xs, ys = zip(*(point for points in found.values() for point in points), strict=True)
    room = max((max(ys) / min(ys)) ** 0.05, 1.08)
    axes.set_xlim(min(xs) / 1.12, max(xs) * 1.12)
    axes.set_ylim(min(ys) / room, max(ys) * room)
    log_ticks(axes.xaxis, min(xs) / 1.12, max(xs) * 1.12, 2)
    log_ticks(axes.yaxis, min(ys) / room, max(ys) * room)
    if relative:
        axes.axhline(1, color=INK, linewidth=0.8, zorder=1)
    curves = []
    for name, points in found.items():
        style = look[name]
        axes.plot(*zip(*points, strict=True), marker=style.mark, markersize=3.5, markeredgewidth=0, **style.line())
        curves.append(Curve(plain(name, 24), points, [2] * len(points), style))
    label_ends(axes, curves)
