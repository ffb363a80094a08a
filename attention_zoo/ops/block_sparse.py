"""Softmax attention over a list of (query block, key block) pairs, and one virtual key per query block.

`zoo::block_sparse_attention` has a schema, a reference in plain PyTorch for every device and dtype, a fake and a
backward. On a CPU and on a GPU the compiled libraries of ops/kernels.py replace the reference. It takes, for G heads:

q, k, v      (G, N, D), one floating dtype
blocks       (G, P, 2) int32 or int64: distinct pairs (query block, key block), sorted by query block. With K = ceil(N /
             block_size) blocks, a pair whose query block is K is empty: heads with fewer pairs end with such pairs
block_size   tokens per block; the last block may be shorter
mask         (G, N) bool, True = real, or None. Padded rows of q, k, v take no part, but must be finite
prior_logit  (G, K) or None: the logit of one virtual key that all queries of a block share; -inf: no such key
prior_value  (G, K, D) or None: the value of that key

and returns out (G, N, D) in v's dtype and lse (G, N), the logsumexp of a query's logits q.k / sqrt(D) over the real
keys of its pairs and the virtual key, in float32 (float64 for float64). A query without any key, and a padded one, has
out 0 and lse -inf. Every result repeats bit for bit. Only first derivatives exist: a second one raises.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import block_sparse_cpu, kernels, on_cuda
from .precision import LN2, without_autocast

torch.library.define(
    "zoo::block_sparse_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor blocks, int block_size, Tensor? mask, Tensor? prior_logit,"
    " Tensor? prior_value) -> (Tensor out, Tensor lse)",
)
torch.library.define(
    "zoo::block_sparse_attention_backward",
    "(Tensor d_out, Tensor d_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, Tensor blocks,"
    " int block_size, Tensor? mask, Tensor? prior_logit, Tensor? prior_value)"
    " -> (Tensor d_q, Tensor d_k, Tensor d_v, Tensor d_prior_logit, Tensor d_prior_value)",
)


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    block_size: int,
    mask: Tensor | None = None,
    prior_logit: Tensor | None = None,
    prior_value: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The operator with its arguments checked: ValueError where shapes do not fit. The module explains the terms."""
    heads, length, dim = q.shape
    count = -(-length // block_size) if block_size > 0 else 0
    if block_size < 1:
        raise ValueError(f"block_size={block_size} must be at least 1")
    if q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f"q, k, v must have one shape, got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}")
    if blocks.dim() != 3 or blocks.shape[0] != heads or blocks.shape[2] != 2 or blocks.is_floating_point():
        raise ValueError(f"blocks must be integers of shape ({heads}, P, 2), got {blocks.dtype} {tuple(blocks.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (heads, length)):
        raise ValueError(f"mask must be bool of shape {(heads, length)}, got {mask.dtype} {tuple(mask.shape)}")
    if (prior_logit is None) != (prior_value is None):
        raise ValueError("prior_logit and prior_value come together: one of them is None")
    for name, prior, shape in (
        ("prior_logit", prior_logit, (heads, count)),
        ("prior_value", prior_value, (heads, count, dim)),
    ):
        if prior is not None and prior.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(prior.shape)}")
    return torch.ops.zoo.block_sparse_attention(q, k, v, blocks, block_size, mask, prior_logit, prior_value)


def attend_pairs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    pairs: Tensor,
    block_size: int,
    prior_logit: Tensor | None = None,
    prior_value: Tensor | None = None,
) -> Tensor:
    """`out` for the heads of a batch: q, k, v (B, H, N, D), mask (B, N), pairs (B, H, P, 2), priors (B, H, K, ...)."""
    heads = q.shape[1]
    q, k, v, pairs = (x.flatten(0, 1) for x in (q, k, v, pairs))
    mask = None if mask is None else for_heads(mask, heads)
    prior_logit = None if prior_logit is None else prior_logit.flatten(0, 1)
    prior_value = None if prior_value is None else prior_value.flatten(0, 1)
    out, _ = block_sparse_attention(q, k, v, pairs, block_size, mask, prior_logit, prior_value)
    return out.unflatten(0, (-1, heads))


def for_heads(x: Tensor, heads: int) -> Tensor:
    """(B, ...) -> (B heads, ...): what all heads of an example share."""
    return x[:, None].expand(-1, heads, *x.shape[1:]).flatten(0, 1)


class _Heads(NamedTuple):
    """A few heads' pairs as flat indices into tensors of shape (heads * K, ...)."""

    part: slice
    query: Tensor  # (T,) the query block of each pair, any block for an empty pair
    key: Tensor  # (T,) the key block
    row: Tensor  # (T,) the query block among heads * (K + 1): empty pairs add into the last one of their head


def _heads(blocks: Tensor, count: int, block_size: int) -> Iterator[_Heads]:
    """Split the heads so that the logits of one part, (T, block_size, block_size), stay in a CPU's cache."""
    heads, pairs, _ = blocks.shape
    elements = 2**19 if blocks.device.type == "cpu" else 2**28
    step = max(1, elements // max(1, pairs * block_size**2))
    for start in range(0, heads, step):
        part = slice(start, min(start + step, heads))
        x, y = blocks[part].long().unbind(-1)
        head = torch.arange(x.shape[0], device=x.device)[:, None]
        last = count - 1
        yield _Heads(
            part,
            query=(head * count + x.clamp(max=last)).flatten(),
            key=(head * count + y.clamp(max=last)).flatten(),
            row=(head * (count + 1) + x).flatten(),
        )


def _blocked(x: Tensor, count: int, block_size: int, dtype: torch.dtype) -> Tensor:
    """(G, N, ...) -> (G, K, block_size, ...), the last block filled up with zeros."""
    missing = count * block_size - x.shape[1]
    x = x.to(dtype)
    if missing:
        x = torch.cat([x, x.new_zeros(x.shape[0], missing, *x.shape[2:])], 1)
    return x.unflatten(1, (count, block_size))


def _pick(x: Tensor, part: slice, index: Tensor) -> Tensor:
    """(G, K, ...) -> (T, ...)"""
    return x[part].flatten(0, 1).index_select(0, index)


def _sum_by(index: Tensor, x: Tensor, into: Tensor) -> Tensor:
    """Add the T rows of x into the rows of `into` that `index` names, in an order that never changes."""
    if x.device.type == "cpu":
        return into.index_add_(0, index, x)
    return into.index_put_((index,), x, accumulate=True)


def _log2_keep(mask: Tensor | None, length: int, count: int, block_size: int, like: Tensor) -> Tensor | None:
    """(G, K, 1, block_size): 0 for a real key and -inf for a padded one, or None where every key is real."""
    if mask is None:
        if count * block_size == length:
            return None
        mask = torch.ones(like.shape[0], length, dtype=torch.bool, device=like.device)
    real = _blocked(mask, count, block_size, torch.bool)
    return like.new_zeros(real.shape).masked_fill_(~real, -math.inf)[:, :, None, :]


def _logits(q: Tensor, k_t: Tensor, keep: Tensor | None, at: _Heads) -> Tensor:
    """(T, block_size, block_size): the base-2 logits of every pair."""
    if keep is None:
        return torch.bmm(q, _pick(k_t, at.part, at.key))
    return torch.baddbmm(_pick(keep, at.part, at.key), q, _pick(k_t, at.part, at.key))


@without_autocast
def reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    block_size: int,
    mask: Tensor | None,
    prior_logit: Tensor | None,
    prior_value: Tensor | None,
) -> tuple[Tensor, Tensor]:
    heads, length, dim = v.shape
    count = -(-length // block_size)
    dtype = torch.promote_types(q.dtype, torch.float32)
    out = q.new_empty(heads, count, block_size, dim, dtype=dtype)
    lse = q.new_empty(heads, count, block_size, dtype=dtype)

    scaled = _blocked(q, count, block_size, dtype) / (LN2 * math.sqrt(dim))  # (G, K, b, D)
    k_t = _blocked(k, count, block_size, dtype).mT.contiguous()  # (G, K, D, b)
    values = _blocked(v, count, block_size, dtype)  # (G, K, b, D)
    keep = _log2_keep(mask, length, count, block_size, out)

    for at in _heads(blocks, count, block_size):
        here = out[at.part].shape[0]
        rows = here * (count + 1)
        logits = _logits(_pick(scaled, at.part, at.query), k_t, keep, at)  # (T, b, b)

        top = out.new_full((here, count + 1, block_size), -math.inf)
        if prior_logit is not None:
            top[:, :count] = (prior_logit[at.part].to(dtype) / LN2)[:, :, None]
        virtual = top.clone()
        top = top.view(rows, block_size)
        top = top.scatter_reduce_(0, at.row[:, None].expand(-1, block_size), logits.amax(-1), "amax")
        top.masked_fill_(top == -math.inf, 0.0)
        weights = logits.sub_(top.index_select(0, at.row)[:, :, None]).exp2_()

        share = (virtual.view(rows, block_size) - top).exp2_()  # (rows, b): the weight of the virtual key
        mixed = out.new_zeros(rows, block_size, dim)
        if prior_value is not None:
            coarse = torch.cat([prior_value[at.part].to(dtype), out.new_zeros(here, 1, dim)], 1)
            mixed = share[:, :, None] * coarse.view(rows, 1, dim)
        total = _sum_by(at.row, weights.sum(-1), share)
        mixed = _sum_by(at.row, torch.bmm(weights, _pick(values, at.part, at.key)), mixed)

        mixed = torch.where(total > 0, 1 / total, 0.0)[:, :, None] * mixed
        out[at.part] = mixed.view(here, count + 1, block_size, dim)[:, :count]
        lse[at.part] = (LN2 * (top + total.log2())).view(here, count + 1, block_size)[:, :count]

    out, lse = out.flatten(1, 2)[:, :length], lse.flatten(1, 2)[:, :length]
    if mask is not None:
        out, lse = out.masked_fill(~mask[:, :, None], 0.0), lse.masked_fill(~mask, -math.inf)
    return out.to(v.dtype).contiguous(), lse.contiguous()


@without_autocast
def reference_backward(
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
    """With p = exp(logit - lse): dv = p^T d_out, d_logit = p * (d_out v^T - d_out.out + d_lse), dq and dk from it."""
    heads, length, dim = v.shape
    count = -(-length // block_size)
    dtype = lse.dtype
    scale = 1 / math.sqrt(dim)
    keep = _log2_keep(mask, length, count, block_size, lse)

    alive = lse != -math.inf
    d_out = d_out.to(dtype).masked_fill(~alive[:, :, None], 0.0)
    shift = (d_out * out.to(dtype)).sum(-1) - d_lse.to(dtype).masked_fill(~alive, 0.0)
    # exp2(logit - inf) = 0: the weights of a query without keys, and of an empty pair, which reads block K.
    log2_total = lse.new_full((heads, (count + 1) * block_size), math.inf)
    log2_total[:, :length] = (lse / LN2).masked_fill(~alive, math.inf)
    log2_total = log2_total.view(heads, count + 1, block_size, 1)

    d_mixed = _blocked(d_out, count, block_size, dtype)  # (G, K, b, D)
    shift = _blocked(shift, count, block_size, dtype)[..., None]  # (G, K, b, 1)
    scaled = _blocked(q, count, block_size, dtype) * (scale / LN2)
    keys = _blocked(k, count, block_size, dtype)
    k_t = keys.mT.contiguous()
    v_t = _blocked(v, count, block_size, dtype).mT.contiguous()
    d_q, d_k, d_v = torch.empty_like(keys), torch.empty_like(keys), torch.empty_like(keys)

    for at in _heads(blocks, count, block_size):
        here = keys[at.part].shape[0]
        shape, rows = (here, count, block_size, dim), (here * count, block_size, dim)
        query, upstream = _pick(scaled, at.part, at.query), _pick(d_mixed, at.part, at.query)  # (T, b, D)
        weights = _logits(query, k_t, keep, at).sub_(_pick(log2_total, at.part, at.row)).exp2_()  # (T, b, b)
        d_v[at.part] = _sum_by(at.key, torch.bmm(weights.mT, upstream), d_v.new_zeros(rows)).view(shape)

        d_logits = torch.bmm(upstream, _pick(v_t, at.part, at.key))
        d_logits = d_logits.sub_(_pick(shift, at.part, at.query)).mul_(weights)  # (T, b, b)
        of_query = torch.bmm(d_logits, _pick(keys, at.part, at.key))
        d_q[at.part] = _sum_by(at.query, of_query, d_q.new_zeros(rows)).view(shape)
        d_k[at.part] = _sum_by(at.key, torch.bmm(d_logits.mT, query), d_k.new_zeros(rows)).view(shape)

    d_q, d_k, d_v = ((x * by).flatten(1, 2)[:, :length] for x, by in ((d_q, scale), (d_k, LN2), (d_v, 1.0)))
    d_q, d_k, d_v = d_q.to(q.dtype).contiguous(), d_k.to(k.dtype).contiguous(), d_v.to(v.dtype).contiguous()
    if prior_logit is None or prior_value is None:
        return d_q, d_k, d_v, lse.new_empty(0), lse.new_empty(0)

    logit, value = prior_logit.to(dtype) / LN2, prior_value.to(dtype)
    weights = (logit[:, :, None, None] - log2_total[:, :count]).exp2_()  # (G, K, b, 1)
    d_value = (weights.mT @ d_mixed).squeeze(2)  # (G, K, D)
    d_logit = ((d_mixed @ value[..., None] - shift) * weights).sum((2, 3))  # (G, K)
    return d_q, d_k, d_v, d_logit.to(prior_logit.dtype), d_value.to(prior_value.dtype)


torch.library.impl("zoo::block_sparse_attention", "CompositeExplicitAutograd", reference)
torch.library.impl("zoo::block_sparse_attention_backward", "CompositeExplicitAutograd", reference_backward)


@torch.library.impl("zoo::block_sparse_attention", "CPU")
def _on_cpu(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    run = block_sparse_cpu.forward if kernels.compiled(q, k, v) else reference
    return run(q, k, v, *rest)


@torch.library.impl("zoo::block_sparse_attention_backward", "CPU")
def _on_cpu_backward(
    d_out: Tensor, d_lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    run = block_sparse_cpu.backward if kernels.compiled(q, k, v) else reference_backward
    return run(d_out, d_lse, q, k, v, *rest)


@torch.library.impl("zoo::block_sparse_attention", "CUDA")
def _on_cuda(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, *rest: Any) -> tuple[Tensor, Tensor]:
    serves = kernels.compiled(q, k, v, block_size=block_size, dim=q.shape[-1])
    return (on_cuda.forward if serves else reference)(q, k, v, blocks, block_size, *rest)


@torch.library.impl("zoo::block_sparse_attention_backward", "CUDA")
def _on_cuda_backward(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    blocks: Tensor,
    block_size: int,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    serves = kernels.compiled(q, k, v, block_size=block_size, dim=q.shape[-1])
    run = on_cuda.backward if serves else reference_backward
    return run(d_out, d_lse, q, k, v, out, lse, blocks, block_size, *rest)


@kernels.probe
def _probe(device: torch.device) -> None:
    """ValueError unless the compiled operator and its backward agree with the reference on a small example."""
    forward, backward = {
        "cpu": (block_sparse_cpu.forward, block_sparse_cpu.backward),
        "cuda": (on_cuda.forward, on_cuda.backward),
    }[device.type]
    wave = torch.arange(2 * 40 * 12, dtype=torch.float32, device=device).view(2, 40, 12)
    blocks = torch.tensor([[[0, 0], [0, 2], [2, 1]], [[1, 0], [1, 1], [3, 0]]], device=device)
    mask = torch.arange(40, device=device).remainder(7).ne(3).expand(2, 40)
    given: tuple[Any, ...] = (blocks, 16, mask, wave[:, :3, 0].cos(), wave[:, :3].cos())
    for dtype, within in kernels.trials(device):
        q, k, v, d_out = (x.to(dtype) for x in ((0.7 * wave).sin(), (1.1 * wave).sin(), (1.3 * wave).sin(), wave.cos()))
        out, lse = reference(q, k, v, *given)
        d_lse = torch.where(lse > -math.inf, wave[:, :, 0].sin(), 0.0)
        kernels.agree(
            "zoo::block_sparse_attention",
            (*forward(q, k, v, *given), *backward(d_out, d_lse, q, k, v, out, lse, *given)),
            (out, lse, *reference_backward(d_out, d_lse, q, k, v, out, lse, *given)),
            within,
        )


@torch.library.register_fake("zoo::block_sparse_attention")
def _fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    block_size: int,
    mask: Tensor | None,
    prior_logit: Tensor | None,
    prior_value: Tensor | None,
) -> tuple[Tensor, Tensor]:
    lse = q.new_empty(q.shape[:2], dtype=torch.promote_types(q.dtype, torch.float32))
    return v.new_empty(v.shape), lse


@torch.library.register_fake("zoo::block_sparse_attention_backward")
def _fake_backward(
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
    d_logit = lse.new_empty(0) if prior_logit is None else prior_logit.new_empty(prior_logit.shape)
    d_value = lse.new_empty(0) if prior_value is None else prior_value.new_empty(prior_value.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), d_logit, d_value


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, blocks, ctx.block_size, mask, prior_logit, prior_value = inputs
    ctx.save_for_backward(q, k, v, *output, blocks, mask, prior_logit, prior_value)


def _backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse, blocks, mask, prior_logit, prior_value = ctx.saved_tensors
    d_q, d_k, d_v, d_logit, d_value = torch.ops.zoo.block_sparse_attention_backward(
        d_out, d_lse, q, k, v, out, lse, blocks, ctx.block_size, mask, prior_logit, prior_value
    )
    priors = (None, None) if prior_logit is None else (d_logit, d_value)
    return d_q, d_k, d_v, None, None, None, *priors


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("zoo::block_sparse_attention has first derivatives only")


torch.library.register_autograd("zoo::block_sparse_attention", _backward, setup_context=_setup_context)
torch.library.register_autograd("zoo::block_sparse_attention_backward", _no_second_derivative)
