"""Which configuration of an attention enters under a budget of time: the choice of the study of entropy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.studies.apart import OK
from benchmarks.studies.sweeps import Choice
from lra.words import WordError

# The exact attentions whose time can be a budget, and the column that compares a step with theirs.
RATIOS = {"eager": "ratio_eager", "softmax": "ratio"}


class Budget(NamedTuple):
    """A share of the time of a step of an exact attention; `ms`: milliseconds of an instance."""

    against: str
    share: float
    ms: float

    def __str__(self) -> str:
        return f"{self.share:g} x the time of {self.against}, {self.ms:.4g} ms"


class Timed(NamedTuple):
    """A configuration whose step was measured: milliseconds of an instance, its ratio to that of each exact attention
    in the same rounds, and its error at temperature 1."""

    choice: Choice
    ms: float
    ratios: dict[str, float]
    error: float

    def label(self) -> str:
        """The value of its budget."""
        choice = self.choice
        return f"{choice.parameter}={choice.value}" if choice.parameter else "as it is"


class Entry(NamedTuple):
    """What an attention enters with: the largest configuration within a budget, None where none is.

    nearest   of those within it the one with the smallest error at temperature 1, which need not be the largest
    quickest  of all of the attention
    """

    budget: Budget
    attn: str
    taken: Timed | None
    nearest: Timed | None
    quickest: Timed | None


def budgets(
    rows: Iterable[Mapping[str, str]], against: Sequence[str], shares: Sequence[float], file: Path
) -> list[Budget]:
    """The budgets that the rows of the exact attentions give, the largest share of each first."""
    steps = {
        row["attn"]: number(row, "step_ms", file) for row in rows if row["attn"] in against and row["result"] == OK
    }
    return [
        Budget(name, share, share * steps[name])
        for name in against
        if name in steps
        for share in sorted(shares, reverse=True)
    ]


def timed(rows: Iterable[Mapping[str, str]], wanted: Iterable[Choice], file: Path) -> list[Timed]:
    """The configurations of `wanted` that ran, from rows of approximation.csv of one input, length and dtype."""
    by_name = {(row["attn"], row["parameter"], row["value"]): row for row in rows if row["result"] == OK}
    found = []
    for choice in wanted:
        row = by_name.get((choice.attn, choice.parameter, str(choice.value)))
        if row is not None:
            ratios = {name: number(row, key, file) for name, key in RATIOS.items() if row[key]}
            error = number(row, "error", file) if row["error"] else math.nan
            found.append(Timed(choice, number(row, "step_ms", file), ratios, error))
    return found


def number(row: Mapping[str, str], key: str, file: Path) -> float:
    """A number of a row; WordError where it is none."""
    try:
        return float(row[key])
    except ValueError:
        rule = "remove the file and measure again"
        raise WordError(f"{file}: {key}={row[key]!r} of {row['attn']} is not a number; {rule}") from None


def enter(budget: Budget, attn: str, every: Iterable[Timed]) -> Entry:
    """The entry of an attention under a budget.

    What is within it is decided by the ratio to the exact attention, the median of the same rounds: milliseconds of
    two units were measured at different times, when the machine may have been quicker or slower.
    """
    own = [each for each in every if each.choice.attn == attn]
    within = [each for each in own if each.ratios.get(budget.against, math.inf) <= budget.share]
    return Entry(
        budget,
        attn,
        # Of equal workloads the quicker.
        max(within, key=lambda each: (each.choice.workload or 0, -each.ms), default=None),
        min((each for each in within if not math.isnan(each.error)), key=lambda each: each.error, default=None),
        min(own, key=lambda each: each.ratios.get(budget.against, math.inf), default=None),
    )


def share(word: str) -> float:
    """A share of a time, above 0."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1e6:
        raise WordError(f"budget={word} must be numbers above 0, such as 1,0.5")
    return float(f"{value:.6g}")
