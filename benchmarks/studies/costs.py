"""What the attentions of one race cost: the rows of efficiency.csv."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.contenders import BACKENDS
from benchmarks.rows import spread
from benchmarks.studies.contest import OK, Taken
from benchmarks.studies.crossing import EAGER, PART
from benchmarks.studies.ledger import Stamp, now

FUSED = "softmax"
# Both are in every race: the ratios are to them.
YARDSTICKS = (FUSED, EAGER)
EXACT = (FUSED, EAGER, *BACKENDS, "flex")


class Row(NamedTuple):
    """A line of efficiency.csv: one attention at one length.

    of        core: the attention alone, no padding; model: protocol mlpen's, documents of full length
    kind      variant, or exact: softmax attention however computed. `softmax` is torch's choice of a fused one
    rule      the word that makes the batch: a number, max, <T>tokens
    result    ok, or why a part has no times: "step: out of memory"

    Times of one call with the whole batch, medians in milliseconds with their interquartile range. forward: evaluation,
    no gradients; step: forward and backward in training; train: a step and the optimizer's. `steps_per_s` is of train,
    for core of step, as are `samples_ms` and the ratios: medians over the rounds of this time to softmax's, or to that
    of eager, in the same round, for one example. `peak_mb`: of a step beyond its inputs, of a model's training step
    with weights, inputs and optimizer; MiB. Memory ratios are for one example. `first_s`: the first calls, together.
    """

    of: str
    attn: str
    kind: str
    rule: str
    batch: int | str
    n: int
    layers: int
    heads: int
    head_dim: int
    result: str
    forward_ms: float | None
    forward_iqr_ms: float | None
    step_ms: float | None
    step_iqr_ms: float | None
    train_ms: float | None
    train_iqr_ms: float | None
    steps_per_s: float | None
    rounds: int
    ratio: float | None
    ratio_eager: float | None
    peak_mb: float | None
    memory_ratio: float | None
    memory_ratio_eager: float | None
    first_s: float | None
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


class Unit(NamedTuple):
    """What is measured whole before the next is begun: all attentions in one race, so that each has its yardsticks."""

    of: str
    dtype: str
    rule: str
    n: int

    @property
    def batch(self) -> int | None:
        """Examples; None: what fits."""
        if self.rule == "max":
            return None
        tokens = self.rule.removesuffix("tokens")
        return int(tokens) if tokens == self.rule else int(tokens) // self.n

    def __str__(self) -> str:
        batch = "what fits" if self.batch is None else f"batch {self.batch}"
        return f"{self.of}, n {self.n}, {self.dtype}, {batch}"


def rows_of(unit: Unit, found: dict[str, tuple[int, Taken]], machine: Stamp) -> list[Row]:
    """The rows of a unit."""
    from benchmarks.studies.measured import protocol

    size, _ = protocol(unit.n)
    date, part, rows = now(), PART[unit.of], []
    for name, (batch, taken) in found.items():
        forward, step, train = (middle(taken.samples.get(each)) for each in ("forward", "step", "train"))
        samples = taken.samples.get(part, [])
        rows.append(
            Row(
                of=unit.of,
                attn=name,
                kind="exact" if name in EXACT else "variant",
                rule=unit.rule,
                batch=batch,
                n=unit.n,
                layers=size.layers if unit.of == "model" else 1,
                heads=size.heads,
                head_dim=size.head_dim,
                result=taken.result,
                forward_ms=forward[0],
                forward_iqr_ms=forward[1],
                step_ms=step[0],
                step_iqr_ms=step[1],
                train_ms=train[0],
                train_iqr_ms=train[1],
                steps_per_s=1e3 / statistics.median(samples) if samples else None,
                rounds=max(map(len, taken.samples.values()), default=0),
                ratio=times(found, name, FUSED, part),
                ratio_eager=times(found, name, EAGER, part),
                peak_mb=taken.peak_mb,
                memory_ratio=memory(found, name, FUSED),
                memory_ratio_eager=memory(found, name, EAGER),
                first_s=sum(taken.first_s.values()) or None,
                dtype=unit.dtype,
                reached=taken.reached,
                operators=taken.operators,
                kernel=taken.facts.get("kernel", ""),
                samples_ms=samples,
                **machine._asdict(),
                date=date,
            )
        )
    return rows


def middle(samples: Sequence[float] | None) -> tuple[float | None, float | None]:
    """Median and interquartile range."""
    return spread(samples) if samples else (None, None)


def times(found: dict[str, tuple[int, Taken]], name: str, yardstick: str, part: str) -> float | None:
    """The time for one example to the yardstick's: round by round, where they have the same rounds in one race."""
    (batch, mine), (other, its) = found[name], found[yardstick]
    ours, theirs = mine.samples.get(part), its.samples.get(part)
    if not ours or not theirs:
        return None
    if len(ours) == len(theirs):
        return statistics.median(a / b for a, b in zip(ours, theirs, strict=True)) * other / batch
    return statistics.median(ours) / statistics.median(theirs) * other / batch


def memory(found: dict[str, tuple[int, Taken]], name: str, yardstick: str) -> float | None:
    """The peak for one example to the yardstick's."""
    (batch, mine), (other, its) = found[name], found[yardstick]
    if mine.peak_mb is None or not its.peak_mb:
        return None
    return mine.peak_mb / its.peak_mb * other / batch


def line(row: Row) -> str:
    """A row as it is printed."""
    parts = (("forward", row.forward_ms, row.forward_iqr_ms), ("step", row.step_ms, row.step_iqr_ms),
             ("train", row.train_ms, row.train_iqr_ms))  # fmt: skip
    told = [f"{part} {ms:9.2f} +- {iqr:7.2f} ms" for part, ms, iqr in parts if ms is not None and iqr is not None]
    if row.ratio is not None:
        told.append(f"x {row.ratio:.2f}")
    if row.ratio_eager is not None:
        told.append(f"x {row.ratio_eager:.2f} eager")
    told += [f"{row.peak_mb:.1f} MiB"] if row.peak_mb is not None else []
    told += [row.result] if row.result != OK else []
    batch = f"  batch {row.batch}" if row.rule == "max" else ""
    return f"  {row.attn:18}{batch} {'  '.join(told)}"
