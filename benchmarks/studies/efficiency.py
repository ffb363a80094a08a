"""`python -m benchmarks.studies.efficiency`: what every attention costs, by itself and in the whole model, by length.

The Long Range Arena's table (steps a second and peak memory beside softmax) with exact attentions by name as baselines,
and from which length on each variant is ahead of the best of them. All that is compared is timed in turn.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.rows import choices, whole_number
from benchmarks.studies import crossing
from benchmarks.studies.contest import Entrant, Rules, Taken, contest, fitting
from benchmarks.studies.costs import EXACT, FUSED, YARDSTICKS, Row, Unit, line, rows_of
from benchmarks.studies.crossing import EFFICIENCY, PART
from benchmarks.studies.ledger import Ledger, Stamp, folder_of, source, stamp
from lra.command import command
from lra.words import WordError, choose

if TYPE_CHECKING:
    import torch

    from benchmarks.studies.measured import Core, Whole

CONF = Path(__file__).resolve().parents[2] / "conf"
# Of the files of this folder those that decide what is measured, and what else does.
MODULES = ("apart", "contest", "race", "baselines", "measured", "costs", "efficiency")
ALSO = ("lra/model.py", "lra/attention.py", "conf/protocol/mlpen.yaml")
# `small` ends on two cores in minutes; `full` has the sizes of the benchmark's paper and longer ones.
SIZES: dict[str, dict[str, str]] = {
    "small": {"core": "512,1024,2048,4096,8192", "batch": "2", "rounds": "5", "warmup": "2", "seconds": "6"},
    "full": {"core": "512,1024,2048,3072,4096,8192,16384", "batch": "32", "rounds": "30", "warmup": "10",
             "seconds": "600"},
}  # fmt: skip
MODEL = "1024,2048,3072,4096"
# Tokens and examples of the call that comes before a measurement of memory.
FIRST = (128, 1)

KEYS = {
    "size": ("small", "small or full: what auto stands for below"),
    "of": ("", "core: the attention alone; model: the whole model, also its training step; a list with commas"),
    "attn": ("", "only these attentions, a list with commas; softmax and eager are always measured"),
    "lengths": ("auto", "tokens N, a list; core 512 to 8192, at size=full to 16384, model 1024 to 4096"),
    "batch": ("auto", "examples: a number, max (what fits) or <T>tokens (T / N), a list; 2, at size=full 32"),
    "dtype": ("auto", "float32, bfloat16, a list; at size=full on a GPU both, else float32"),
    "device": ("auto", "auto, cpu or cuda"),
    "rounds": ("auto", "each times everything once; 5, at size=full 30"),
    "seconds": ("auto", "for the rounds of one length, which end early after three of them; 6, at size=full 600"),
    "threads": ("0", "threads on a CPU; 0: torch's own choice"),
    "folder": ("auto", "where the CSV files stand; auto: benchmarks/results/studies/<machine>"),
    "dry": ("false", "true: print what would be measured, with the time to expect"),
}


# What makes a row one of its own.
IDENTITY = ("of", "attn", "rule", "n", "dtype")


class Asked(NamedTuple):
    """What to measure and how. `names`: the attentions of core and of model."""

    units: list[Unit]
    names: dict[str, list[str]]
    device: str
    rounds: int
    warmup: int
    seconds: float
    threads: int


def asked(options: dict[str, str]) -> Asked:
    """The words, checked; WordError where one is wrong."""
    size = SIZES[choose("size", options["size"], list(SIZES))]
    choose("dry", options["dry"], ("true", "false"))
    choose("device", options["device"], ("auto", "cpu", "cuda"))
    kinds = choices("of", options["of"], list(PART))
    rules = [rule(text) for text in (size["batch"] if options["batch"] == "auto" else options["batch"]).split(",")]
    own = {"core": size["core"], "model": MODEL}
    lengths = {
        of: [
            whole_number("lengths", n, 1)
            for n in (own[of] if options["lengths"] == "auto" else options["lengths"]).split(",")
        ]
        for of in kinds
    }
    dtypes = choices("dtype", "" if options["dtype"] == "auto" else options["dtype"], ("float32", "bfloat16"))
    rounds = whole_number("rounds", size["rounds"] if options["rounds"] == "auto" else options["rounds"], 1)
    seconds = whole_number("seconds", size["seconds"] if options["seconds"] == "auto" else options["seconds"], 1)
    threads = whole_number("threads", options["threads"], 0)
    configured = sorted(file.stem for file in (CONF / "attn").glob("*.yaml"))
    known = [*EXACT, *(name for name in configured if name not in EXACT)]
    chosen = choices("attn", options["attn"], known)
    units = [Unit(*unit) for of in kinds for unit in itertools.product([of], dtypes, rules, lengths[of])]
    for unit in units:
        if unit.batch == 0:
            raise WordError(f"batch={unit.rule} is less than one document of n={unit.n} tokens")

    import torch

    from lra.machine import pick_device

    device = pick_device(options["device"]).type
    if options["dtype"] == "auto" and (device == "cpu" or options["size"] == "small"):
        units = [unit for unit in units if unit.dtype == "float32"]
    return Asked(
        units,
        {of: entered(of, chosen, device) for of in kinds},
        device,
        rounds,
        int(size["warmup"]),
        seconds,
        threads or torch.get_num_threads(),
    )


def rule(text: str) -> str:
    """A word of `batch`, checked."""
    if text != "max" and not re.fullmatch(r"[1-9]\d*(tokens)?", text):
        raise WordError(f"batch={text} is not a number of examples, max, or <T>tokens such as 32768tokens")
    return text


def entered(of: str, chosen: Sequence[str], device: str) -> list[str]:
    """Who is in the races: the yardsticks and what is asked for, as far as it exists on the device.

    Convolutions around an attention are of the model. On a CPU FlexAttention cannot train one.
    """
    from benchmarks.studies.baselines import on

    there = {FUSED, *on(device)} - ({"flex"} if (of, device) == ("model", "cpu") else set())
    names = dict.fromkeys([*YARDSTICKS, *chosen])
    return [name for name in names if (name in there if name in EXACT else of == "model" or not name.endswith("_conv"))]


def made(unit: Unit, name: str, batch: int, device: torch.device) -> Core | Whole:
    """The work of one attention; called in the process that measures."""
    from benchmarks.studies.measured import KINDS

    return KINDS[unit.of](name, unit.n, batch, unit.dtype, device)


def entrant(unit: Unit, name: str, batch: int) -> Entrant:
    n, first = FIRST
    return Entrant(name, partial(made, unit, name, batch), partial(made, unit._replace(n=min(n, unit.n)), name, first))


def rules_of(asked: Asked, unit: Unit) -> Rules:
    whole = unit.of == "model"
    return Rules(asked.device, asked.threads, asked.rounds, asked.seconds, PART[unit.of], whole, asked.warmup)


def measured(
    unit: Unit, names: Sequence[str], rules: Rules, tell: Callable[[str], None]
) -> dict[str, tuple[int, Taken]]:
    """The batch and what came of each attention: in one race, with batch=max each alone with as much as fits it."""
    if unit.batch is not None:
        taken = contest([entrant(unit, name, unit.batch) for name in names], rules, tell)
        return {name: (unit.batch, taken[name]) for name in names}
    found: dict[str, tuple[int, Taken]] = {}
    for name in names:
        tell(f"{name}: what fits")
        batch, told = fitting(partial(entrant, unit, name), rules)
        if not batch:
            part = Taken(told, {}, {}, None, "", "", {}, {rules.part: told})
            found[name] = 1, part
        while batch:
            found[name] = batch, contest([entrant(unit, name, batch)], rules, tell)[name]
            # In the race a work stays, and with it what its first call has left.
            batch = batch // 2 if "out of memory" in found[name][1].result else 0
    return found


# For the plan alone. Seconds of a step: an exact one's for each pair of tokens of a head, a variant's for each token of
# a head, anyone's for a call; and what an attention takes besides, for its processes and compiling.
ASSUMED = {"cpu": (7e-9, 6e-6, 5e-3, 1.0), "cuda": (2e-11, 2e-8, 2e-3, 0.5)}


def expected(unit: Unit, asked: Asked) -> float:
    """Seconds of a unit, by assumed rates."""
    pair, token, call, besides = ASSUMED[asked.device]
    layers, heads = (2, 2) if unit.of == "model" else (1, 2)
    names, size = asked.names[unit.of], layers * heads * (unit.batch or 32) * unit.n
    exact = sum(name in EXACT for name in names)
    # A forward pass is a third of a step, a training step another one.
    once = exact * size * unit.n * pair + (len(names) - exact) * size * token + len(names) * call
    once *= 2.3 if unit.of == "model" else 1.3
    rounds = min(asked.rounds * once, max(asked.seconds, 3 * once))
    return len(names) * besides + min(asked.warmup, 2) * once + once + rounds


def clock(seconds: float) -> str:
    """h:mm:ss"""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def origin(modules: Sequence[str]) -> str:
    """12 digits of everything that decides what is measured: code, kernels, and the configured attentions."""
    root = CONF.parent
    files = [*(root / name for name in ALSO), *sorted((CONF / "attn").glob("*.yaml"))]
    return hashlib.sha256(source(modules).encode() + b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def run(options: dict[str, str]) -> int:
    """Measure, print, write, with a value for each of KEYS; returns the exit code."""
    wish = asked(options)
    machine = stamp(wish.device, wish.threads, MODULES)._replace(source=origin(MODULES))
    folder = folder_of(machine) if options["folder"] == "auto" else Path(options["folder"])
    ledger = Ledger(folder / EFFICIENCY, Row, IDENTITY, machine)
    waiting = [unit for unit in wish.units if not is_done(unit, wish, ledger)]
    if options["dry"] == "true":
        print("\n".join(plan(wish, waiting, folder)))
        return 0
    threads = f"; threads {machine.threads}" if machine.threads else ""
    print(f"{machine.device}{threads}; torch {machine.torch}; {wish.rounds} rounds; median +- interquartile range")
    print("x: times softmax, torch's choice of a fused one; eager: softmax with its scores in memory", flush=True)
    measure(wish, waiting, ledger, machine)
    found = crossing.derive(folder)
    rows = list(ledger.rows.values())
    print_tables(wish, rows, found)
    print(f"written: {folder / EFFICIENCY}\nwritten: {folder / crossing.CROSSOVER}")
    return 0


def is_done(unit: Unit, wish: Asked, ledger: Ledger[Row]) -> bool:
    its = {"of": unit.of, "rule": unit.rule, "n": unit.n, "dtype": unit.dtype}
    return all(ledger.has(attn=name, **its) for name in wish.names[unit.of])


def plan(wish: Asked, waiting: Sequence[Unit], folder: Path) -> list[str]:
    """A line for each unit, and the time to expect; nothing of it is measured."""
    lines = [
        f"{unit}: {len(wish.names[unit.of])} attentions, about {clock(expected(unit, wish))}"
        + ("" if unit in waiting else ", measured before")
        for unit in wish.units
    ]
    total = clock(sum(expected(unit, wish) for unit in waiting))
    return [*lines, f"{len(waiting)} of {len(wish.units)} are left: about {total}, by assumed rates; into {folder}"]


def measure(wish: Asked, waiting: Sequence[Unit], ledger: Ledger[Row], machine: Stamp) -> None:
    """Unit by unit: measure, write, print."""
    if before := len(wish.units) - len(waiting):
        print(f"{before} of {len(wish.units)} are measured already")
    began, past = time.perf_counter(), 0.0
    left = sum(expected(unit, wish) for unit in waiting)
    for i, unit in enumerate(waiting):
        pace = (time.perf_counter() - began) / past if past else 1.0
        print(f"{unit}: {len(waiting) - i} left, about {clock(pace * left)}", flush=True)
        found = measured(unit, wish.names[unit.of], rules_of(wish, unit), show)
        show("")
        rows = rows_of(unit, found, machine)
        ledger.add(rows)
        print("\n".join(map(line, rows)), flush=True)
        left, past = left - expected(unit, wish), past + expected(unit, wish)


def show(what: str) -> None:
    """On a terminal, what is measured at the moment, on a line that is written over."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{what[:100]}", end="", file=sys.stderr, flush=True)


def print_tables(wish: Asked, rows: Sequence[dict[str, str]], found: Sequence[crossing.Crossing]) -> None:
    """The benchmark's table and the lengths of crossing, of what was asked for."""
    for of, dtype, batch in dict.fromkeys(unit[:3] for unit in wish.units):
        title = f"{of}, {dtype}, batch {batch}"
        print(f"\n{title}: steps a second and peak MiB, each times eager, times fused softmax")
        print(crossing.benchmark_table(rows, of, dtype, batch))
        if table := crossing.crossover_table(found, of, dtype, batch):
            print(f"\n{title}: from which length on it is ahead\n{table}")
    print(flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    kept = "every length that was printed is kept, and the same words go on behind it"
    return command("benchmarks.studies.efficiency", "What every attention costs, by length.", KEYS, run, words, kept)


if __name__ == "__main__":
    sys.exit(main())
