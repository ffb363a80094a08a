"""`python -m benchmarks.convergence`: how fast the error of each variant falls when its budget grows.

Two questions. Where a budget chooses pairs, segments or windows: how far the output is from that of softmax attention,
until the budget is full and both are equal. Where something is drawn at random: how far the output is from what it
estimates, which should fall with the square root of the draws.
"""

from __future__ import annotations

import io
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.rows import whole_number, write_rows
from lra.command import command
from lra.files import write_text
from lra.style import DASHES, PALETTE, STYLE
from lra.words import WordError

if TYPE_CHECKING:
    from torch import Tensor

HEADS, HEAD_DIM = 2, 32
KEYS = {
    "length": ("512", "tokens N, a power of two of at least 64"),
    "draws": ("8", "seeds of inputs and of what is drawn; the figure shows their mean"),
    "out": ("benchmarks/results/convergence.csv", "the CSV file"),
    "figure": ("docs/convergence.svg", "the figure"),
}


class Row(NamedTuple):
    """A line of the CSV file: mean and standard deviation over the draws of the relative Frobenius error."""

    attn: str
    kind: str
    parameter: str
    value: int
    share: float
    error: float
    deviation: float
    n: int
    draws: int


class Sweep(NamedTuple):
    """A variant and its budget. `parameters` makes keywords of one value; `target` computes what is estimated."""

    attn: str
    parameter: str
    values: Sequence[int]
    parameters: Callable[[int], dict[str, Any]]
    target: Callable[[Tensor, Tensor, Tensor, int], Tensor]


def softmax(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def among_unit_keys(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    """Reformer's goal: a query looks at all other tokens, whose keys are their queries at unit length."""
    import torch
    import torch.nn.functional as F

    logits = q @ F.normalize(q, dim=-1).mT
    return logits.masked_fill(torch.eye(length, dtype=torch.bool), -math.inf).softmax(-1) @ v


def collisions(q: Tensor, k: Tensor, v: Tensor, length: int) -> Tensor:
    """YOSO's goal: each pair weighs what its probability of a collision is."""
    import torch.nn.functional as F

    cosine = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT).clamp(-1, 1)
    return F.normalize((1 - cosine.acos() / math.pi) ** (length.bit_length() - 1) @ v, dim=-1)


def doubling(first: int, last: int) -> list[int]:
    return [first << i for i in range((last // first).bit_length())]


def choosing(length: int) -> list[Sweep]:
    """Sweeps that end at softmax; blocks of 16 tokens, so that a short input has many."""
    blocks = length // 16

    def one(name: str, **fixed: Any) -> Callable[[int], dict[str, Any]]:
        return lambda value: {name: value, **fixed}

    def of_mra(value: int) -> dict[str, Any]:
        return {"scales": (16, 4, 1), "blocks_per_row": (min(blocks, 2 * value), 4 * value)}

    return [
        Sweep("mra2", "blocks_per_row", doubling(1, blocks), one("blocks_per_row", block_size=16), softmax),
        Sweep("mra2_s", "blocks_per_row", doubling(1, blocks), one("blocks_per_row", block_size=16), softmax),
        Sweep("mra", "blocks_per_row", doubling(1, blocks), of_mra, softmax),
        Sweep("longformer", "window", doubling(16, 2 * length), one("window"), softmax),
        Sweep(
            "bigbird",
            "window_blocks",
            [2 * n - 1 for n in doubling(1, blocks)],
            one("window_blocks", block_size=16),
            softmax,
        ),
        Sweep("scatterbrain", "window", doubling(16, 2 * length), one("window"), softmax),
        Sweep("nystromformer", "landmarks", doubling(8, length), one("landmarks"), softmax),
        Sweep("h_transformer_1d", "block_size", doubling(4, length), one("block_size"), softmax),
    ]


def drawing() -> list[Sweep]:
    """Sweeps whose error falls with the square root of the draws."""

    def one(name: str) -> Callable[[int], dict[str, Any]]:
        return lambda value: {name: value}

    return [
        Sweep("performer", "features", doubling(16, 4096), one("features"), softmax),
        Sweep("yoso", "hashes", doubling(4, 1024), one("hashes"), collisions),
        Sweep(
            "reformer", "rounds", doubling(1, 64), lambda value: {"rounds": value, "across_buckets": True},
            among_unit_keys,
        ),
    ]  # fmt: skip


def inputs(length: int, seed: int, spread: float) -> list[Tensor]:
    """q, k, v (1, H, N, D): q and k, of deviation `spread`, share a smooth part, so that attention is partly local."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(seed)

    def normal() -> Tensor:
        return torch.randn(1, HEADS, length, HEAD_DIM, generator=generator)

    smooth = F.avg_pool1d(normal().flatten(0, 1).mT, 17, stride=1, padding=8, count_include_pad=False).mT
    smooth = (smooth / smooth.std()).unflatten(0, (1, HEADS))
    return [spread * (0.8 * smooth + 0.6 * normal()), spread * (0.8 * smooth + 0.6 * normal()), normal()]


def measure(sweep: Sweep, kind: str, length: int, draws: int, spread: float) -> list[Row]:
    """The errors of one variant over its budget."""
    import torch

    from attention_zoo import ZOO

    rows = []
    for value in sweep.values:
        errors = []
        for seed in range(draws):
            torch.manual_seed(seed)
            core = ZOO[sweep.attn](HEADS, HEAD_DIM, length, **sweep.parameters(value)).eval()
            q, k, v = inputs(length, seed, spread)
            with torch.no_grad():
                target = sweep.target(q, k, v, length)
                errors.append(float((core(q, k, v) - target).norm() / target.norm()))
        spreading = statistics.stdev(errors) if draws > 1 else 0.0
        share = value / sweep.values[-1]
        rows.append(
            Row(sweep.attn, kind, sweep.parameter, value, share, statistics.mean(errors), spreading, length, draws)
        )
    return rows


def draw(rows: Sequence[Row], file: Path) -> None:
    """The figure: error against the share of the full budget, and against the number of draws."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context(STYLE):
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
        for axes, kind in ((left, "choosing"), (right, "drawing")):
            names = list(dict.fromkeys(row.attn for row in rows if row.kind == kind))
            for i, name in enumerate(names):
                mine = [row for row in rows if (row.attn, row.kind) == (name, kind)]
                x = [row.share if kind == "choosing" else row.value for row in mine]
                label = f"{name} ({mine[0].parameter})"
                style = {"color": PALETTE[i % len(PALETTE)], "linestyle": DASHES[i // 4 % len(DASHES)]}
                axes.plot(x, [row.error for row in mine], label=label, marker="o", markersize=2.5, **style)
            axes.set_xscale("log", base=2)
        left.legend(fontsize=7.5, ncol=2)
        left.set_ylim(0, 1.35 * max(row.error for row in rows if row.kind == "choosing"))
        right.set_yscale("log")
        left.set_title("Chosen: relative error to softmax attention")
        left.set_xlabel("share of the budget at which it is softmax")
        right.set_title("Drawn: relative error to what is estimated")
        right.set_xlabel("number of draws")
        guide = [row for row in rows if row.attn == "performer"]
        right.plot(
            [row.value for row in guide],
            [1.6 * guide[0].error * (row.value / guide[0].value) ** -0.5 for row in guide],
            color="#888888",
            linewidth=0.8,
            label="draws^-1/2",
        )
        right.legend(fontsize=7.5)
        page = io.StringIO()
        figure.savefig(page, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    write_text(file, page.getvalue())


def run(options: dict[str, str]) -> int:
    """Measure, print, write, draw, with a value for each of KEYS; returns the exit code."""
    length, draws = (whole_number(key, options[key], least=1) for key in ("length", "draws"))
    if length < 64 or length & length - 1:
        raise WordError(f"length={length} must be a power of two of at least 64")
    rows: list[Row] = []
    for kind, sweeps, spread in (("choosing", choosing(length), 1.0), ("drawing", drawing(), 0.5)):
        for sweep in sweeps:
            for row in measure(sweep, kind, length, draws, spread):
                rows.append(row)
                print(f"{kind:9} {row.attn:17} {row.parameter} {row.value:5}  error {row.error:.2e}", flush=True)
    rounded = ([*row[:4], *(f"{x:.6g}" for x in row[4:7]), *row[7:]] for row in rows)
    write_rows(options["out"], Row._fields, rounded)
    draw(rows, Path(options["figure"]))
    print(f"written: {options['figure']}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("benchmarks.convergence", "Error of every attention against its budget.", KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
