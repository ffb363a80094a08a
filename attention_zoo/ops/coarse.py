"""Attention over a list of pairs of blocks, in which every other pair stands in by its mean: MRA-2, given its pairs.

zoo::coarse_attention(q, k, v, blocks, block_size, mask) takes what zoo::block_sparse_attention takes (that module
explains it) and returns out (G, N, D) and, for the backward, lse (G, N) and the virtual keys: prior_logit (G, K) and
prior_value (G, K, D). With the means q', k', v' and the number c of the real tokens of each block, the pairs (x, y)
that are not in `blocks` are one virtual key for the queries of block x:

    l_xy = q'_x . k'_y / sqrt(D) + log c_y,    prior_logit_x = logsumexp_y l_xy,    prior_value_x = softmax_y(l_xy) v'_y

Gradients go through the means. `out` alone has a derivative, and only a first one.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernels, on_cuda
from .block_sparse import for_heads
from .block_sparse_cpu import masked_rows
from .precision import without_autocast

torch.library.define(
    "zoo::coarse_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor blocks, int block_size, Tensor? mask)"
    " -> (Tensor out, Tensor lse, Tensor prior_logit, Tensor prior_value)",
)
torch.library.define(
    "zoo::coarse_attention_backward",
    "(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor prior_logit, Tensor prior_value,"
    " Tensor blocks, int block_size, Tensor? mask) -> (Tensor d_q, Tensor d_k, Tensor d_v)",
)


def attend_coarsely(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, pairs: Tensor, block_size: int) -> Tensor:
    """`out` for the heads of a batch: q, k, v (B, H, N, D), mask (B, N), pairs (B, H, P, 2)."""
    heads = q.shape[1]
    q, k, v, pairs = (x.flatten(0, 1) for x in (q, k, v, pairs))
    mask = None if mask is None else for_heads(mask, heads)
    return torch.ops.zoo.coarse_attention(q, k, v, pairs, block_size, mask)[0].unflatten(0, (-1, heads))


class _Coarse(NamedTuple):
    """The blocks of G heads: means of the real tokens, counts (G, K), and weights of the unselected pairs (G, K, K)."""

    q: Tensor  # (G, K, D)
    k: Tensor
    v: Tensor
    counts: Tensor
    weights: Tensor
    logit: Tensor  # (G, K)


def _coarse(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, mask: Tensor | None) -> _Coarse:
    heads, length, dim = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    missing = -length % block_size
    if mask is None:
        mask = q.new_ones(heads, length, dtype=torch.bool)
    counts = F.pad(mask, (0, missing)).unflatten(1, (-1, block_size)).sum(-1)  # (G, K)
    q_mean, k_mean, v_mean = (
        F.pad(x.to(dtype).masked_fill(~mask[:, :, None], 0.0), (0, 0, 0, missing)).unflatten(1, (-1, block_size)).sum(2)
        / counts.clamp(min=1)[:, :, None]
        for x in (q, k, v)
    )  # (G, K, D)
    count = counts.shape[-1]
    place = blocks[..., 0].long() * count + blocks[..., 1]  # (G, P), empty pairs stand from K^2 on
    selected = mask.new_zeros(heads, count**2 + count).scatter(-1, place, True)[:, : count**2]
    left_out = selected.unflatten(-1, (count, count)) | (counts == 0)[:, None, :]

    logits = q_mean @ k_mean.mT / math.sqrt(dim) + counts.clamp(min=1).to(dtype).log()[:, None, :]
    logits = logits.masked_fill(left_out, -math.inf)
    logit = logits.logsumexp(-1)
    weights = (logits - logit.masked_fill(logit == -math.inf, 0.0)[:, :, None]).exp()
    return _Coarse(q_mean, k_mean, v_mean, counts, weights, logit)


@without_autocast
def reference(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    coarse = _coarse(q, k, v, blocks, block_size, mask)
    value = coarse.weights @ coarse.v
    out, lse = torch.ops.zoo.block_sparse_attention(q, k, v, blocks, block_size, mask, coarse.logit, value)
    return out, lse, coarse.logit, value


@without_autocast
def reference_backward(
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
    *gradients, d_logit, d_value = torch.ops.zoo.block_sparse_attention_backward(
        d_out, torch.zeros_like(lse), q, k, v, out, lse, blocks, block_size, mask, prior_logit, prior_value
    )
    coarse, scale = _coarse(q, k, v, blocks, block_size, mask), 1 / math.sqrt(q.shape[-1])
    d_weights = d_value @ coarse.v.mT  # (G, K, K)
    mean = (coarse.weights * d_weights).sum(-1, keepdim=True)
    d_logits = coarse.weights * (d_weights - mean + d_logit[:, :, None])
    d_means = d_logits @ coarse.k * scale, d_logits.mT @ coarse.q * scale, coarse.weights.mT @ d_value  # (G, K, D)

    def spread(d_x: Tensor, d_mean: Tensor) -> Tensor:
        """The gradient of the tokens, and of the means that they are in."""
        share = (d_mean / coarse.counts.clamp(min=1)[:, :, None]).repeat_interleave(block_size, 1)[:, : q.shape[1]]
        share = share if mask is None else share.masked_fill(~mask[:, :, None], 0.0)
        return (d_x + share).to(d_x.dtype)

    d_q, d_k, d_v = map(spread, gradients, d_means)
    return d_q, d_k, d_v


torch.library.impl("zoo::coarse_attention", "CompositeExplicitAutograd", reference)
torch.library.impl("zoo::coarse_attention_backward", "CompositeExplicitAutograd", reference_backward)


def _compiled(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    out, lse, logit, value = torch.ops.zoo.coarse_attention_cpu(
        *map(kernels.wide, (q, k, v)),
        kernels.pairs(blocks),
        block_size,
        1 / math.sqrt(q.shape[-1]),
        kernels.dense(mask),
    )
    return kernels.narrow(out, v), lse, logit, value[..., : q.shape[-1]].contiguous()


def _compiled_backward(
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
    d_q, d_k, d_v = torch.ops.zoo.coarse_attention_cpu_backward(
        kernels.wide(masked_rows(d_out, lse)),
        *map(kernels.wide, (q, k, v, out)),
        lse,
        prior_logit,
        kernels.wide(prior_value),
        kernels.pairs(blocks),
        block_size,
        1 / math.sqrt(q.shape[-1]),
        kernels.dense(mask),
    )
    return kernels.narrow(d_q, q), kernels.narrow(d_k, k), kernels.narrow(d_v, v)


@torch.library.impl("zoo::coarse_attention", "CPU")
def _on_cpu(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (_compiled if kernels.compiled(q, k, v) else reference)(q, k, v, *rest)


@torch.library.impl("zoo::coarse_attention_backward", "CPU")
def _on_cpu_backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return (_compiled_backward if kernels.compiled(q, k, v) else reference_backward)(d_out, q, k, v, *rest)


@torch.library.impl("zoo::coarse_attention", "CUDA")
def _on_cuda(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    serves = kernels.compiled(q, k, v, block_size=block_size, dim=q.shape[-1])
    return (on_cuda.coarse_forward if serves else reference)(q, k, v, blocks, block_size, mask)


@torch.library.impl("zoo::coarse_attention_backward", "CUDA")
def _on_cuda_backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    *_, block_size, _ = rest
    serves = kernels.compiled(q, k, v, block_size=block_size, dim=q.shape[-1])
    return (on_cuda.coarse_backward if serves else reference_backward)(d_out, q, k, v, *rest)


@torch.library.register_fake("zoo::coarse_attention")
def _fake(
    q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    heads, length, dim = q.shape
    lse = q.new_empty(heads, length, dtype=torch.promote_types(q.dtype, torch.float32))
    count = -(-length // block_size)
    return v.new_empty(v.shape), lse, lse.new_empty(heads, count), lse.new_empty(heads, count, dim)


@torch.library.register_fake("zoo::coarse_attention_backward")
def _fake_backward(d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    q, k, v, blocks, ctx.block_size, mask = inputs
    ctx.save_for_backward(q, k, v, *output, blocks, mask)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
    *saved, mask = ctx.saved_tensors
    if d_out is None:
        return (None,) * 6
    gradients = torch.ops.zoo.coarse_attention_backward(d_out, *saved, ctx.block_size, mask)
    return *gradients, None, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("zoo::coarse_attention has first derivatives only")


torch.library.register_autograd("zoo::coarse_attention", _backward, setup_context=_setup_context)
torch.library.register_autograd("zoo::coarse_attention_backward", _no_second_derivative)


@kernels.probe
def _probe(device: torch.device) -> None:
    """ValueError unless the compiled operator and its backward agree with the reference on a small example."""
    forward, backward = {
        "cpu": (_compiled, _compiled_backward),
        "cuda": (on_cuda.coarse_forward, on_cuda.coarse_backward),
    }[device.type]
    wave = torch.arange(2 * 40 * 12, dtype=torch.float32, device=device).view(2, 40, 12)
    blocks = torch.tensor([[[0, 0], [0, 2], [2, 1]], [[1, 0], [1, 1], [3, 0]]], device=device)
    given = blocks, 16, torch.arange(40, device=device).remainder(7).ne(3).expand(2, 40)
    for dtype, within in kernels.trials(device):
        q, k, v, d_out = (x.to(dtype) for x in ((0.7 * wave).sin(), (1.1 * wave).sin(), (1.3 * wave).sin(), wave.cos()))
        expected = reference(q, k, v, *given)
        kernels.agree(
            "zoo::coarse_attention",
            (*forward(q, k, v, *given), *backward(d_out, q, k, v, *expected, *given)),
            (*expected, *reference_backward(d_out, q, k, v, *expected, *given)),
            within,
        )
