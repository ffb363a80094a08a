"""A verdict per cell: do our runs of a published set-up give the published accuracy? Accuracies in percent.

The claim is about one cell: a protocol, task and attention. Our number is the mean over the seeds that finished.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lra.intervals import student_interval, wilson
from lra.ours import Row
from lra.published import MARKS, SOURCES, Published, preference, task_name

REPRODUCED, BETTER, WORSE = "reproduced", "better", "worse"
NOT_RUN, UNVERIFIED = "not run", "unverified source"
# Beside the five: what diverged every time, and what nobody published.
FAILED, ALONE = "failed", "nothing published"
# A difference of so many points is none, whatever the interval.
WITHIN = 1.0
RECIPES = Path(__file__).resolve().parents[1] / "conf" / "recipe"
# How the benchmark's own tasks are ordered in tables; Path-X, which this protocol has no values of, comes after them.
TASKS = tuple(SOURCES)


class Interval(NamedTuple):
    """A 95% interval in percent; `kind` says of what."""

    low: float
    high: float
    kind: str


@dataclass(frozen=True)
class Standing:
    """A cell: our runs of it, which saw the same data, and the published values.

    value: the one that counts. others: of the same protocol and cell, from other sources.
    """

    protocol: str
    task: str
    attn: str
    rows: tuple[Row, ...]
    value: Published | None
    others: tuple[Published, ...]

    @property
    def finished(self) -> list[Row]:
        return [row for row in self.rows if row.status == "finished"]

    @property
    def accuracy(self) -> float | None:
        shares = _shares(self.finished)
        return 100 * statistics.fmean(shares) if shares else None

    @property
    def interval(self) -> Interval | None:
        """What our number may be off by.

        One seed: Wilson's over the items of the test set, without the spread of seeds, which one run cannot tell.
        Several: Student's over the seeds, as in `make compare`; but seeds share their test items, whose luck is in all
        of them alike. So it is never narrower than Wilson's at the mean accuracy and the items of one test set: the
        lower of the two lower ends, the higher of the two higher ones.
        """
        shares, n = _shares(self.finished), min((row.n for row in self.finished if row.n), default=0)
        if not shares:
            return None
        low, high = wilson(statistics.fmean(shares) * n, n)
        if len(shares) == 1:
            return Interval(100 * low, 100 * high, "Wilson")
        lower, higher = student_interval(shares)
        kind = "t" if lower <= low and high <= higher else "Wilson" if low <= lower and higher <= high else "t, Wilson"
        return Interval(100 * max(min(low, lower), 0.0), 100 * min(max(high, higher), 1.0), kind)

    def difference(self, value: Published | None) -> float | None:
        """Ours minus `value`, in points."""
        if self.accuracy is None or value is None or value.accuracy is None:
            return None
        # What is printed with a decimal or two is not known to more than that: no 1.0000000001.
        return round(self.accuracy - value.accuracy, 9)

    def against(self, value: Published | None) -> str:
        """The verdict beside `value`."""
        difference, interval = self.difference(value), self.interval
        if interval is None:
            return FAILED if self.rows and all(row.status == "diverged" for row in self.rows) else NOT_RUN
        if value is None or value.accuracy is None or difference is None:
            return ALONE
        if value.status == "unverified":
            return UNVERIFIED
        if interval.low <= value.accuracy <= interval.high or abs(difference) <= WITHIN:
            return REPRODUCED
        return BETTER if difference > 0 else WORSE

    @property
    def verdict(self) -> str:
        return self.against(self.value)

    @property
    def name(self) -> str:
        return f"{self.protocol}-{self.task}-{self.attn}"

    @property
    def task_name(self) -> str:
        """The task's plain name where its data are the released ones, or where nothing was run."""
        return task_name(self.task, self.rows[0].source) if self.rows else self.task

    @property
    def progress(self) -> str:
        """What became of the runs that did not finish: `seed 0 interrupted at step 1,234 of 5,000`."""
        steps = recipe_steps(self.protocol, self.task)
        return "; ".join(
            f"seed {row.seed} {row.status.replace('_', ' ')} at step {row.steps:,} of {steps:,}"
            for row in self.rows
            if row.status != "finished"
        )

    def by_device(self) -> dict[str, list[Row]]:
        """The finished runs of each device: speeds and memory of different ones are never averaged."""
        found: dict[str, list[Row]] = defaultdict(list)
        for row in self.finished:
            found[row.device].append(row)
        return found


def _shares(rows: Iterable[Row]) -> list[float]:
    """The accuracies, from the whole numbers that they are made of."""
    return [row.correct / row.n for row in rows if row.correct is not None and row.n]


def mean(rows: Iterable[Row], fact: Callable[[Row], float | None]) -> float | None:
    """The mean of what `fact` says of the rows that say it."""
    known = [value for row in rows if (value := fact(row)) is not None]
    return statistics.fmean(known) if known else None


def weight(value: Published) -> tuple[Any, ...]:
    """Which of several published values of a cell counts: the first by this.

    A verdict is a claim about the value too: one that could be checked comes before one that could not. Of those the
    protocol's own paper is first, which `make compare` shows whether its values could be checked or not.
    """
    return value.status == "unverified", *preference(value)


def standings(rows: Sequence[Row], published: Sequence[Published], protocol: str) -> list[Standing]:
    """Every cell of a protocol that was published or run, task by task, softmax first.

    Runs of one cell on different data are cells of their own, the one with the most finished runs first.
    """
    values: dict[tuple[str, str], list[Published]] = defaultdict(list)
    for value in sorted(published, key=weight):
        if value.protocol == protocol and value.attn and value.task in TASKS:
            values[value.task, value.attn].append(value)
    runs: dict[tuple[str, str], dict[tuple[str, str], list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.protocol == protocol:
            runs[row.task, row.attn][row.source, row.data_sha256].append(row)
    found = []
    for task, attn in sorted(values.keys() | runs.keys(), key=place):
        known = values.get((task, attn), [])
        groups = sorted(runs.get((task, attn), {"": []}).values(), key=lambda group: -len(_shares(group)))
        first, others = known[0] if known else None, tuple(known[1:])
        found += [Standing(protocol, task, attn, tuple(group), first, others) for group in groups]
    return found


def place(cell: tuple[str, str]) -> tuple[int, bool, str]:
    """Where a task and attention stand in tables: as in `make compare`."""
    task, attn = cell
    return TASKS.index(task), attn != "softmax", attn


def recipe_steps(protocol: str, task: str) -> int:
    """The training steps of a recipe."""
    recipe = yaml.safe_load((RECIPES / f"{protocol}_{task}.yaml").read_text(encoding="utf-8"))
    return int(recipe["train"]["steps"])


def counted(table: Iterable[Standing]) -> dict[str, int]:
    """How many cells have each verdict, in the order of the verdicts."""
    counts = Counter(standing.verdict for standing in table)
    return {verdict: counts[verdict] for verdict in (REPRODUCED, BETTER, WORSE, FAILED, UNVERIFIED, ALONE, NOT_RUN)}


def marked(value: Published | None) -> str:
    """A published value with the mark of its status; `-` where there is none."""
    return "-" if value is None else value.text + MARKS[value.status]
