"""Softmax attention whose probabilities are dropped in training, without the N x N of them in memory.

torch has it for GPUs; on a CPU it writes down the scores, and draws for each of them, one after the other. Here it is
the block-sparse kernel over all pairs of blocks, with a generator without a state (see dropout.py): 16 bits decide of a
pair, so that p is rounded to a multiple of 2^-16, and the backward pass draws them again.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import block_sparse_cpu, kernels
from .dropout import draw_seed

BLOCK_SIZE = 64


def softmax_dropout(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """dropout(softmax(q k^T / sqrt(D)), p) v over the real keys: q, k, v (B, H, N, D), mask (B, N) or None, 0 < p < 1.

    Returns (B, H, N, D); the rows of padded queries, and of examples without a real token, are finite.
    """
    if serves(q, k, v):
        heads = q.shape[1]
        rows = None if mask is None else mask.repeat_interleave(heads, 0)
        q, k, v = (x.flatten(0, 1) for x in (q, k, v))
        return _SoftmaxDropout.apply(q, k, v, rows, draw_seed(), p)[0].unflatten(0, (-1, heads))
    if mask is None:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=p)
    # An example without a real token looks at all its places: their values are 0, and nothing is NaN.
    seen = mask | ~mask.any(-1, keepdim=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :], dropout_p=p)


def serves(*tensors: Tensor) -> bool:
    """Whether the compiled one runs on these tensors."""
    plain = all(type(x) is Tensor and x.is_cpu and x.dtype == torch.float32 for x in tensors)
    return plain and not torch.compiler.is_compiling() and kernels.compiled(*tensors)


def threshold(p: float) -> int:
    """What 16 random bits must reach for their pair to be kept."""
    return min(round(p * 2**16), 2**16 - 1)


def all_pairs(x: Tensor) -> Tensor:
    """(G, K^2, 2) int32: every pair of blocks of x (G, N, D), for each head."""
    block = torch.arange(-(-x.shape[1] // BLOCK_SIZE), dtype=torch.int32)
    return torch.cartesian_prod(block, block).view(-1, 2).expand(x.shape[0], -1, -1)


class _SoftmaxDropout(torch.autograd.Function):
    """q, k, v (G, N, D), mask (G, N) or None -> out (G, N, D), lse (G, N)."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, seed: int, p: float
    ) -> tuple[Tensor, Tensor]:
        ctx.seed, ctx.threshold = seed, threshold(p)
        pairs, drop = all_pairs(q), {"seed": seed, "threshold": ctx.threshold}
        out, lse = block_sparse_cpu.forward(q, k, v, pairs, BLOCK_SIZE, mask, None, None, **drop)
        ctx.save_for_backward(q, k, v, out, lse, mask)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, mask = ctx.saved_tensors
        pairs, drop = all_pairs(q), {"seed": ctx.seed, "threshold": ctx.threshold}
        d_lse = torch.zeros_like(lse)
        given = (d_out, d_lse, q, k, v, out, lse, pairs, BLOCK_SIZE, mask, None, None)
        return (*block_sparse_cpu.backward(*given, **drop)[:3], None, None, None)
