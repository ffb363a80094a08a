"""Softmax attention over a hierarchy of token groups, H-Transformer-1D's.

Level l has groups of 2^l consecutive tokens, in blocks of block_size groups. A block of level 0 sees itself and its
neighbours, a block of a level above its neighbours, without the pairs of half blocks that the level below has covered.
The levels end where at most two blocks are left, so every pair of tokens is covered once. A group's query, key and
value are the means of its real tokens; it weighs as much as its tokens together.

All levels stand in one row of blocks, with a block of zeros before, between and after them: one product of each block
with the window of itself and the blocks beside it serves all levels, and what a window must not see has the logit -inf.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import LN2

torch.library.define(
    "zoo::hierarchical_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? mask, int block_size) -> (Tensor out, Tensor lse)",
)
torch.library.define(
    "zoo::hierarchical_attention_backward",
    "(Tensor d_out, Tensor q, Tensor k, Tensor v, Tensor? mask, int block_size, Tensor out, Tensor lse)"
    " -> (Tensor d_q, Tensor d_k, Tensor d_v)",
)


def hierarchical_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, block_size: int) -> Tensor:
    """(B, H, N, D) in v's dtype.

    q, k, v (B, H, N, D), mask (B, N) bool or None; block_size is even. Padded rows of q, k, v must be 0; the output
    there is finite. Computed in float32, or float64 for float64. Only first derivatives exist.
    """
    out, _ = torch.ops.zoo.hierarchical_attention(q, k, v, mask, block_size)
    return out


@torch.library.impl("zoo::hierarchical_attention", "CompositeExplicitAutograd")
def _reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, block_size: int) -> tuple[Tensor, Tensor]:
    """Beside the output log2 of each group's total weight (B, H, T), for the backward alone."""
    out = torch.empty_like(v)
    parts = []
    for part, row in _parts(q, mask, block_size):
        queries, keys, values = row.means(q[part], k[part], v[part])
        weights = row.logits(queries, keys)  # (B, H, K, b, 3 b)
        top = weights.amax(-1).clamp_(min=row.floor)
        total = weights.sub_(top[..., None]).exp2_().sum(-1)  # (B, H, K, b)
        mixed = torch.empty_like(values)
        torch.bmm(_inner(weights), _windows(values), out=_inner(mixed))
        mixed.mul_(torch.where(total == 0, 0.0, 1 / total)[..., None])
        lse = torch.where(total == 0, row.floor, top + total.log2())
        # From the coarsest level down: what a group has gathered so far is one more key for its two halves.
        for fine, coarse in reversed(row.steps):
            halves, more = row.halves(lse, fine), lse.flatten(2, 3)[:, :, coarse, None]
            gap = more - halves
            mixed_halves, mixed_more = row.halves(mixed, fine), mixed.flatten(2, 3)[:, :, coarse, None]
            mixed_halves.lerp_(mixed_more, torch.sigmoid(LN2 * gap)[..., None])
            torch.maximum(halves, more, out=halves).add_((1 + torch.exp2(-gap.abs())).log2())
        out[part] = mixed.flatten(2, 3)[:, :, row.tokens]
        parts.append(lse)
    return out, torch.cat(parts)


@torch.library.impl("zoo::hierarchical_attention_backward", "CompositeExplicitAutograd")
def _reference_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, block_size: int, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """With p = exp(logit - lse) and sums over groups: dv = p^T d_out, d_logit = p * (d_out v^T - d_out.out)."""
    grads = [torch.empty_like(x) for x in (q, k, v)]
    for part, row in _parts(q, mask, block_size):
        here = lse[part]
        (upstream,) = row.empty(1, q.shape[-1])
        (shift,) = row.empty(1, 1)
        upstream_tokens, shift_tokens = (x.flatten(2, 3)[:, :, row.tokens] for x in (upstream, shift))
        upstream_tokens.copy_(d_out[part])
        torch.sum(upstream_tokens * out[part], -1, keepdim=True, out=shift_tokens)
        for fine, coarse in row.steps:
            more = here.flatten(2, 3)[:, :, coarse, None]
            first, second = torch.exp2(more - row.halves(here, fine))[..., None].unbind(3)
            for x in (upstream, shift):
                left, right = row.halves(x, fine).unbind(3)
                torch.mul(left, first, out=x.flatten(2, 3)[:, :, coarse]).addcmul_(right, second)
        queries, keys, values = row.means(q[part], k[part], v[part])
        weights = _inner(row.logits(queries, keys).sub_(here[..., None]).exp2_())  # (G, b, 3 b)
        (d_values,) = row.empty(1, q.shape[-1])
        _spread(weights, _inner(upstream), 1.0, d_values)
        d_logits = torch.bmm(_inner(upstream), _windows(values).mT).sub_(_inner(shift)).mul_(weights)
        scale = 1 / math.sqrt(q.shape[-1])
        # Two rows have served their purpose; the ends of both are 0.
        d_queries, d_keys = upstream, values
        _inner(d_queries).baddbmm_(d_logits, _windows(keys), beta=0, alpha=scale)
        _spread(d_logits, _inner(queries), scale, d_keys)
        for x, into in zip((d_queries, d_keys, d_values), grads, strict=True):
            into[part] = row.totals(x)
    return grads[0], grads[1], grads[2]


class _Row:
    """The row of some examples: K blocks of b groups, (B, H, K, b, D)."""

    def __init__(self, like: Tensor, mask: Tensor | None, block_size: int) -> None:
        batch, heads, length, self.dim = like.shape
        self.like = like
        self.size = block_size
        self.dtype = torch.promote_types(like.dtype, torch.float32)
        self.floor = torch.finfo(self.dtype).min / 4  # the log of no weight at all; no difference of two is NaN
        self.tokens = slice(block_size, block_size + length)

        self.steps: list[tuple[slice, slice]] = []  # of each level the groups, and of the next the pairs of them
        self.gaps = [slice(0, block_size)]  # the places of no group
        blocks, stop = -(-length // block_size), block_size + length
        self.near = 1 + blocks
        self.blocks = 2 + blocks
        self.gaps.append(slice(stop, self.blocks * block_size))
        while blocks > 2:
            fine = slice(self.gaps[-2].stop, (self.blocks - 1) * block_size)
            start = self.blocks * block_size
            coarse = slice(start, start + blocks * block_size // 2)
            self.steps.append((fine, coarse))
            blocks = -(-blocks // 2)
            self.blocks += blocks + 1
            self.gaps.append(slice(coarse.stop, self.blocks * block_size))

        counts = like.new_zeros(batch if mask is not None else 1, 1, self.blocks, block_size, 1, dtype=self.dtype)
        counts.flatten(2, 3)[:, 0, self.tokens, 0] = 1.0 if mask is None else mask.to(self.dtype)
        self._pair(counts)
        self.shares = 1 / counts.clamp(min=1)[:, :, self.near :]
        self.log_counts = counts.log2()

    def empty(self, count: int, dim: int) -> Tensor:
        """`count` rows, 0 in the gaps."""
        rows = self.like.new_empty(count, *self.like.shape[:2], self.blocks, self.size, dim, dtype=self.dtype)
        for gap in self.gaps:
            rows.flatten(3, 4)[:, :, :, gap] = 0.0
        return rows

    def halves(self, x: Tensor, level: slice) -> Tensor:
        """The groups of a level in pairs: (..., K, b, ...) -> (B, H, M / 2, 2, ...), a view."""
        return x.flatten(2, 3)[:, :, level].unflatten(2, (-1, 2))

    def _pair(self, rows: Tensor) -> None:
        """The sums of all levels from those of level 0, (..., K, b, D)."""
        flat = rows.flatten(-3, -2)
        for fine, coarse in self.steps:
            pairs = flat[..., fine, :].unflatten(-2, (-1, 2))
            torch.add(pairs[..., 0, :], pairs[..., 1, :], out=flat[..., coarse, :])

    def means(self, *inputs: Tensor) -> Tensor:
        """The groups' means of inputs (B, H, N, D): a row of each."""
        rows = self.empty(len(inputs), self.dim)
        for x, row in zip(inputs, rows, strict=True):
            row.flatten(2, 3)[:, :, self.tokens] = x
        self._pair(rows)
        rows[:, :, :, self.near :] *= self.shares
        return rows

    def totals(self, row: Tensor) -> Tensor:
        """The gradients of the tokens (B, H, N, D) from those of the groups' means."""
        row[:, :, self.near :] *= self.shares
        flat = row.flatten(2, 3)
        for fine, coarse in reversed(self.steps):
            for half in self.halves(row, fine).unbind(3):
                half.add_(flat[:, :, coarse])
        return flat[:, :, self.tokens]

    def logits(self, queries: Tensor, keys: Tensor) -> Tensor:
        """(B, H, K, b, 3 b): the base-2 logits of each block's window; those of the first and last block are void."""
        size, half = self.size, self.size // 2
        ends = F.pad(self.log_counts.flatten(1), (size, size), value=-math.inf)
        seen = ends.unfold(1, 3 * size, size)[:, None, :, None].expand(queries.shape[0], queries.shape[1], -1, -1, -1)
        covered = seen.new_zeros(size, 3 * size)
        covered[:, size : 2 * size] = -math.inf
        covered[:half, half:size] = -math.inf
        covered[half:, 2 * size : -half] = -math.inf
        logits = queries.new_empty(*queries.shape[:-1], 3 * size)
        logits[:, :, : self.near] = seen[:, :, : self.near]
        torch.add(seen[:, :, self.near :], covered, out=logits[:, :, self.near :])
        _inner(logits).baddbmm_(_inner(queries), _windows(keys).mT, alpha=1 / (LN2 * math.sqrt(self.dim)))
        return logits


def _parts(q: Tensor, mask: Tensor | None, block_size: int) -> Iterator[tuple[slice, _Row]]:
    """Split the examples so that the logits of one part stay in a CPU's cache."""
    batch, heads, length, _ = q.shape
    elements = 2**21 if q.device.type == "cpu" else 2**28
    step = max(1, elements // (6 * heads * (length + block_size) * block_size))
    with torch.autocast(q.device.type, enabled=False):
        for start in range(0, batch, step):
            part = slice(start, min(start + step, batch))
            yield part, _Row(q[part], None if mask is None else mask[part], block_size)


def _inner(x: Tensor) -> Tensor:
    """The blocks of all rows but the first and the last: (B, H, K, b, D) -> (G, b, D), a view."""
    return x.flatten(0, 2)[1:-1]


def _windows(x: Tensor) -> Tensor:
    """Each of these with the blocks beside it: (B, H, K, b, D) -> (G, 3 b, D), a view."""
    size, dim = x.shape[3:]
    return x.as_strided((x.shape[:3].numel() - 2, 3 * size, dim), (size * dim, dim, 1), x.storage_offset())


def _spread(weights: Tensor, x: Tensor, scale: float, into: Tensor) -> None:
    """scale weights^T x, summed over the windows: weights (G, b, 3 b), x (G, b, D), into (B, H, K, b, D)."""
    left, middle, right = weights.chunk(3, -1)
    blocks = into.flatten(0, 2)
    blocks[1:-1].baddbmm_(middle.mT, x, beta=0, alpha=scale)
    blocks[:-2].baddbmm_(left.mT, x, alpha=scale)
    blocks[2:].baddbmm_(right.mT, x, alpha=scale)


@torch.library.register_fake("zoo::hierarchical_attention")
def _fake(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, block_size: int) -> tuple[Tensor, Tensor]:
    row = _Row(q, None, block_size)
    lse = q.new_empty(*q.shape[:2], row.blocks, block_size, dtype=row.dtype)
    return torch.empty_like(v), lse


@torch.library.register_fake("zoo::hierarchical_attention_backward")
def _fake_backward(
    d_out: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, block_size: int, out: Tensor, lse: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    d_q, d_k, d_v = (torch.empty_like(x) for x in (q, k, v))
    return d_q, d_k, d_v


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, ctx.block_size = inputs
    ctx.save_for_backward(q, k, v, mask, *output)


def _backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, mask, out, lse = ctx.saved_tensors
    grads = torch.ops.zoo.hierarchical_attention_backward(d_out, q, k, v, mask, ctx.block_size, out, lse)
    return *grads, None, None


def _no_second_derivative(ctx: Any, *grads: Tensor) -> None:
    raise NotImplementedError("zoo::hierarchical_attention has first derivatives only")


torch.library.register_autograd("zoo::hierarchical_attention", _backward, setup_context=_setup_context)
torch.library.register_autograd("zoo::hierarchical_attention_backward", _no_second_derivative)
