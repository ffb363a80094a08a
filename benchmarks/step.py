"""`python -m benchmarks.step`: a whole training step, with and without the compiled kernels, in turn in one process.

The real trainer, model and batches of the words' configuration. Measured in each round, on one batch of the median
length of the first 50: softmax without dropout of its probabilities, which torch has a fused kernel for; the attention
by its PyTorch reference and by the compiled kernel; and with that the copies between projections and heads by torch's
operators and by ours. Then the profile of each by part of the model.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

from benchmarks.parts import PARTS, Share, shares
from benchmarks.rows import choices, spread, whole_number, write_rows
from benchmarks.speed import high_water
from benchmarks.timed import PHASES, Bench, composed
from lra.command import command
from lra.words import WordError

if TYPE_CHECKING:
    from lra.config import Config

YARDSTICK = "softmax"
KERNELS = ("reference", "cpu")

KEYS = {
    "task": ("listops", "the task"),
    "attn": ("mra2", "the attention; softmax is always measured"),
    "protocol": ("mlpen", "the protocol"),
    "kernel": ("", "only these kernels, a list with commas: reference, cpu"),
    "words": ("", "more words of a run, with spaces between them"),
    "data_dir": ("runs/.data", "where prepared data are; documents of random tokens where the task's are not there"),
    "steps": ("5", "rounds; each takes a step of everything once"),
    "profiled": ("2", "steps of everything in the profile"),
    "threads": ("0", "threads; 0: torch's own choice"),
    "out": ("benchmarks/results/step.csv", "the CSV file; that of the profile is beside it, <name>_parts.csv"),
}


class Setting(NamedTuple):
    """What is measured. `copies` between projections and heads are those of "torch" or "ours"."""

    attn: str
    kernel: str
    copies: str


class Row(NamedTuple):
    """A line of the CSV file: one setting. Times in milliseconds, medians over the rounds; all threads' processor time.

    A ratio is the median over the rounds of this time to that of `against` in the same round. Memory in MiB: what a
    first step adds to the peak of a fresh process.
    """

    task: str
    protocol: str
    data: str
    attn: str
    kernel: str
    copies: str
    against: str
    step_ms: float
    step_iqr_ms: float
    processor_ms: float
    ratio: float
    data_ms: float
    forward_ms: float
    backward_ms: float
    optimizer_ms: float
    rest_ms: float
    tokens_per_s: int
    peak_mb: float
    batch: int
    length: int
    tokens: int
    threads: int
    device: str
    torch: str
    commit: str


class PartRow(NamedTuple):
    """A line of the profile: milliseconds a step of one part, its share, and those of its largest operators."""

    task: str
    protocol: str
    attn: str
    kernel: str
    copies: str
    part: str
    ms: float
    share: float
    operators: str
    threads: int
    device: str
    torch: str
    commit: str


def configured(options: dict[str, str], attn: str) -> Config:
    """The configuration of one attention; softmax without dropout of its probabilities."""
    words = [f"{key}={options[key]}" for key in ("task", "protocol", "data_dir")]
    words += [f"attn={attn}", "device=cpu", *options["words"].split()]
    return composed([*words, "attn.dropout=0.0"] if attn == YARDSTICK else words)


@contextmanager
def copies(word: str) -> Iterator[None]:
    """Within this context the copies between projections and heads are what `word` says."""
    if word == "ours":
        yield
    else:
        with mock.patch("attention_zoo.base.clear", lambda x, padded, **_: x.masked_fill(padded, 0.0)):
            yield


def peak_memory(options: dict[str, str], setting: Setting) -> float:
    """MiB that a first step needs, after one of a single document, in a fresh process."""
    import torch

    from attention_zoo.ops import kernels

    if options["threads"] != "0":
        torch.set_num_threads(int(options["threads"]))
    with tempfile.TemporaryDirectory() as folder, kernels.use(setting.kernel), copies(setting.copies):
        bench = Bench(configured(options, setting.attn), Path(folder) / "run")
        batch = bench.batch()
        bench.step(batch[:1])
        before = high_water()
        bench.step(batch)
        bench.close()
        return (high_water() - before) / 2**10


def settings_of(attn: str, allowed: Sequence[str]) -> list[Setting]:
    """What is measured, the yardstick first."""
    found = [Setting(YARDSTICK, "auto", "torch")]
    if attn != YARDSTICK:
        found += [Setting(attn, "reference", "torch")] if "reference" in allowed else []
        found += [Setting(attn, "cpu", word) for word in ("torch", "ours")] if "cpu" in allowed else []
    return found


def run(options: dict[str, str]) -> int:
    """Measure, print, write, with a value for each of KEYS; returns the exit code."""
    steps = whole_number("steps", options["steps"], least=1)
    profiled = whole_number("profiled", options["profiled"], least=1)
    threads = whole_number("threads", options["threads"], least=0)
    allowed = choices("kernel", options["kernel"], KERNELS)
    if Path(options["out"]).suffix != ".csv":
        raise WordError(f"out={options['out']} must end in .csv")

    import torch

    from attention_zoo.ops.kernels import KernelError
    from lra.machine import device_name, git_commit

    if threads:
        torch.set_num_threads(threads)
    device = torch.device("cpu")
    stamp: dict[str, Any] = {"threads": torch.get_num_threads(), "device": device_name(device)}
    stamp |= {"torch": torch.__version__, "commit": git_commit()}
    settings = settings_of(options["attn"], allowed)
    with tempfile.TemporaryDirectory() as folder:
        names = dict.fromkeys(setting.attn for setting in settings)
        benches = {name: Bench(configured(options, name), Path(folder) / name) for name in names}
        try:
            rows, parts = measure(options, settings, benches, steps, profiled, stamp)
        except KernelError as error:
            raise WordError(str(error)) from None
        finally:
            for bench in benches.values():
                bench.close()
    write_rows(options["out"], Row._fields, rows)
    write_rows(options["out"].removesuffix(".csv") + "_parts.csv", PartRow._fields, parts)
    return 0


def measure(
    options: dict[str, str],
    settings: Sequence[Setting],
    benches: dict[str, Bench],
    steps: int,
    profiled: int,
    stamp: dict[str, Any],
) -> tuple[list[Row], list[PartRow]]:
    from attention_zoo.ops import kernels

    first = benches[settings[0].attn]
    indices = first.batch()
    lengths = first.trainer.sampler.lengths[indices]
    size = {"batch": len(indices), "length": int(lengths.max())}
    print(f"{stamp['device']}; torch {stamp['torch']}; commit {stamp['commit'] or 'none'}")
    print(f"{options['task']} ({first.source}), {options['protocol']}; {size['batch']} documents of up to ", end="")
    print(f"{size['length']:,} tokens; {steps} rounds; median +- interquartile range")

    def stepping(setting: Setting) -> Callable[[], dict[str, float]]:
        def step() -> dict[str, float]:
            with kernels.use(setting.kernel), copies(setting.copies):
                return benches[setting.attn].step(indices)

        return step

    works = {setting: stepping(setting) for setting in settings}
    tokens = 0
    for setting, work in works.items():
        before = benches[setting.attn].trainer.state.tokens
        work()
        tokens = benches[setting.attn].trainer.state.tokens - before
    times: dict[Setting, list[dict[str, float]]] = {setting: [] for setting in settings}
    for _ in range(steps):
        for setting, work in works.items():
            times[setting].append(work())

    rows: list[Row] = []
    parts: list[PartRow] = []
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        for setting in settings:
            peak = pool.submit(peak_memory, options, setting).result()
            rows.append(row(options, setting, settings[0], times, tokens, peak, first.source, size, stamp))
            print(line(rows[-1]), flush=True)
    for setting, work in works.items():
        found = shares(benches[setting.attn].trainer.model, lambda work=work: work(), profiled)  # type: ignore[misc]
        parts += part_rows(options, setting, found, stamp)
        print(listing(setting, found), flush=True)
    return rows, parts


def row(
    options: dict[str, str],
    setting: Setting,
    against: Setting,
    times: dict[Setting, list[dict[str, float]]],
    tokens: int,
    peak: float,
    source: str,
    size: dict[str, int],
    stamp: dict[str, Any],
) -> Row:
    mine = times[setting]
    whole, between = spread([each["step"] for each in mine])
    middle = {key: round(statistics.median(each[key] for each in mine), 2) for key in (*PHASES, "processor")}
    ratio = statistics.median(own["step"] / its["step"] for own, its in zip(mine, times[against], strict=True))
    return Row(
        options["task"],
        options["protocol"],
        source,
        *setting,
        against=", ".join(against),
        step_ms=round(whole, 2),
        step_iqr_ms=round(between, 2),
        processor_ms=middle["processor"],
        ratio=round(ratio, 3),
        data_ms=middle["data"],
        forward_ms=middle["forward"],
        backward_ms=middle["backward"],
        optimizer_ms=middle["optimizer"],
        rest_ms=middle["rest"],
        tokens_per_s=round(1e3 * tokens / whole),
        peak_mb=round(peak, 1),
        batch=size["batch"],
        length=size["length"],
        tokens=tokens,
        **stamp,
    )


def part_rows(
    options: dict[str, str], setting: Setting, found: dict[str, Share], stamp: dict[str, Any]
) -> Iterator[PartRow]:
    whole = sum(share.ms for share in found.values())
    for part in PARTS:
        largest = sorted(found[part].operators.items(), key=lambda pair: -pair[1])[:4]
        named = "; ".join(f"{name} {ms:.1f}" for name, ms in largest)
        yield PartRow(
            options["task"], options["protocol"], *setting, part, round(found[part].ms, 2),
            round(found[part].ms / whole, 4), named, **stamp,
        )  # fmt: skip


def line(row: Row) -> str:
    """A row as it is printed."""
    name = f"{row.attn}, kernel {row.kernel}, copies {row.copies}"
    phases = ", ".join(f"{phase} {getattr(row, f'{phase}_ms'):.1f}" for phase in PHASES)
    speed = f"{row.tokens_per_s:,} tokens/s   peak {row.peak_mb:.0f} MiB"
    step = f"{row.step_ms:8.1f} +- {row.step_iqr_ms:6.1f} ms x{row.ratio:5.2f}"
    return f"{name:40} {step} (processor {row.processor_ms:.1f})   {speed}   {phases}"


def listing(setting: Setting, found: dict[str, Share]) -> str:
    """The profile of a setting as it is printed."""
    whole = sum(share.ms for share in found.values())
    lines = [f"\n{', '.join(setting)}: {whole:.1f} ms in the profile"]
    for part in sorted(PARTS, key=lambda part: -found[part].ms):
        largest = sorted(found[part].operators.items(), key=lambda pair: -pair[1])[:3]
        named = ", ".join(f"{name} {ms:.1f}" for name, ms in largest)
        lines.append(f"  {part:30} {found[part].ms:8.1f} ms {found[part].ms / whole:6.1%}  {named}")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("benchmarks.step", "A whole training step by part of the model, in turn.", KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
