"""The rows of the study of approximation: one of each choice, and one of each of its heads."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.rows import spread
from benchmarks.studies.contest import Taken
from benchmarks.studies.cores import Given
from benchmarks.studies.ledger import Stamp, now
from benchmarks.studies.sweeps import Choice

if TYPE_CHECKING:
    from benchmarks.studies.inputs import QKV

# The exact attentions beside which each variant is timed, and what a layer has around its attention.
SOFTMAX, EAGER, PROJECTIONS = (Choice(name, "", 0, (), 1.0, True) for name in ("softmax", "eager", "projections"))
EXACT = (SOFTMAX, EAGER)
ALONE = (*EXACT, PROJECTIONS)


class Row(NamedTuple):
    """A line of approximation.csv. Times are milliseconds and memory MiB of one instance, all measured together.

    error           mean over instances and heads of |out - softmax| / |softmax|, with its quartiles
    entropy         mean of the rows of softmax's weights, nats
    step            forward and backward, to q, k, v and the variant's own weights
    ratio           median over the rounds of a step to one of torch's fused softmax; ratio_eager: to softmax with its
                    weights in memory
    peak_mb         of a step, beyond the inputs
    first_s         the first forward and the first step
    """

    inputs: str
    inputs_sha256: str
    n: int
    attn: str
    parameter: str
    value: int | str
    workload: float | None
    aims: bool | None
    result: str
    error: float | None
    error_low: float | None
    error_median: float | None
    error_high: float | None
    entropy: float | None
    forward_ms: float | None
    forward_iqr_ms: float | None
    step_ms: float | None
    step_iqr_ms: float | None
    rounds: int
    ratio: float | None
    ratio_eager: float | None
    peak_mb: float | None
    first_s: float | None
    batch: int
    heads: int
    head_dim: int
    dtype: str
    reached: str
    operators: str
    kernel: str
    samples_ms: list[float]
    device: str
    threads: int | str
    driver: str
    clocks: str
    isa: str
    python: str
    torch: str
    source: str
    commit: str
    date: str


class HeadRow(NamedTuple):
    """A line of approximation_heads.csv: one head of one instance."""

    inputs: str
    inputs_sha256: str
    n: int
    attn: str
    parameter: str
    value: int | str
    instance: str
    head: int
    entropy: float
    error: float
    dtype: str
    source: str


IDENTITY = ("inputs_sha256", "n", "attn", "parameter", "value", "dtype")


class Unit(NamedTuple):
    """What is measured and written together: the choices of one attention on one input."""

    qkv: QKV
    attn: str
    choices: tuple[Choice, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.qkv.name}, n {self.qkv.q.shape[2]}, {self.attn}"

    def identity(self, choice: Choice) -> dict[str, Any]:
        """The fields that name a row of the unit, all but those that are text as in the file."""
        value = "" if choice in ALONE else choice.value
        named = self.qkv.sha256[:12], self.qkv.q.shape[2], choice.attn, choice.parameter, value, self.dtype
        return dict(zip(IDENTITY, named, strict=True))


def rows_of(unit: Unit, given: Given, found: dict[str, Taken], machine: Stamp) -> list[Row]:
    """The rows of a unit."""
    return [row_of(unit, choice, given, found, machine) for choice in unit.choices]


def row_of(unit: Unit, choice: Choice, given: Given, found: dict[str, Taken], machine: Stamp) -> Row:
    """The row of one choice, beside the exact attentions of the same contest."""
    taken = found[str(choice)]
    instances, heads, _, head_dim = unit.qkv.q.shape
    forward, step = ([x / instances for x in taken.samples.get(part, [])] for part in ("forward", "step"))
    softmax, eager = (ratio(taken, found[str(exact)]) for exact in EXACT)
    per_head = taken.facts.get("errors")
    low, median, high = quartiles(per_head)
    return Row(
        unit.qkv.name,
        **unit.identity(choice),
        workload=None if choice == PROJECTIONS else choice.workload,
        aims=None if choice == PROJECTIONS else choice.aims,
        result=taken.result,
        error=None if per_head is None else float(per_head.mean()),
        error_low=low,
        error_median=median,
        error_high=high,
        entropy=None if per_head is None else float(given.entropy.mean()),
        forward_ms=middle(forward),
        forward_iqr_ms=width(forward),
        step_ms=middle(step),
        step_iqr_ms=width(step),
        rounds=len(step),
        ratio=softmax,
        ratio_eager=eager,
        peak_mb=None if taken.peak_mb is None else taken.peak_mb / instances,
        first_s=sum(taken.first_s.values()) if taken.first_s else None,
        batch=instances,
        heads=heads,
        head_dim=head_dim,
        reached=taken.reached,
        operators=taken.operators,
        kernel=taken.facts.get("kernel", ""),
        samples_ms=step,
        **machine._asdict(),
        date=now(),
    )


def head_rows(unit: Unit, given: Given, found: dict[str, Taken], source: str) -> Iterator[HeadRow]:
    """The rows of each head of a unit, of those choices that ran."""
    for choice in unit.choices:
        per_head = found[str(choice)].facts.get("errors")
        for (i, head), error in () if per_head is None else np.ndenumerate(per_head):
            yield HeadRow(
                unit.qkv.name,
                **unit.identity(choice),
                instance=unit.qkv.instances[i],
                head=head,
                entropy=float(given.entropy[i, head]),
                error=float(error),
                source=source,
            )


def quartiles(values: np.ndarray | None) -> list[float | None]:
    return [None] * 3 if values is None else [float(x) for x in np.quantile(values, (0.25, 0.5, 0.75))]


def middle(values: Sequence[float]) -> float | None:
    """The median, where there are values."""
    return spread(values)[0] if values else None


def width(values: Sequence[float]) -> float | None:
    """The interquartile range, where there are values."""
    return spread(values)[1] if values else None


def ratio(own: Taken, its: Taken) -> float | None:
    """A step to another's, the median over the rounds, where both have steps."""
    pairs = zip(own.samples.get("step", []), its.samples.get("step", []), strict=False)
    ratios = [x / y for x, y in pairs]
    return statistics.median(ratios) if ratios else None
