"""`python -m benchmarks.kernel`: whole MRA-2, forward and backward, in turn with torch's scaled_dot_product_attention.

In one process also with our own reference, and with a matrix product of 1024^3: the measure of what the machine gives.
"""

from __future__ import annotations

import csv
import io
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.speed import high_water, whole_number
from lra.command import command
from lra.files import write_text

if TYPE_CHECKING:
    from torch import Tensor

BATCH, HEADS, HEAD_DIM = 8, 2, 32
BLOCK_SIZE, BLOCKS_PER_ROW = 32, 8
SIZE = 1024

KEYS = {
    "lengths": ("1024,2048,4096,8192", "tokens N, a list with commas"),
    "repeats": ("7", "rounds; each times everything once"),
    "threads": ("2", "threads"),
    "out": ("benchmarks/results/kernel.csv", "the CSV file"),
}


class Row(NamedTuple):
    """A line of the CSV file. Times are medians in milliseconds, of forward + backward but for those of the block part.

    A ratio is the median over the rounds of another's time to ours in the same round. `block_share` is the rate of the
    block part (14 b^2 D floating-point operations for each pair) over that of the matrix product, the median over the
    rounds. Memory in MiB: what a first step adds to the peak of a fresh process, and what out and the gradients of q, k
    and v take of it.
    """

    n: int
    mra2_ms: float
    mra2_iqr_ms: float
    sdpa_ms: float
    reference_ms: float
    sdpa_ratio: float
    reference_ratio: float
    block_forward_ms: float
    block_backward_ms: float
    block_gflops: float
    matmul_gflops: float
    block_share: float
    peak_mb: float
    tensors_mb: float
    kernel: str
    threads: int
    batch: int
    heads: int
    head_dim: int
    device: str
    torch: str
    commit: str


class Bench:
    """The inputs at one length, and the work to be timed."""

    def __init__(self, length: int) -> None:
        import torch

        from attention_zoo.mra2 import MRA2

        torch.manual_seed(0)
        self.length = length
        self.core = MRA2(HEADS, HEAD_DIM, length, block_size=BLOCK_SIZE, blocks_per_row=BLOCKS_PER_ROW)
        drawn = [torch.randn(BATCH, HEADS, length, HEAD_DIM) for _ in range(4)]
        self.inputs: list[Tensor] = [x.requires_grad_() for x in drawn[:3]]
        self.upstream = drawn[3]

    def step(self, attention: Callable[..., Tensor]) -> None:
        attention(*self.inputs).backward(self.upstream)
        for x in self.inputs:
            x.grad = None

    def works(self) -> dict[str, Callable[[], object]]:
        """What is timed in each round, by name."""
        import torch
        from torch.nn.functional import scaled_dot_product_attention

        from attention_zoo.ops import kernels

        def reference() -> None:
            with kernels.use("reference"):
                self.step(self.core)

        q, k, v = (x.detach().flatten(0, 1) for x in self.inputs)
        upstream = self.upstream.flatten(0, 1)
        pairs = self.core.choose(self.inputs[0].detach(), self.inputs[1].detach(), None).flatten(0, 1)
        rest = BLOCK_SIZE, None, *torch.ops.zoo.coarse_attention(q, k, v, pairs, BLOCK_SIZE, None)[2:]
        out, lse = torch.ops.zoo.block_sparse_attention(q, k, v, pairs, *rest)
        zeros, square = torch.zeros_like(lse), torch.randn(SIZE, SIZE)
        backward = torch.ops.zoo.block_sparse_attention_backward
        return {
            "matmul": lambda: square @ square,
            "mra2": lambda: self.step(self.core),
            "sdpa": lambda: self.step(scaled_dot_product_attention),
            "forward": lambda: torch.ops.zoo.block_sparse_attention(q, k, v, pairs, *rest),
            "backward": lambda: backward(upstream, zeros, q, k, v, out, lse, pairs, *rest),
            "reference": reference,
        }


def peak_memory(length: int, threads: int) -> float:
    """MiB that a step needs beyond its inputs, in a fresh process, which has no memory to reuse."""
    import torch

    torch.set_num_threads(threads)
    small = Bench(64)
    small.step(small.core)
    bench = Bench(length)
    before = high_water()
    bench.step(bench.core)
    return (high_water() - before) / 2**10


def measure(length: int, repeats: int, threads: int, stamp: dict[str, str]) -> Row:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        peak = pool.submit(peak_memory, length, threads).result()
    works = Bench(length).works()
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            times[name].append(1e3 * (time.perf_counter() - start))

    def median(name: str) -> float:
        return statistics.median(times[name])

    def ratio(name: str) -> float:
        return statistics.median(x / own for x, own in zip(times[name], times["mra2"], strict=True))

    rows = math.ceil(length / BLOCK_SIZE)
    pairs = BATCH * HEADS * min(BLOCKS_PER_ROW, rows) * rows
    operations = 14 * pairs * BLOCK_SIZE**2 * HEAD_DIM / 1e6
    block = [a + b for a, b in zip(times["forward"], times["backward"], strict=True)]
    share = [(operations / a) / (2 * SIZE**3 / 1e6 / b) for a, b in zip(block, times["matmul"], strict=True)]
    low, _, high = statistics.quantiles(times["mra2"], n=4, method="inclusive") if repeats > 1 else times["mra2"] * 3
    return Row(
        n=length,
        mra2_ms=round(median("mra2"), 2),
        mra2_iqr_ms=round(high - low, 2),
        sdpa_ms=round(median("sdpa"), 2),
        reference_ms=round(median("reference"), 2),
        sdpa_ratio=round(ratio("sdpa"), 2),
        reference_ratio=round(ratio("reference"), 2),
        block_forward_ms=round(median("forward"), 2),
        block_backward_ms=round(median("backward"), 2),
        block_gflops=round(operations / statistics.median(block), 1),
        matmul_gflops=round(2 * SIZE**3 / 1e6 / median("matmul"), 1),
        block_share=round(statistics.median(share), 3),
        peak_mb=round(peak, 1),
        tensors_mb=round(4 * BATCH * HEADS * length * HEAD_DIM * 4 / 2**20, 1),
        threads=threads,
        batch=BATCH,
        heads=HEADS,
        head_dim=HEAD_DIM,
        **stamp,
    )


def line(row: Row) -> str:
    """A row as it is printed."""
    return (
        f"N {row.n:6}  {row.mra2_ms:8.2f} +- {row.mra2_iqr_ms:6.2f} ms  softmax x{row.sdpa_ratio:6.2f}  reference"
        f" x{row.reference_ratio:6.2f}  block part {row.block_gflops:6.1f} GFLOP/s, {row.block_share:4.0%} of a matrix"
        f" product  peak {row.peak_mb:7.1f} MiB of which out and gradients {row.tensors_mb:6.1f}"
    )


def run(options: dict[str, str]) -> int:
    """Measure, print, write, with a value for each of KEYS; returns the exit code."""
    lengths = [whole_number("lengths", text, least=1) for text in options["lengths"].split(",")]
    repeats = whole_number("repeats", options["repeats"], least=1)
    threads = whole_number("threads", options["threads"], least=1)

    import torch

    from attention_zoo.ops import kernels
    from lra.machine import device_name, git_commit

    torch.set_num_threads(threads)
    device = torch.device("cpu")
    stamp = {"device": device_name(device), "torch": torch.__version__, "commit": git_commit() or ""}
    stamp["kernel"] = kernels.name(device)
    print(f"{stamp['device']}, {threads} threads; torch {stamp['torch']}; kernel {stamp['kernel']}")
    print(f"(B, H, D) = ({BATCH}, {HEADS}, {HEAD_DIM}), forward and backward, medians of {repeats} rounds")
    rows = []
    for length in lengths:
        rows.append(measure(length, repeats, threads, stamp))
        print(line(rows[-1]), flush=True)
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
        "benchmarks.kernel", "MRA-2 on a CPU in turn with softmax attention and its reference.", KEYS, run, words
    )


if __name__ == "__main__":
    sys.exit(main())
