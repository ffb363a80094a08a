"""`python -m benchmarks.speed`: time and memory of every attention core, in turn with softmax in one process.

With peers=all also of the public packages that implement one of them: then whole layers, projections included, ours and
theirs in turn.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.rows import choices, spread, whole_number, write_rows
from lra.command import command
from lra.words import WordError, choose

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCH, HEADS, HEAD_DIM = 4, 2, 32
YARDSTICK = "softmax"
CORE, LAYER = "zoo core", "zoo layer"

KEYS = {
    "attn": ("", "only these attentions, a list with commas; softmax is always timed"),
    "peers": ("none", "all: also the packages that `make peers` installs, as layers; only: nothing else"),
    "lengths": ("512,1024,2048,4096", "tokens N, a list with commas"),
    "repeats": ("7", "rounds; each times every attention once"),
    "threads": ("0", "threads on a CPU; 0: torch's own choice"),
    "device": ("auto", "auto, cpu or cuda"),
    "dtype": ("float32", "float32, bfloat16 or float16"),
    "out": ("benchmarks/results/speed.csv", "the CSV file"),
}


class Setting(NamedTuple):
    """What is measured, and under what. `implementation` is CORE, LAYER or the name of a package."""

    attn: str
    implementation: str
    length: int
    device: str
    dtype: str
    threads: int


class Row(NamedTuple):
    """A line of the CSV file. Times in milliseconds: medians and interquartile ranges; a step is forward + backward.

    A ratio is the median over the rounds of this time to that of `against` in the same round. `step_growth` is the
    median step to that at half the length, where both were measured. Memory in MiB: what a first step adds to the peak
    of a fresh process on a CPU, the peak of a step beyond the inputs on a GPU.
    """

    attn: str
    implementation: str
    against: str
    n: int
    forward_ms: float
    forward_iqr_ms: float
    forward_ratio: float
    step_ms: float
    step_iqr_ms: float
    step_ratio: float
    step_growth: float | str
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
    """One core and its inputs (B, H, N, D), or one layer and its input (B, N, H D)."""

    def __init__(self, setting: Setting) -> None:
        import torch

        from attention_zoo import ZOO
        from lra.model import MultiHead

        torch.manual_seed(0)
        self.device = torch.device(setting.device)
        self.module: nn.Module
        self.kernel = ""
        if setting.implementation in (CORE, LAYER):
            core = ZOO[setting.attn](HEADS, HEAD_DIM, setting.length)
            self.module = core if setting.implementation == CORE else MultiHead(core, HEADS * HEAD_DIM)
            self.kernel = core.kernel(self.device) or ""
        else:
            from benchmarks.peers import peer

            self.module = peer(setting.attn, setting.implementation).layer(setting.length, HEADS, HEAD_DIM)
        self.module.to(self.device)
        core_like = setting.implementation == CORE
        shape = (BATCH, HEADS, setting.length, HEAD_DIM) if core_like else (BATCH, setting.length, HEADS * HEAD_DIM)
        dtype = getattr(torch, setting.dtype)
        if not core_like:
            self.module.to(dtype)
        drawn = [torch.randn(shape, device=self.device, dtype=dtype) for _ in range(4)]
        self.upstream = drawn[3]
        self.inputs: list[Tensor] = [x.requires_grad_() for x in (drawn[:3] if core_like else drawn[:1])]

    def forward(self) -> None:
        import torch

        with torch.no_grad():
            self.module(*self.inputs)

    def step(self) -> None:
        out: Tensor = self.module(*self.inputs)
        out.backward(self.upstream)
        for x in (*self.inputs, *self.module.parameters()):
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
    Bench(setting._replace(attn=YARDSTICK, implementation=LAYER, length=64)).step()
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
    """Measure at one length, in turn; the first one is the yardstick."""
    memory = {s: in_fresh_process(s) if s.device == "cpu" else peak_memory(s) for s in settings}
    benches = {s: Bench(s) for s in settings}
    forward: dict[Setting, list[float]] = {s: [] for s in settings}
    step: dict[Setting, list[float]] = {s: [] for s in settings}
    for bench in benches.values():
        for _ in range(2):
            bench.step()
    for _ in range(repeats):
        for s, bench in benches.items():
            forward[s].append(bench.milliseconds(bench.forward))
            step[s].append(bench.milliseconds(bench.step))
    first = settings[0]
    return [
        Row(
            s.attn,
            s.implementation,
            f"{first.attn}, {first.implementation}",
            s.length,
            *_summary(forward[s], forward[first]),
            *_summary(step[s], step[first]),
            step_growth="",
            peak_mb=round(memory[s], 1),
            kernel=benches[s].kernel,
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
    median, between = spread(times)
    ratio = statistics.median(own / its for own, its in zip(times, yardstick, strict=True))
    return round(median, 3), round(between, 3), round(ratio, 3)


def run(options: dict[str, str]) -> int:
    """Measure, print, write, with a value for each of KEYS; returns the exit code."""
    lengths = [whole_number("lengths", text, least=1) for text in options["lengths"].split(",")]
    repeats = whole_number("repeats", options["repeats"], least=1)
    threads = whole_number("threads", options["threads"], least=0)
    choose("device", options["device"], ("auto", "cpu", "cuda"))
    choose("dtype", options["dtype"], ("float32", "bfloat16", "float16"))
    choose("peers", options["peers"], ("none", "all", "only"))

    import torch

    from attention_zoo import ZOO
    from lra.machine import device_name, git_commit, pick_device

    names = [YARDSTICK, *(name for name in choices("attn", options["attn"], list(ZOO)) if name != YARDSTICK)]
    groups = [] if options["peers"] == "only" else [[(name, CORE) for name in names]]
    groups += [] if options["peers"] == "none" else peers_of(names)
    device = pick_device(options["device"])
    if threads:
        torch.set_num_threads(threads)

    stamp = {"device": device_name(device), "torch": torch.__version__, "commit": git_commit()}
    print(f"{stamp['device']}; torch {stamp['torch']}; {options['dtype']}; commit {stamp['commit'] or 'none'}")
    print(f"(B, H, D) = ({BATCH}, {HEADS}, {HEAD_DIM}); {repeats} rounds; median +- interquartile range")
    rows: list[Row] = []
    for group in groups:
        print(f"x: times the {', '.join(group[0])}")
        for length in lengths:
            settings = [Setting(*pair, length, device.type, options["dtype"], threads) for pair in group]
            for row in measure(settings, repeats, stamp):
                rows.append(row._replace(step_growth=growth(row, rows)))
                print(line(rows[-1]), flush=True)
    write_rows(options["out"], Row._fields, rows)
    return 0


def peers_of(names: Sequence[str]) -> list[list[tuple[str, str]]]:
    """For each variant with a public implementation: our layer, then theirs. WordError where one is not installed."""
    from benchmarks.peers import PEERS

    groups = []
    for name in names:
        theirs = [peer for peer in PEERS if peer.attn == name]
        for peer in theirs:
            if not peer.installed:
                raise WordError(f"this needs {peer.package}, which is not installed: make peers")
        if theirs:
            groups.append([(name, LAYER), *((name, peer.package) for peer in theirs)])
    return groups


def growth(row: Row, rows: Sequence[Row]) -> float | str:
    """The step to that at half the length; empty where that was not measured."""
    for other in rows:
        if (other.attn, other.implementation, 2 * other.n) == (row.attn, row.implementation, row.n):
            return round(row.step_ms / other.step_ms, 3)
    return ""


def line(row: Row) -> str:
    """A row as it is printed."""
    name = row.attn if row.implementation == CORE else f"{row.attn}, {row.implementation}"
    forward = f"forward {row.forward_ms:9.2f} +- {row.forward_iqr_ms:7.2f} ms x{row.forward_ratio:6.2f}"
    step = f"step {row.step_ms:9.2f} +- {row.step_iqr_ms:7.2f} ms x{row.step_ratio:6.2f}"
    grown = f"   x{row.step_growth:5.2f} its half" if row.step_growth else ""
    return f"N {row.n:6}  {name:32} {forward}   {step}   peak {row.peak_mb:8.1f} MiB{grown}"


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command(
        "benchmarks.speed", "Time and memory of every attention core, in turn with softmax.", KEYS, run, words
    )


if __name__ == "__main__":
    sys.exit(main())
