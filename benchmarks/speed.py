"""`python -m benchmarks.speed`: time and memory of every attention core, in turn with softmax in one process."""

from __future__ import annotations

import csv
import io
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lra.command import command
from lra.files import write_text
from lra.words import WordError, choose

if TYPE_CHECKING:
    import torch

    from attention_zoo import Attention

BATCH, HEADS, HEAD_DIM = 4, 2, 32
YARDSTICK = "softmax"

KEYS = {
    "attn": ("", "only these attentions, a list with commas; softmax is always timed"),
    "lengths": ("512,1024,2048,4096", "tokens N, a list with commas"),
    "repeats": ("7", "rounds; each times every attention once"),
    "threads": ("0", "threads on a CPU; 0: torch's own choice"),
    "device": ("auto", "auto, cpu or cuda"),
    "dtype": ("float32", "float32, bfloat16 or float16"),
    "out": ("benchmarks/results/speed.csv", "the CSV file"),
}


class Setting(NamedTuple):
    """What one core is measured under."""

    attn: str
    length: int
    device: str
    dtype: str
    threads: int


class Row(NamedTuple):
    """A line of the CSV file. Times in milliseconds: medians and interquartile ranges; a step is forward + backward.

    A ratio is the median over the rounds of this core's time to softmax's in the same round. Memory in MiB: what a
    first step adds to the peak of a fresh process on a CPU, the peak of a step beyond the inputs on a GPU.
    """

    attn: str
    n: int
    forward_ms: float
    forward_iqr_ms: float
    forward_ratio: float
    step_ms: float
    step_iqr_ms: float
    step_ratio: float
    peak_mb: float
    kernel: str
    batch: int
    heads: int
    head_dim: int
    dtype: str
    device: str
    torch: str
    commit: str


class Bench:
    """One core and its inputs (B, H, N, D)."""

    def __init__(self, setting: Setting) -> None:
        import torch

        from attention_zoo import ZOO

        self.device = torch.device(setting.device)
        torch.manual_seed(0)
        self.core: Attention = ZOO[setting.attn](HEADS, HEAD_DIM, setting.length).to(self.device)
        shape = (BATCH, HEADS, setting.length, HEAD_DIM)
        dtype = getattr(torch, setting.dtype)
        self.qkv = [torch.randn(shape, device=self.device, dtype=dtype).requires_grad_() for _ in range(3)]
        self.upstream = torch.randn(shape, device=self.device, dtype=dtype)

    def forward(self) -> None:
        import torch

        with torch.no_grad():
            self.core(*self.qkv)

    def step(self) -> None:
        out: torch.Tensor = self.core(*self.qkv)
        out.backward(self.upstream)
        for x in self.qkv:
            x.grad = None

    def milliseconds(self, work: Callable[[], None]) -> float:
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return 1e3 * (time.perf_counter() - start)

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.synchronize(self.device)


def peak_memory(setting: Setting) -> float:
    """MiB that a step needs beyond the inputs; on a CPU only right in a fresh process, which has no memory to reuse."""
    import torch

    if setting.threads:
        torch.set_num_threads(setting.threads)
    Bench(setting._replace(length=1)).step()
    bench = Bench(setting)
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.max_memory_allocated()
        bench.step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = high_water()
    bench.step()
    return (high_water() - before) / 2**10


def high_water() -> int:
    """Peak resident memory of this process, KiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike getrusage, this knows nothing of the process that started this one.
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


def in_fresh_process(setting: Setting) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(peak_memory, setting).result()


def measure(settings: Sequence[Setting], repeats: int, stamp: dict[str, Any]) -> list[Row]:
    """Measure cores at one length, in turn; the first one is the yardstick."""
    memory = {s.attn: in_fresh_process(s) if s.device == "cpu" else peak_memory(s) for s in settings}
    benches = {s.attn: Bench(s) for s in settings}
    forward: dict[str, list[float]] = {name: [] for name in benches}
    step: dict[str, list[float]] = {name: [] for name in benches}
    for bench in benches.values():
        for _ in range(2):
            bench.step()
    for _ in range(repeats):
        for name, bench in benches.items():
            forward[name].append(bench.milliseconds(bench.forward))
            step[name].append(bench.milliseconds(bench.step))
    return [
        Row(
            s.attn,
            s.length,
            *_summary(forward[s.attn], forward[YARDSTICK]),
            *_summary(step[s.attn], step[YARDSTICK]),
            peak_mb=round(memory[s.attn], 1),
            kernel=benches[s.attn].core.kernel(benches[s.attn].device) or "",
            batch=BATCH,
            heads=HEADS,
            head_dim=HEAD_DIM,
            dtype=s.dtype,
            **stamp,
        )
        for s in settings
    ]


def _summary(times: list[float], yardstick: list[float]) -> tuple[float, float, float]:
    """Median, interquartile range, ratio to the yardstick."""
    low, median, high = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    ratio = statistics.median(own / its for own, its in zip(times, yardstick, strict=True))
    return round(median, 3), round(high - low, 3), round(ratio, 3)


def whole_number(key: str, text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise WordError(f"{key}={text} must be an integer of at least {least}")
    return int(text)


def run(options: dict[str, str]) -> int:
    """Measure, print, write, with a value for each of KEYS; returns the exit code."""
    lengths = [whole_number("lengths", text, least=1) for text in options["lengths"].split(",")]
    repeats = whole_number("repeats", options["repeats"], least=1)
    threads = whole_number("threads", options["threads"], least=0)
    choose("device", options["device"], ("auto", "cpu", "cuda"))
    choose("dtype", options["dtype"], ("float32", "bfloat16", "float16"))

    import torch

    from attention_zoo import ZOO
    from lra.machine import device_name, git_commit, pick_device

    names = [choose("attn", name, list(ZOO)) for name in options["attn"].split(",")] if options["attn"] else list(ZOO)
    names = [YARDSTICK, *(name for name in names if name != YARDSTICK)]
    device = pick_device(options["device"])
    if threads:
        torch.set_num_threads(threads)

    stamp = {"device": device_name(device), "torch": torch.__version__, "commit": git_commit()}
    print(f"{stamp['device']}; torch {stamp['torch']}; {options['dtype']}; commit {stamp['commit'] or 'none'}")
    print(f"(B, H, D) = ({BATCH}, {HEADS}, {HEAD_DIM}); {repeats} rounds; median +- interquartile range, x softmax")
    rows: list[Row] = []
    for length in lengths:
        settings = [Setting(name, length, device.type, options["dtype"], threads) for name in names]
        for row in measure(settings, repeats, stamp):
            rows.append(row)
            print(
                f"N {row.n:6}  {row.attn:17} forward {row.forward_ms:9.2f} +- {row.forward_iqr_ms:7.2f} ms"
                f" x{row.forward_ratio:6.2f}   step {row.step_ms:9.2f} +- {row.step_iqr_ms:7.2f} ms"
                f" x{row.step_ratio:6.2f}   peak {row.peak_mb:8.1f} MiB",
                flush=True,
            )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    write_text(Path(options["out"]), text.getvalue())
    print(f"written: {options['out']}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command(
        "benchmarks.speed", "Time and memory of every attention core, in turn with softmax.", KEYS, run, words
    )


if __name__ == "__main__":
    sys.exit(main())
