"""zoo::block_sparse_attention by the compiled library."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from . import kernels


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    block_size: int,
    mask: Tensor | None,
    prior_logit: Tensor | None,
    prior_value: Tensor | None,
    *,
    seed: int = 0,
    threshold: int = 0,
) -> tuple[Tensor, Tensor]:
    """As the operator. With `threshold`, a weight is dropped with probability threshold / 2^16."""
    out, lse = torch.ops.zoo.block_sparse_attention_cpu(
        *map(kernels.wide, (q, k, v)),
        kernels.pairs(blocks),
        block_size,
        _scale(q),
        *_rest(mask, prior_logit, prior_value),
        seed,
        threshold,
    )
    return kernels.narrow(out, v), lse


def backward(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    blocks: Tensor,
    block_size: int,
    mask: Tensor | None,
    prior_logit: Tensor | None,
    prior_value: Tensor | None,
    *,
    seed: int = 0,
    threshold: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As the operator's backward, after a forward pass with the same `seed` and `threshold`."""
    d_q, d_k, d_v, d_logit, d_value = torch.ops.zoo.block_sparse_attention_cpu_backward(
        kernels.wide(masked_rows(d_out, lse)),
        d_lse.float().contiguous(),
        *map(kernels.wide, (q, k, v, out)),
        lse.float().contiguous(),
        kernels.pairs(blocks),
        block_size,
        _scale(q),
        *_rest(mask, prior_logit, prior_value),
        seed,
        threshold,
    )
    d_q, d_k, d_v = kernels.narrow(d_q, q), kernels.narrow(d_k, k), kernels.narrow(d_v, v)
    if prior_logit is None or prior_value is None:
        return d_q, d_k, d_v, lse.new_empty(0), lse.new_empty(0)
    return d_q, d_k, d_v, d_logit.to(prior_logit.dtype), kernels.narrow(d_value, prior_value)


def masked_rows(d_out: Tensor, lse: Tensor) -> Tensor:
    """The gradient of the output without that of queries that have no key, whatever it holds."""
    dead = lse == -math.inf
    return d_out.masked_fill(dead[:, :, None], 0.0) if dead.any() else d_out


def _scale(q: Tensor) -> float:
    return 1 / math.sqrt(q.shape[-1])


def _rest(
    mask: Tensor | None, prior_logit: Tensor | None, prior_value: Tensor | None
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    mask = kernels.dense(mask)
    if prior_logit is None or prior_value is None:
        return mask, None, None
    return mask, prior_logit.float().contiguous(), kernels.wide(prior_value)
