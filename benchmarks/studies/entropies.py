"""The figure of the entropy study: smoothed error against entropy, a panel for each budget."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.studies.found import Line, plain
from benchmarks.studies.look import (
    FAINT,
    STRONG,
    Curve,
    about,
    configuration,
    failures,
    label_ends,
    looks,
    number,
    paper,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What the study says of an attention that has no configuration so fast.
NONE = "none within the budget"
EXACT = {"eager": "unfused softmax", "softmax": "fused softmax"}
# Errors above this are drawn at the edge: there an output has nothing to do with softmax's.
HIGHEST_ERROR = 1.5
# Points of one panel beyond which they are drawn as a picture within the SVG.
MANY = 1500
WIDTH, HEIGHT, LABELS, GAP = 3.7, 3.1, 1.75, 1.1
# Key of a panel: n, against, budget.
Panel = tuple[int, str, float]


def draw(rows: Sequence[Line], file: Path) -> None:
    """Draw the rows of one input: a row of panels for each length and each exact attention whose time is the budget."""
    panels: dict[Panel, list[Line]] = {}
    for row in rows:
        panels.setdefault((row.whole("n"), row["against"], row.number("budget")), []).append(row)
    lines = sorted({panel[:2] for panel in panels})
    columns = max(sum(panel[:2] == line for panel in panels) for line in lines)
    notes = [
        "Each point is one head of one instance at one temperature; lines are their means with the weight exp(-5 d²), d"
        " the distance in entropy, and bands 95% of what other heads would have given;"
        " points and bands are of the coloured ones alone. Beside a name: its budget."
    ]
    notes += failures(
        [row for row in rows if not row["error"] and row.get("result", NONE) != NONE],
        lambda row: plain(row["attn"], 24),
    )
    width = 0.7 + columns * (WIDTH + LABELS) + 0.15 * (columns - 1)
    names = [row["attn"] for row in rows]
    first = rows[0]
    facts = about(first, plain(first.get("dtype", ""), 20), f"inputs {plain(first['inputs'], 60)}")
    height = len(lines) * (HEIGHT + GAP)
    with paper(file, "Error against entropy at equal time", facts, notes, width, height) as page:
        for i, line in enumerate(lines):
            here = sorted((panel for panel in panels if panel[:2] == line), key=lambda panel: -panel[2])
            top = max(highest(panels[panel]) for panel in here)
            for j, panel in enumerate(here):
                place = (0.7 + j * (WIDTH + LABELS + 0.15), 1.3 + i * (HEIGHT + GAP))
                axes = page.panel(*place, WIDTH, HEIGHT)
                axes.set_ylim(0, 1.05 * top)
                _panel(axes, panels[panel], panel, names)
                axes.set_xlabel("entropy, nats")
                if not j:
                    axes.set_ylabel("relative error of the output")


def highest(rows: Sequence[Line]) -> float:
    """Up to which error the panels go: nearly all points of the strong, at most HIGHEST_ERROR."""
    errors = sorted(error for row in rows if row["attn"] in STRONG and (error := row.perhaps("error")) is not None)
    errors = errors or sorted(error for row in rows if (error := row.perhaps("error")) is not None)
    return min(max(errors[int(0.98 * len(errors))], 0.05), HIGHEST_ERROR) if errors else 0.05


def _panel(axes: Axes, rows: Sequence[Line], panel: Panel, names: Sequence[str]) -> None:
    import numpy as np

    from benchmarks.studies.smoothing import curve, grid, smooth

    n, against, budget = panel
    share = "" if budget == 1 else f"{number(budget)} x "
    time = number(rows[0].number("budget_ms"))
    axes.set_title(
        f"n = {number(n)}, within {time} ms: {share}the time of {EXACT.get(against, plain(against))}", pad=26
    )
    axes.set_xlim(0, 1.02 * math.log(n))
    # An error that is no number stays: it makes a hole in its curve.
    there = [row for row in rows if row.perhaps("entropy") is not None and row["error"]]
    without = sorted({row["attn"] for row in rows if not row["error"] and row.get("result", NONE) == NONE})
    if without:
        text = textwrap.fill(f"nothing within it: {', '.join(plain(name, 24) for name in without)}", 100)
        axes.text(0, 1.02, text, transform=axes.transAxes, fontsize=6.8, color=FAINT, va="bottom")
    at, look, curves = grid(n), looks(names), []
    for name in dict.fromkeys(row["attn"] for row in there):
        mine = [row for row in there if row["attn"] == name]
        entropy, error = (np.array([row.number(key) for row in mine]) for key in ("entropy", "error"))
        style = look[name]
        middle = smooth(entropy, error, at)
        shown = np.isfinite(middle)
        if style.strong:
            heads = np.array([f"{row['instance']}, {row['head']}" for row in mine])
            band = curve(entropy, error, heads, at)
            axes.scatter(
                entropy, np.minimum(error, HIGHEST_ERROR), s=5, color=style.colour, alpha=0.22, linewidths=0, zorder=1,
                rasterized=len(there) > MANY,
            )  # fmt: skip
            top = np.minimum(band.high, HIGHEST_ERROR)
            axes.fill_between(at, np.minimum(band.low, top), top, color=style.colour, alpha=0.13, linewidth=0)
        axes.plot(at, np.minimum(middle, HIGHEST_ERROR), **style.line())
        if shown.any():
            last = int(np.flatnonzero(shown)[-1])
            end = (float(at[last]), min(float(middle[last]), HIGHEST_ERROR))
            curves.append(Curve(configuration(mine[0]), [end], [0], style))
    label_ends(axes, curves)
    if not there:
        axes.text(0.5, 0.5, "nothing within this time", transform=axes.transAxes, ha="center", color=FAINT)
