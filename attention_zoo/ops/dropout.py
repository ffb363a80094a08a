"""Dropout: on a CPU by a compiled generator of random numbers without a state, elsewhere torch's own.

torch draws a CPU's dropout masks one number after the other, in one thread: at the sizes of the arena a third of a
training step. Here number i is kept by word i of Philox4x32-10 under a seed that is drawn from torch's generator: any
thread makes any part, and the backward pass makes the mask again instead of keeping it.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011. https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """x of any shape, each number 0 with probability `p` (0 <= p < 1) and divided by 1 - p otherwise; x itself in
    evaluation.

    Where the library for CPUs has been loaded, p is rounded to a multiple of 2^-32, and the masks are those of one draw
    from torch's generator; elsewhere (a GPU, another dtype, within torch.compile) they are torch's.
    """
    if not training or p == 0.0:
        return x
    if torch.compiler.is_compiling() or type(x) not in (Tensor, torch.nn.Parameter) or not _compiled(x):
        return F.dropout(x, p)
    return _Dropout.apply(x, draw_seed(), p)


def draw_seed() -> int:
    """A seed from torch's generator for CPUs, 63 bits."""
    return int(torch.randint(2**63 - 1, ()))


def threshold(p: float) -> int:
    """What a random word of 32 bits must reach for its number to be kept with probability 1 - p."""
    return min(round(p * 2**32), 2**32 - 1)


def _compiled(x: Tensor) -> bool:
    return x.is_cpu and x.dtype == torch.float32 and kernels.ready(x.device)


class _Dropout(torch.autograd.Function):
    """The compiled one. It is linear and its own transpose."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seed: int, p: float) -> Tensor:
        ctx.seed, ctx.p = seed, p
        return torch.ops.zoo.dropout_cpu(x.contiguous(), seed, threshold(p), 1 / (1 - p))

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        return _Dropout.apply(d_out, ctx.seed, ctx.p), None, None


@kernels.probe
def _probe(device: torch.device) -> None:
    """ValueError unless the compiled masks are Philox's: the words of counter 0 under the key 0 are published."""
    if device.type != "cpu":
        return
    published = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8])
    for bound in (*published.tolist(), *(published + 1).tolist()):
        found = torch.ops.zoo.dropout_cpu(torch.ones(64), 0, bound, 2.0)[::16]
        if not torch.equal(found, 2.0 * (published >= bound)):
            raise ValueError("the compiled zoo::dropout draws other numbers than Philox4x32-10")
