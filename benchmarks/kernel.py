"""`python -m benchmarks.kernel`: MRA-2 and its phases in turn with softmax, FlexAttention and our own reference.

On a CPU with torch's scaled_dot_product_attention, on a GPU with each of its backends, there also as a recorded graph.
Rows are written as they come: a second start goes on where the first one ended. `dry=true` prints what would be
measured. Needs torch and the standard library alone.
"""

from __future__ import annotations

import csv
import hashlib
import itertools
import os
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import counted
from benchmarks.contenders import BLOCK_SIZE, BLOCKS_PER_ROW, EAGER_ONLY, FAMILIES, Setting, names
from benchmarks.meter import Meter, meter
from benchmarks.rows import choices, save_rows, spread, whole_number
from benchmarks.taken import PARTS, Key, Taken, Wish, modes_of, reason, take
from lra.command import command
from lra.words import choose

# What `auto` stands for on each device.
AUTO = {
    "cpu": {"lengths": "1024,2048,4096,8192", "heads": "16", "head_dims": "32", "dtypes": "float32", "rounds": "21"},
    "cuda": {
        "lengths": "1024,2048,4096,8192,16384", "heads": "64,256", "head_dims": "32,64", "dtypes": "bfloat16",
        "rounds": "20",
    },
}  # fmt: skip
OUT = {"cpu": "benchmarks/results/kernel.csv", "cuda": "benchmarks/results/kernel_cuda.csv"}
SIZES = ("lengths", "heads", "head_dims")
KEYS = {
    "device": ("auto", "auto, cpu or cuda"),
    "lengths": ("auto", "tokens N, a list with commas; 1024 to 8192 on a CPU, to 16384 on a GPU"),
    "heads": ("auto", "heads of all examples, a list; 16 on a CPU, 64,256 on a GPU"),
    "head_dims": ("auto", "dimensions D of a head, a list; 32 on a CPU, 32,64 on a GPU"),
    "dtypes": ("auto", "float32, bfloat16, float16, a list; float32 on a CPU, bfloat16 on a GPU"),
    "against": ("", "what is timed beside: a list of reference, sdpa, flex"),
    "rounds": ("auto", "each times everything once; 21 on a CPU, 20 on a GPU"),
    "seconds": ("30", "for the rounds of one size, which end early after three of them"),
    "until": ("540", "seconds after which no other size is begun on a GPU: start again to go on"),
    "flush": ("true", "true or false: whether a GPU's second-level cache is overwritten before each call"),
    "threads": ("2", "threads on a CPU"),
    "dry": ("false", "true: print what would be measured, with the memory and the time to expect"),
    "out": ("auto", "the CSV file; benchmarks/results/kernel.csv on a CPU, kernel_cuda.csv beside it on a GPU"),
}

# What the kernel is asked to be, at the sizes for which it is asked: so many times ahead of softmax for a step on a CPU
# (float32, 16 heads of 32 dimensions, 2 threads), of softmax's best backend for both parts on a GPU (bfloat16).
AHEAD = {"cpu": {1024: 3.0, 2048: 6.0, 4096: 12.0, 8192: 24.0}, "cuda": {1024: 1.2, 4096: 4.0, 16384: 16.0}}
AHEAD_OF_REFERENCE, BLOCK_SHARE, MEMORY_SHARE = 5.0, 0.6, 1.25

# For the plan alone: operations a second of products, bytes a second of copies.
ASSUMED = {"cpu": (1e11, 1e10), "cuda": (4e14, 2e12)}
COMPILING = {"cpu": 15.0, "cuda": 60.0}


class Row(NamedTuple):
    """A line of the CSV file: one work at one size.

    work    mra2, reference, sdpa with the backend's name, flex: whole attentions from q, k, v to the output, but that
            flex gets its mask made. choice, coarse, block: phases of mra2. copy, matmul
    part    forward, backward, or step: both
    mode    eager: called from Python; graph: a recorded CUDA graph
    result  ok, out of memory, or why it does not run; then the numbers are empty

    Times are medians in milliseconds with their interquartile range. `ratio` is the median over the rounds of this time
    to that of mra2, same part and mode, in the same round. Rates in 10^9 operations and bytes a second, counted by
    benchmarks/counted.py; shares are of the rates of matmul and copy in the same rounds. `peak_mb` is what the work
    needs beyond its inputs; `memory_share` that with q, k, v over q, k, v, the output and, of a step, three gradients.
    `launches` are the kernels and copies of one call. `error` is the largest difference from the reference in float32:
    of the output forward, of a gradient for a step.
    """

    work: str
    part: str
    mode: str
    n: int
    batch: int
    heads: int
    head_dim: int
    dtype: str
    block_size: int
    blocks_per_row: int
    result: str
    ms: float | str = ""
    iqr_ms: float | str = ""
    rounds: int | str = ""
    ratio: float | str = ""
    gflops: float | str = ""
    matmul_share: float | str = ""
    gbytes: float | str = ""
    copy_share: float | str = ""
    peak_mb: float | str = ""
    memory_share: float | str = ""
    launches: int | str = ""
    error: float | str = ""
    cache: str = ""
    kernel: str = ""
    isa: str = ""
    threads: int | str = ""
    device: str = ""
    driver: str = ""
    clocks: str = ""
    torch: str = ""
    source: str = ""
    commit: str = ""
    date: str = ""


# What makes a row a measurement of its own, and what must be the same of all that stand in one file.
IDENTITY = ("work", "part", "mode", "n", "batch", "heads", "head_dim", "dtype", "block_size", "blocks_per_row")
STAMP = ("cache", "kernel", "isa", "threads", "device", "torch", "source")


class Asked(NamedTuple):
    """What to measure and how."""

    device: str
    settings: list[Setting]
    wish: Wish
    until: int
    flush: bool
    out: str


def asked(options: dict[str, str]) -> Asked:
    """The words, checked; WordError where one is wrong."""
    device = choose("device", options["device"], ("auto", "cpu", "cuda"))
    for key in ("flush", "dry"):
        choose(key, options[key], ("true", "false"))
    if device == "auto" or (device == "cuda" and options["dry"] == "false"):
        from lra.machine import pick_device

        device = pick_device(device).type

    def words(key: str) -> list[str]:
        return (AUTO[device][key] if options[key] == "auto" else options[key]).split(",")

    dtypes = [choose("dtypes", name, ("float32", "bfloat16", "float16")) for name in words("dtypes")]
    lengths, heads, dims = ([whole_number(key, text, 1) for text in words(key)] for key in SIZES)
    settings = [Setting(n, g, d, dtype) for dtype, d, g, n in itertools.product(dtypes, dims, heads, lengths)]
    seconds, until, threads = (whole_number(key, options[key], 1) for key in ("seconds", "until", "threads"))
    families = choices("against", options["against"], FAMILIES)
    return Asked(
        device,
        settings,
        Wish(tuple(names(device, families)), whole_number("rounds", words("rounds")[0], 1), seconds, threads),
        until,
        options["flush"] == "true",
        OUT[device] if options["out"] == "auto" else options["out"],
    )


def phases(taken: Taken, mode: str) -> dict[tuple[str, str], list[float]]:
    """The times of MRA-2's phases, and of the block part forward and backward together."""
    found = {key: taken.times[*key, mode] for key in counted.PHASES if (*key, mode) in taken.times}
    if ("block", "forward") in found and ("block", "backward") in found:
        found["block", "step"] = list(map(sum, zip(found["block", "forward"], found["block", "backward"], strict=True)))
    return found


def short(x: float) -> float:
    """Four digits are more than is known of a time."""
    return float(f"{x:.4g}")


def rates(cost: counted.Cost, times: Sequence[float], taken: Taken, clock: Meter) -> dict[str, float]:
    """The rates of a phase, and its share of those of a product of matrices and of a copy in the same rounds."""
    median = statistics.median(times)
    found = {"gflops": short(cost.operations / median / 1e6), "gbytes": short(cost.bytes / median / 1e6)}
    for key, name, own, whole in (
        ("matmul_share", "matmul", cost.operations, 2 * clock.square**3),
        ("copy_share", "copy", cost.bytes, 2 * clock.copied),
    ):
        if its := taken.times.get((name, "", "eager")):
            shares = [own / time * other / whole for time, other in zip(times, its, strict=True)]
            found[key] = short(statistics.median(shares))
    return found


def size(setting: Setting) -> dict[str, Any]:
    """The columns that say what a row is the measure of, beside work, part and mode."""
    return {
        "n": setting.length,
        "batch": setting.batch,
        "heads": setting.heads_of_an_example,
        "head_dim": setting.head_dim,
        "dtype": setting.dtype,
        "block_size": BLOCK_SIZE,
        "blocks_per_row": BLOCKS_PER_ROW,
    }


def rows_of(setting: Setting, clock: Meter, taken: Taken, stamp: dict[str, Any]) -> list[Row]:
    """The rows of one size."""

    def untimed(key: Key, told: str, **facts: Any) -> Row:
        work, part, mode = key
        return Row(work=work, part=part, mode=mode, **size(setting), result=told, **facts, **stamp)

    def timed(key: Key, times: Sequence[float], facts: dict[str, Any]) -> Row:
        median, between = spread(times)
        return untimed(key, "ok", ms=short(median), iqr_ms=short(between), rounds=len(times), **facts)

    rows = []
    for (name, part, mode), times in taken.times.items():
        if (name, part) in counted.PHASES:
            continue
        facts = dict(taken.facts.get((name, part), {})) if mode == "eager" else {}
        if part and (own := taken.times.get(("mra2", part, mode))):
            facts["ratio"] = short(statistics.median(a / b for a, b in zip(times, own, strict=True)))
        if name == "matmul":
            facts["gflops"] = short(2 * clock.square**3 / statistics.median(times) / 1e6)
        if name == "copy":
            facts["gbytes"] = short(2 * clock.copied / statistics.median(times) / 1e6)
        rows.append(timed((name, part, mode), times, facts))
    for mode in clock.modes:
        for (name, part), times in phases(taken, mode).items():
            cost = counted.block_step(setting.shape) if part == "step" else counted.PHASES[name, part](setting.shape)
            rows.append(timed((name, part, mode), times, rates(cost, times, taken, clock)))
    return rows + [untimed(key, told) for key, told in taken.reasons.items()]


def line(row: Row) -> str:
    """A row as it is printed."""
    name = f"  {row.work:14} {row.part:8} {row.mode:5}"
    if row.result != "ok":
        return f"{name}  {row.result}"
    text = f"{name} {row.ms:10.3f} +- {row.iqr_ms:8.3f} ms"
    if row.ratio != "":
        text += f"  x{row.ratio:7.2f}"
    if row.gflops != "":
        share = f", {row.matmul_share:6.1%} of matmul" if row.matmul_share != "" else ""
        text += f"  {row.gflops:9,.1f} GFLOP/s{share}"
    if row.gbytes != "":
        share = f", {row.copy_share:6.1%} of copy" if row.copy_share != "" else ""
        text += f"  {row.gbytes:8,.1f} GB/s{share}"
    if row.peak_mb != "":
        text += f"  peak {row.peak_mb:,.1f} MiB, x {row.memory_share} of the tensors"
    if row.launches != "":
        text += f"  {row.launches} launches"
    return text + (f"  error {row.error}" if row.error != "" else "")


def bars(rows: Sequence[Row], device: str) -> list[str]:
    """What the kernel is asked to be, beside what it is, for the rows of one size."""
    found = {(row.work, row.part, row.mode): row for row in rows if row.result == "ok"}
    first = rows[0]
    lines = []

    def bar(what: str, least: float, value: float | str, most: bool = False) -> None:
        if value != "":
            met = float(value) <= least if most else float(value) >= least
            side = "at most" if most else "at least"
            lines.append(f"  bar: {what}, {side} {least:g}: {value:g}, {'met' if met else 'missed'}")

    ahead = AHEAD[device].get(first.n)
    heads = first.batch * first.heads
    if device == "cpu" and (heads, first.head_dim, first.dtype, first.threads) == (16, 32, "float32", 2):
        for name, least in (("sdpa", ahead), ("reference", AHEAD_OF_REFERENCE)):
            if least is not None and (name, "step", "eager") in found:
                bar(f"a step ahead of {name}, times", least, found[name, "step", "eager"].ratio)
        if ("block", "step", "eager") in found:
            bar("block part, share of matmul", BLOCK_SHARE, found["block", "step", "eager"].matmul_share)
        if ("mra2", "step", "eager") in found:
            memory = found["mra2", "step", "eager"].memory_share
            bar("memory, times q, k, v, output and gradients", MEMORY_SHARE, memory, most=True)
    if device == "cuda" and first.dtype == "bfloat16" and ahead is not None:
        for part, mode in itertools.product(PARTS, ("eager", "graph")):
            backends = [row for key, row in found.items() if key[0].startswith("sdpa ") and key[1:] == (part, mode)]
            best = min(backends, key=lambda row: float(row.ms), default=None)
            if best is not None:
                bar(f"{part}, {mode}, ahead of {best.work}, the best, times", ahead, best.ratio)
    return lines


def expected_seconds(setting: Setting, name: str, part: str, device: str) -> float:
    """For the plan: what a call takes at the assumed rates."""
    operations, bytes_ = ASSUMED[device]
    shape = setting.shape
    square = setting.heads * setting.length**2 * shape.number
    if name.startswith("sdpa"):
        passes = (4 if part == "forward" else 12) if name == "sdpa math" else 0
        return max(2 * counted.softmax(shape, part) / operations, passes * square / bytes_)
    if name == "reference":
        return (10 if part == "forward" else 35) * 4 * shape.pairs * BLOCK_SIZE**2 / bytes_
    cost = counted.mra2(shape, part)
    return max(3 * cost.operations / operations, 2 * cost.bytes / bytes_)


def plan(wish: Asked) -> list[str]:
    """A line for each size: operations, bytes, memory and time to expect. Nothing of it is measured."""
    lines, total = [], 0.0
    for setting in wish.settings:
        shape = setting.shape
        seconds = 3.0
        for name, part in itertools.product(wish.wish.names, PARTS):
            modes = 1 if wish.device == "cpu" or name in EAGER_ONLY else 2
            seconds += (4 + modes * wish.wish.rounds) * expected_seconds(setting, name, part, wish.device)
            seconds += COMPILING[wish.device] / 2 if name == "flex" else 0
        total += seconds
        step, memory = counted.mra2(shape, "step"), shape.tensor / 2**20
        math = setting.heads * setting.length**2 * shape.number * 3 / 2**20
        lines.append(
            f"n {setting.length:6}  B*H {setting.heads:4}  D {setting.head_dim:3}  {setting.dtype:8}"
            f"  {step.operations / 1e9:9,.1f} GFLOP ({counted.softmax(shape, 'step') / 1e9:11,.1f} of softmax)"
            f"  {step.bytes / 2**20:8,.0f} MiB moved, {3 * shape.tile_bytes / 2**20:8,.0f} MiB of tiles from a cache"
            f"  q to gradients {7 * memory:8,.0f} MiB, softmax unfused {math:9,.0f} MiB  about {seconds:5,.0f} s"
        )
    lines.append(f"{len(wish.settings)} sizes x {', '.join(wish.wish.names)}: about {total:,.0f} s, by assumed rates")
    return lines


def source() -> str:
    """12 digits of the files that decide what is measured."""
    root = Path(__file__).resolve().parent.parent
    kinds = (".py", ".cpp", ".hpp", ".cu", ".cuh")
    files = [
        file for folder in ("csrc", "attention_zoo") for file in (root / folder).rglob("*") if file.suffix in kinds
    ]
    files += [root / "benchmarks" / f"{name}.py" for name in ("kernel", "contenders", "counted", "meter", "taken")]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def isa(kernel: str) -> str:
    """The instructions of the CPU kernel: $ZOO_ISA, or what the library takes by itself."""
    if kernel != "cpu":
        return ""
    import ctypes

    import torch

    from csrc.zoo import zoo_library

    library = ctypes.CDLL(str(zoo_library(Path(torch.__file__).parent, torch.__version__)))
    return os.environ.get("ZOO_ISA") or ("portable", "avx2", "avx512")[library.zoo_best()]


def before(file: Path, stamp: dict[str, Any]) -> list[Row]:
    """The rows that an earlier start has left; those of another machine, kernel or source are dropped, with a line."""
    if not file.exists():
        return []
    with file.open(newline="", encoding="utf-8") as lines:
        found = [read for read in csv.DictReader(lines) if tuple(read) == Row._fields]
    same = [read for read in found if all(read[key] == str(stamp[key]) for key in STAMP)]
    if len(same) < len(found):
        print(f"{len(found) - len(same)} rows of another source, kernel or machine in {file} are replaced")
    return [Row(**{**read, "n": int(read["n"])}) for read in same]  # type: ignore[arg-type]


def identity(row: Row) -> tuple[str, ...]:
    return tuple(str(getattr(row, key)) for key in IDENTITY)


def is_done(setting: Setting, rows: Sequence[Row], wish: Wish, clock: Meter) -> bool:
    """Whether everything that is asked of a size is among the rows."""
    done = {identity(row) for row in rows}
    its = tuple(map(str, size(setting).values()))
    wanted = ((name, part, mode, *its) for name in wish.names for part in PARTS for mode in modes_of(name, clock))
    return done.issuperset(wanted)


def run(options: dict[str, str]) -> int:
    """Measure, print, write, with a value for each of KEYS; returns the exit code."""
    wish = asked(options)
    if options["dry"] == "true":
        print("\n".join(plan(wish)))
        return 0

    import torch

    torch.set_num_threads(wish.wish.threads)
    return go(wish, meter(torch.device(wish.device), wish.flush))


def go(wish: Asked, clock: Meter) -> int:
    """Measure what is asked and not yet in the file; returns the exit code."""
    import torch

    from attention_zoo.mra2 import MRA2
    from lra.machine import device_name, git_commit

    kernel = MRA2(1, wish.settings[0].head_dim, BLOCK_SIZE, block_size=BLOCK_SIZE).kernel(clock.device)
    stamp = {
        "cache": clock.cache, "kernel": kernel, "isa": isa(kernel), "threads": wish.wish.threads,
        "device": device_name(clock.device), "torch": torch.__version__, "source": source(), "commit": git_commit(),
    }  # fmt: skip
    print(f"{stamp['device']}; torch {stamp['torch']}; kernel {kernel} {stamp['isa']}; cache {clock.cache}")
    print(f"blocks of {BLOCK_SIZE}, {BLOCKS_PER_ROW} per row; {wish.wish.rounds} rounds; median +- interquartile range")
    rows, begun, failed = before(Path(wish.out), stamp), time.perf_counter(), False
    for i, setting in enumerate(wish.settings):
        print(f"n = {setting.length}, B*H = {setting.heads}, D = {setting.head_dim}, {setting.dtype}", flush=True)
        if is_done(setting, rows, wish.wish, clock):
            print("  measured before")
            continue
        if clock.ends and time.perf_counter() - begun > wish.until:
            print(f"  {len(wish.settings) - i} sizes are left after {wish.until} s: start again to go on")
            break
        try:
            taken = take(setting, clock, wish.wish)
        except RuntimeError as error:
            print(
                f"error: the device is of no more use: {reason(error).removeprefix('does not run: ')}", file=sys.stderr
            )
            return 1
        date = datetime.now(UTC).isoformat(timespec="seconds")
        new = rows_of(setting, clock, taken, {**stamp, **clock.facts(), "date": date})
        print("\n".join([*map(line, new), *bars(new, wish.device)]), flush=True)
        failed |= any(row.work == "mra2" and row.result.startswith("does not run") for row in new)
        replaced = set(map(identity, new))
        rows = [row for row in rows if identity(row) not in replaced] + new
        save_rows(wish.out, Row._fields, rows)
        clock.release()
    print(f"written: {wish.out}")
    return 1 if failed else 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command(
        "benchmarks.kernel", "MRA-2 in turn with softmax, FlexAttention and its reference.", KEYS, run, words
    )


if __name__ == "__main__":
    sys.exit(main())
