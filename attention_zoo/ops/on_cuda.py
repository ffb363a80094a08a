"""The operators by the library that is compiled for GPUs.

Nothing here waits for the device or reads from it, and all work goes to the current stream: calls can be captured in a
CUDA graph, once the library is loaded (`kernels.available(device)`, or any earlier call).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import kernels

# `torch.ops.zoo`, and in the tests of the library on a CPU another.
operators: Any = torch.ops.zoo


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    block_size: int,
    mask: Tensor | None,
    prior_logit: Tensor | None,
    prior_value: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As zoo::block_sparse_attention."""
    out, lse = operators.block_sparse_attention_cuda(
        *map(kernels.filled, (q, k, v)),
        _pairs(blocks),
        block_size,
        _scale(q),
        _mask(mask),
        *_priors(prior_logit, prior_value),
        kernels.stream(q),
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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As zoo::block_sparse_attention_backward."""
    d_q, d_k, d_v, d_logit, d_value = operators.block_sparse_attention_cuda_backward(
        kernels.filled(d_out.to(v.dtype)),
        kernels.aligned(d_lse.float()),
        *map(kernels.filled, (q, k, v, out)),
        kernels.aligned(lse),
        _pairs(blocks),
        block_size,
        _scale(q),
        _mask(mask),
        *_priors(prior_logit, prior_value),
        kernels.stream(q),
    )
    d_q, d_k, d_v = kernels.narrow(d_q, q), kernels.narrow(d_k, k), kernels.narrow(d_v, v)
    if prior_logit is None or prior_value is None:
        return d_q, d_k, d_v, lse.new_empty(0), lse.new_empty(0)
    return d_q, d_k, d_v, d_logit.to(prior_logit.dtype), kernels.narrow(d_value, prior_value)


def coarse_forward(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As zoo::coarse_attention."""
    out, lse, logit, value = operators.coarse_attention_cuda(
        *map(kernels.filled, (q, k, v)), _pairs(blocks), block_size, _scale(q), _mask(mask), kernels.stream(q)
    )
    return kernels.narrow(out, v), lse, logit, value[..., : q.shape[-1]].contiguous()


def coarse_backward(
    d_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    prior_logit: Tensor,
    prior_value: Tensor,
    blocks: Tensor,
    block_size: int,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """As zoo::coarse_attention_backward."""
    d_q, d_k, d_v = operators.coarse_attention_cuda_backward(
        kernels.filled(d_out.to(v.dtype)),
        *map(kernels.filled, (q, k, v, out)),
        kernels.aligned(lse),
        *_priors(prior_logit, prior_value),
        _pairs(blocks),
        block_size,
        _scale(q),
        _mask(mask),
        kernels.stream(q),
    )
    return kernels.narrow(d_q, q), kernels.narrow(d_k, k), kernels.narrow(d_v, v)


def block_logits(q: Tensor, k: Tensor, block_size: int, mask: Tensor | None) -> Tensor:
    """As zoo::block_logits."""
    root = math.sqrt(q.shape[-1])
    given = kernels.filled(q), kernels.filled(k), block_size, root, _mask(mask)
    return operators.block_logits_cuda(*given, kernels.stream(q))


def choose_blocks(
    logits: Tensor, real: Tensor, budget: Tensor, most: int, first_blocks: int, diagonal_blocks: int, fill: bool
) -> Tensor:
    """As zoo::choose_blocks."""
    given = kernels.aligned(logits), kernels.aligned(real), kernels.aligned(budget)
    return operators.choose_blocks_cuda(*given, most, first_blocks, diagonal_blocks, fill, kernels.stream(logits))


def _scale(q: Tensor) -> float:
    return 1 / math.sqrt(q.shape[-1])


def _pairs(blocks: Tensor) -> Tensor:
    return kernels.aligned(kernels.pairs(blocks))


def _mask(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else kernels.aligned(mask)


def _priors(prior_logit: Tensor | None, prior_value: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if prior_logit is None or prior_value is None:
        return None, None
    return kernels.aligned(prior_logit.float()), kernels.filled(prior_value.float())
