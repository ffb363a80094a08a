"""`python -m benchmarks.studies.approximation`: how near every attention comes to softmax, and what it costs.

For each variant and each value of its budget the relative error of its output to that of softmax attention on the same
q, k, v, and the time and the memory of its core on them: what it selects depends on the data.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.rows import choices, whole_number
from benchmarks.studies.approximation_rows import ALONE, EXACT, IDENTITY, HeadRow, Row, Unit, head_rows, rows_of
from benchmarks.studies.contest import OK, Entrant, Rules, contest
from benchmarks.studies.cores import Given, rounded, work
from benchmarks.studies.errors import exact
from benchmarks.studies.ledger import Ledger, Stamp, alone, folder_of, stamp
from benchmarks.studies.sweeps import sweep, swept
from lra.command import command
from lra.words import choose

if TYPE_CHECKING:
    from benchmarks.studies.inputs import QKV

MAIN, HEADS = "approximation.csv", "approximation_heads.csv"
# The code on which the rows depend, beside the attentions and the kernels.
MODULES = (
    "apart", "approximation", "approximation_rows", "baselines", "contest", "cores", "errors", "race", "sweeps"
)  # fmt: skip
SUMMARY = "Error, time and memory of every attention, beside softmax, on the same inputs."


class Extent(NamedTuple):
    """How much a size measures; `seconds` bounds the rounds of one unit."""

    heads: int
    head_dim: int
    instances: int
    rounds: int
    seconds: int


SIZES = {"small": Extent(2, 64, 1, 5, 10), "full": Extent(12, 64, 2, 30, 600)}

KEYS = {
    "size": ("small", "small: 2 heads, 1 instance, 5 rounds; full: 12 heads, 2 instances, 30 rounds"),
    "inputs": ("generated", "generated, generated:locality=0.2, files of make qkv or your own; a list with commas"),
    "lengths": ("512,4096", "tokens N of generated inputs, a list with commas"),
    "attn": ("", "only these variants, a list with commas"),
    "rounds": ("auto", "each times every choice of a variant, softmax and eager softmax once"),
    "seconds": ("auto", "after which the rounds of a variant at one input end early, though not before three of them"),
    "device": ("auto", "auto, cpu or cuda"),
    "dtype": ("float32", "float32, bfloat16 or float16"),
    "threads": ("0", "threads on a CPU; 0: torch's own choice"),
    "folder": ("auto", "of the two CSV files; auto: benchmarks/results/studies/<machine>"),
    "dry": ("false", "true: only say what would be measured, and about how long it takes"),
}


class Pace:
    """About how long units take: guessed from a step of softmax, then corrected by those that are done."""

    # Seconds until a process that measures has begun.
    start = 0.2

    def __init__(self, rules: Rules) -> None:
        self.rules, self.expected, self.spent = rules, 0.0, 0.0
        self.step = softmax_seconds(rules.device)

    def seconds(self, unit: Unit) -> float:
        """A guess: the variants differ by a factor of ten either way."""
        instances, heads, n, _ = unit.qkv.q.shape
        softmax = self.step * instances * heads * (n / 1024) ** 2
        # Of softmax, of softmax with its weights in memory, and of a variant, forward and step.
        others = [(0.4 + 200 / n) * softmax for choice in unit.choices if choice not in EXACT]
        once = 1.4 * (softmax + 3 * softmax + sum(others))
        before = (2 + len(others)) * self.start + 3 * once
        return before + min(self.rules.rounds * once, max(self.rules.seconds, 3 * once))

    def left(self, units: Sequence[Unit]) -> str:
        """How long some units take."""
        # As if a minute had gone as guessed, so that the first few seconds say little.
        return told((self.spent + 60) / (self.expected + 60) * sum(map(self.seconds, units)))

    def done(self, unit: Unit, seconds: float) -> None:
        self.expected += self.seconds(unit)
        self.spent += seconds


def told(seconds: float) -> str:
    """A time that nobody knows exactly."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"about {seconds / size:.0f} {unit}"
    return f"about {seconds:.0f} s"


def softmax_seconds(device: str) -> float:
    """Of a step of softmax with 1,024 tokens, for one head."""
    import torch

    from benchmarks.meter import meter

    q = torch.randn(1, 1, 1024, 64, device=device, requires_grad=True)
    clock = meter(torch.device(device), flush=False)

    def step() -> None:
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        torch.autograd.grad(out.sum(), q)

    return min(clock.milliseconds(step, "eager") for _ in range(2)) / 1000


def run(options: dict[str, str]) -> int:
    """Measure what is missing, with a value for each of KEYS; returns the exit code."""
    extent = SIZES[choose("size", options["size"], tuple(SIZES))]
    lengths = [whole_number("lengths", text, least=1) for text in options["lengths"].split(",")]
    names = choices("attn", options["attn"], swept())
    rounds, seconds = (
        whole_number(key, str(auto) if options[key] == "auto" else options[key], least=1)
        for key, auto in (("rounds", extent.rounds), ("seconds", extent.seconds))
    )
    choose("device", options["device"], ("auto", "cpu", "cuda"))
    dtype = choose("dtype", options["dtype"], ("float32", "bfloat16", "float16"))
    threads = whole_number("threads", options["threads"], least=0)
    dry = choose("dry", options["dry"], ("true", "false")) == "true"

    import torch

    from lra.machine import pick_device

    device = pick_device(options["device"]).type
    threads = threads or torch.get_num_threads()
    inputs = taken_up(options["inputs"].split(","), lengths, extent)
    machine = stamp(device, threads, MODULES)
    folder = folder_of(machine) if options["folder"] == "auto" else Path(options["folder"])
    plan = [unit for qkv in inputs for unit in units(qkv, dict.fromkeys(names), dtype)]
    with nullcontext() if dry else alone(folder):
        ledger = Ledger(folder / MAIN, Row, IDENTITY, machine)
        heads = Ledger(folder / HEADS, HeadRow, (*IDENTITY, "instance", "head"), machine)
        left = [unit for unit in plan if not all(ledger.has(**unit.identity(choice)) for choice in unit.choices)]
        pace = Pace(Rules(device, threads, rounds, seconds, "step"))
        print(f"{machine.device}{f', {threads} threads' if device == 'cpu' else ''}; torch {machine.torch}; {dtype}")
        print(f"{folder}: {len(plan) - len(left)} of {len(plan)} units are measured; the others take {pace.left(left)}")
        for done, unit in enumerate(left):
            rest = pace.left([unit] if dry else left[done:])
            print(f"{done + 1} of {len(left)}: {unit}; {rest}{'' if dry else ' left'}", flush=True)
            if not dry:
                start = time.perf_counter()
                measure(unit, pace.rules, ledger, heads, machine)
                pace.done(unit, time.perf_counter() - start)
    print("nothing was measured: dry=true" if dry else f"written: {folder / MAIN} and {HEADS}")
    return 0


def taken_up(words: Sequence[str], lengths: Sequence[int], extent: Extent) -> list[QKV]:
    """The inputs of all words: files once, generated ones at each length."""
    from benchmarks.studies.inputs import Size, is_file, take

    found = [
        take(word, Size(n, extent.heads, extent.head_dim, extent.instances))
        for word in words
        for n in (lengths[:1] if is_file(word) else lengths)
    ]
    return list({qkv.sha256: qkv for qkv in found}.values())


def units(qkv: QKV, names: Iterable[str], dtype: str) -> list[Unit]:
    """What there is to measure on one input; the exact attentions first, every other is set beside them."""
    swept = [Unit(qkv, name, tuple(sweep(name, qkv.q.shape[2])), dtype) for name in names]
    return [Unit(qkv, "softmax", ALONE, dtype), *swept]


def measure(unit: Unit, rules: Rules, ledger: Ledger[Row], heads: Ledger[HeadRow], machine: Stamp) -> None:
    """Measure a unit and write its rows, those of the heads first: no row is without its heads."""
    qkv = rounded(unit.qkv, unit.dtype)
    given = Given(qkv, *exact(qkv), unit.dtype)
    found = contest(entrants(unit, given), rules)
    rows = rows_of(unit, given, found, machine)
    heads.add(head_rows(unit, given, found, machine.source))
    ledger.add(rows)
    for row in rows:
        print(line(row), flush=True)


def entrants(unit: Unit, given: Given) -> list[Entrant]:
    """All that is measured in turn: softmax and eager softmax first, whatever the unit."""
    small = given.cut()
    every = [*EXACT, *(choice for choice in unit.choices if choice not in EXACT)]
    return [Entrant(str(choice), partial(work, choice, given), partial(work, choice, small)) for choice in every]


def line(row: Row) -> str:
    """A row as it is printed."""
    name = f"{row.attn} {row.parameter}={row.value}" if row.parameter else row.attn
    told = [row.result] if row.result != OK else []
    told += [f"error {row.error:.3g}"] if row.error is not None else []
    told += [f"step {row.step_ms:.4g} +- {row.step_iqr_ms:.2g} ms"] if row.step_ms is not None else []
    told += [f"x {row.ratio:.2f}"] if row.ratio is not None else []
    told += [f"{row.peak_mb:.1f} MiB"] if row.peak_mb is not None else []
    return f"  {name:32} {', '.join(told)}"


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    kept = "what is measured is written, the same words go on with the rest"
    return command("benchmarks.studies.approximation", SUMMARY, KEYS, run, words, kept)


if __name__ == "__main__":
    sys.exit(main())
