"""`python -m lra.report`: learning curves of a set of runs as one picture, a row of panels per protocol and task."""

from __future__ import annotations

if __name__ == "__main__":
    # Before everything else is imported, so that Ctrl-C has its one line then too.
    from lra.command import answer_signals

    answer_signals()

import math
import sys
import textwrap
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lra.cells import OVER_BUDGET, Cell, cells, select
from lra.command import command
from lra.curves import Curve, read_curves, windows
from lra.files import write_atomically
from lra.folders import existing
from lra.outcomes import Run, collect
from lra.style import DASHES, STYLE, colours_of
from lra.words import WordError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import SubFigure
    from matplotlib.lines import Line2D

CAPTION = (
    "Strong: validation. Faint: training. Diamonds: test accuracy, of the best validation step. Crosses: diverged."
)


def draw(table: Sequence[Cell], out: Path) -> list[str]:
    """Draw the runs of `table` into `out` (.svg or .png); returns one line for each run whose curves cannot be read."""
    import matplotlib
    from matplotlib.figure import Figure

    rows: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in table:
        rows[cell.protocol, cell.task_name].append(cell)

    problems: list[str] = []
    colours = colours_of(cell.attn for cell in table)
    kind = out.suffix.removeprefix(".")
    with matplotlib.rc_context(STYLE):
        heights = [3.6 + 0.2 * math.ceil(len(members) / _legend_columns(members)) for members in rows.values()]
        figure = Figure(figsize=(10, sum(heights) + 0.3), layout="constrained", facecolor="white")
        parts = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, ((protocol, task), members) in zip(parts, rows.items(), strict=True):
            problems += _draw_row(part, f"{task}, protocol {protocol}", members, colours)
        over = f" {OVER_BUDGET}: over 10% more parameters than softmax." if any(cell.excess for cell in table) else ""
        parts[-1].supxlabel(CAPTION + over, fontsize=8, color="#666666")
        metadata = {"Date": None, "Creator": None} if kind == "svg" else None
        write_atomically(out, lambda file: figure.savefig(file, format=kind, metadata=metadata, dpi=150))
    return problems


def _draw_row(
    part: SubFigure, title: str, members: Sequence[Cell], colours: Mapping[str, tuple[int, str]]
) -> list[str]:
    """Loss on the left, accuracy on the right, the legend above; returns the problems met."""
    left, right = part.subplots(1, 2)
    left.set(title="loss (nats)", xlabel="step")
    right.set(title="accuracy (%)", xlabel="step")
    problems: list[str] = []
    lines: list[Line2D] = []
    drawn: dict[str, int] = defaultdict(int)
    for cell in members:
        turn, colour = colours[cell.attn]
        dashes = DASHES[(turn + drawn[cell.attn]) % len(DASHES)]
        drawn[cell.attn] += 1
        for run in cell.runs:
            try:
                curves = read_curves(run.path.with_name("metrics.jsonl"))
            except (OSError, ValueError) as error:
                problems.append(f"no curves of {run.path.parent}: {error}")
                continue
            _draw_run(left, right, run, curves, colour, dashes)
        lines += left.plot([], [], color=colour, linestyle=dashes, linewidth=1.8, label=_label(cell))
    for name, accuracy in members[0].floors.items():
        _draw_floor(right, f"{name}\n{accuracy}%", accuracy)
    part.legend(
        handles=lines, loc="outside upper left", ncols=_legend_columns(members), alignment="left",
        title=title, title_fontproperties={"weight": "bold", "size": 11},
    )  # fmt: skip
    return problems


def _legend_columns(members: Sequence[Cell]) -> int:
    """As many as fit a picture of some 140 letters, at most four."""
    widest = max(len(_label(cell)) for cell in members) + 10
    return max(1, min(4, len(members), 140 // widest))


def _label(cell: Cell) -> str:
    name = f"{cell.attn_name}, {textwrap.shorten(cell.words.replace(',', ', '), 60)}" if cell.words else cell.attn_name
    if cell.accuracy is None:
        return name
    return f"{name}: {cell.accuracy:.1f}%" + (f" (mean of {len(cell.finished)})" if len(cell.finished) > 1 else "")


def _draw_run(left: Axes, right: Axes, run: Run, curves: dict[str, Curve], colour: str, dashes: Any) -> None:
    for split, width, alpha in (("train", 0.8, 0.28), ("val", 1.3, 1.0)):
        if split not in curves:
            continue
        steps, loss, accuracy = curves[split] if split == "val" else windows(curves[split])
        for axes, values in ((left, loss), (right, accuracy)):
            # A line through a single point is nothing to be seen.
            point: Any = {"marker": "."} if len(steps) == 1 else {}
            axes.plot(steps, values, color=colour, linestyle=dashes, linewidth=width, alpha=alpha, **point)
            if run.status == "diverged" and split == "train":
                axes.plot(*_last(steps, values), "x", color=colour, markersize=6, markeredgewidth=1.8)
    if run.status == "finished" and run.accuracy is not None:
        style: Any = {"markersize": 6, "markeredgecolor": "white", "markeredgewidth": 0.8, "zorder": 3}
        right.plot(run.steps, 100 * run.accuracy, "D", color=colour, **style)


def _last(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
    """The last point that is a number, if there is one."""
    points = [(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)]
    return [step for step, _ in points[-1:]], [value for _, value in points[-1:]]


def _draw_floor(axes: Axes, name: str, accuracy: float) -> None:
    axes.axhline(accuracy, color="#777777", linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    axes.annotate(
        name.replace(" ", "\n", 1), (1, accuracy), xycoords=("axes fraction", "data"), xytext=(5, 0),
        textcoords="offset points", ha="left", va="center", fontsize=7.5, color="#666666", annotation_clip=False,
    )  # fmt: skip


KEYS = {
    "runs": ("runs", "folder of the runs"),
    "task": ("", "only these tasks, a list with commas"),
    "attn": ("", "only these attentions"),
    "protocol": ("", "only these protocols"),
    "out": ("runs/report/curves.svg", "the picture, .svg or .png"),
}


def report(options: dict[str, str]) -> int:
    """Draw what the words name, with a value for each of KEYS; returns the exit code."""
    out = Path(options["out"])
    if out.suffix not in (".svg", ".png"):
        raise WordError(f"out={out} does not end in .svg or .png")
    root = existing(options["runs"], KEYS["runs"][0])
    every, problems = collect(root)
    wanted = {key: options[key] for key in ("task", "attn", "protocol") if options[key]}
    runs, _ = select(every, [], wanted) if every else (every, [])
    if runs:
        problems += draw(cells(runs), out)
    for problem in problems:
        print(problem)
    print(f"written: {out}" if runs else f"no runs in {root} yet: make lra task=listops attn=mra2")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("lra.report", "Learning curves of all runs in one picture.", KEYS, report, words)


if __name__ == "__main__":
    sys.exit(main())
