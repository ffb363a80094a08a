"""What a soak saw: its samples, the first against the last of them, and their course as a picture."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_type_hints

from lra.files import write_atomically
from lra.style import PALETTE, STYLE


class Sample(NamedTuple):
    """Where things stand at an instant: a line of the CSV file.

    mb: memory that is in use (RSS). handles: open files, sockets and pipes. `beside` is W&B's own process, `watch` that
    of `make watch`. A round's numbers are those of the last whole one: its time and the largest memory of its commands.
    checkpoint, record, view: the run's checkpoints, its metrics.jsonl, W&B's folder, which holds what the record holds.
    scratch: files in the folder for temporary ones; left: files that a round left behind.
    """

    seconds: float
    steps: int
    steps_per_s: float
    cpu_ms_per_step: float
    trainer_mb: float
    trainer_handles: int
    trainer_threads: int
    beside_mb: float
    beside_handles: int
    watch_mb: float
    watch_handles: int
    rounds: int
    round_s: float
    round_mb: float
    round_handles: int
    checkpoint_mb: float
    record_mb: float
    view_mb: float
    data_mb: float
    scratch: int
    left: int
    attn: str
    device: str
    python: str
    torch: str
    commit: str


# What is set against each other, with its unit.
JUDGED = {
    "steps_per_s": "steps/s", "cpu_ms_per_step": "ms of processor a step", "trainer_mb": "MB", "trainer_handles": "",
    "trainer_threads": "", "beside_mb": "MB", "beside_handles": "", "watch_mb": "MB", "watch_handles": "",
    "round_s": "s", "round_mb": "MB", "round_handles": "", "checkpoint_mb": "MB", "data_mb": "MB", "scratch": "",
    "left": "",
}  # fmt: skip
RUN, BESIDE, WATCH, ROUND, FILES = "the run", "W&B's process", "make watch", "a round", "W&B's files"
PANELS = (
    ("steps a second of the run", {"steps_per_s": ""}),
    ("memory, MB", {"trainer_mb": RUN, "beside_mb": BESIDE, "watch_mb": WATCH, "round_mb": ROUND}),
    ("open files", {"trainer_handles": RUN, "beside_handles": BESIDE, "watch_handles": WATCH, "round_handles": ROUND}),
    ("disk, MB", {"checkpoint_mb": "checkpoints", "data_mb": "data", "record_mb": "metrics.jsonl", "view_mb": FILES}),
)


def ends(samples: Sequence[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The samples of the first and of the last ninth of the time."""
    time = samples[-1].seconds
    first = [sample for sample in samples if sample.seconds <= time / 9]
    return first, [sample for sample in samples if sample.seconds > time * 8 / 9]


def verdicts(samples: Sequence[Sample]) -> list[str]:
    """A line for each judged column: its median in the first and in the last ninth of the time, and the change."""
    lines = []
    for name, unit in JUDGED.items():
        before, after = (statistics.median(getattr(sample, name) for sample in part) for part in ends(samples))
        change = f"{after / before - 1:+.1%}" if before else f"{after - before:+g}"
        lines.append(f"{name:16} {before:10,.2f} {after:10,.2f} {change:>7}  {unit}".rstrip())
    return lines


def draw(samples: Sequence[Sample], file: Path) -> None:
    """The course of what was sampled, as one picture in SVG."""
    import matplotlib
    from matplotlib.figure import Figure

    minutes = [sample.seconds / 60 for sample in samples]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, 5.6), layout="constrained", facecolor="white")
        for axes, (title, lines) in zip(figure.subplots(2, 2, sharex=True).flat, PANELS, strict=True):
            for colour, (name, says) in zip(PALETTE, lines.items(), strict=False):
                axes.plot(minutes, [getattr(sample, name) for sample in samples], color=colour, label=says, lw=1.3)
            axes.set_title(title)
            axes.set_ylim(bottom=0)
            if len(lines) > 1:
                axes.legend(fontsize=7.5)
        for axes in figure.axes[2:]:
            axes.set_xlabel("minutes")
        write_atomically(file, lambda out: figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}))


def read(file: Path) -> list[Sample]:
    """The samples of a CSV file."""
    kinds = get_type_hints(Sample)
    with file.open(newline="", encoding="utf-8") as text:
        return [Sample(**{name: kind(row[name]) for name, kind in kinds.items()}) for row in csv.DictReader(text)]
