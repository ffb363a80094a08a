"""Softmax attention over a window around each token and over a few keys that all queries see, in O(N) memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .precision import LN2


def local_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_global: Tensor,
    v_global: Tensor,
    seen: Tensor,
    seen_global: Tensor,
    *,
    half: int,
) -> Tensor:
    """(B, H, N, D): query i over the keys j with |i - j| <= half and over the global keys, in one softmax.

    q, k, v (B, H, N, D), k_global, v_global (B, H, G, D), G may be 0, in float32 or float64; seen (B, N) and
    seen_global (B, G) bool: the keys that count. A query without a key gets 0. Only first derivatives exist.
    """
    heads = q.shape[1]
    keep, keep_global = (
        q.new_zeros(x.shape).masked_fill_(~x, -math.inf).repeat_interleave(heads, 0) for x in (seen, seen_global)
    )
    out = _Local.apply(*(x.flatten(0, 1) for x in (q, k, v, k_global, v_global)), keep, keep_global, half)
    return out.unflatten(0, (-1, heads))


class _Tiles(NamedTuple):
    """Windows as one batch of matrices: tiles of `size` queries by `size` + 2 `half` keys, T for some heads.

    A head's N rows are followed by empty ones, up to R in all, so that the window of its last tile ends before the
    next head begins; its keys stand `half` rows down. So across all heads the window of tile t begins at row t `size`.
    The tiles of the empty rows are computed, but count for nothing.
    """

    length: int
    half: int
    size: int
    tail: int

    @classmethod
    def of(cls, length: int, half: int) -> _Tiles:
        half = min(half, length - 1)
        size = min(max(half, 32), length)
        return cls(length, half, size, tail=-(-2 * half // size))

    @property
    def rows(self) -> int:
        return (-(-self.length // self.size) + self.tail) * self.size

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """(G, N, C) -> (G, R, C)"""
        return F.pad(x, (0, 0, 0, self.rows - self.length), value=value)

    def split(self, x: Tensor) -> Tensor:
        """(G, R, C) -> (T, size, C), a view; the last head goes without its empty tiles, whose windows end nowhere."""
        count = len(x) * self.rows // self.size
        return x.view(count, self.size, x.shape[-1])[: count - self.tail]

    def windows(self, x: Tensor, value: float = 0.0) -> Tensor:
        """(G, N, C) -> (T, C, size + 2 half), a view of the padded rows"""
        x = F.pad(x, (0, 0, self.half, self.rows - self.length - self.half), value=value)
        return x.view(-1, x.shape[-1]).unfold(0, self.size + 2 * self.half, self.size)

    def fold(self, x: Tensor, heads: int) -> Tensor:
        """(T, size + 2 half, C) -> (G, N, C): a row's sum over all windows that hold it."""
        total = x.new_zeros(heads, self.rows, x.shape[-1])
        tiles = total.view(-1, self.size, x.shape[-1])
        for shift, part in enumerate(x.split(self.size, 1)):
            tiles[shift : shift + len(x), : part.shape[1]] += part
        return total[:, self.half : self.half + self.length]

    def parts(self, q: Tensor) -> Iterator[slice]:
        """Split the heads so that the logits of one part stay in a CPU's cache."""
        elements = 2**20 if q.device.type == "cpu" else 2**28
        step = max(1, elements // (self.rows * (self.size + 2 * self.half)))
        for start in range(0, len(q), step):
            yield slice(start, min(start + step, len(q)))

    def logits(
        self, q: Tensor, k: Tensor, k_global: Tensor, keep: Tensor, keep_global: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The base-2 logits of the windows (T, size, size + 2 half) and of the global keys (G, R, G); q (G, R, D)."""
        scale = 1 / (LN2 * math.sqrt(q.shape[-1]))
        query = torch.arange(self.size, device=q.device)[:, None]
        ahead = torch.arange(self.size + 2 * self.half, device=q.device) - query  # from the start of a query's window
        band = q.new_zeros(ahead.shape).masked_fill_((ahead < 0) | (ahead > 2 * self.half), -math.inf)
        near = self.windows(keep[:, :, None], -math.inf) + band
        near.baddbmm_(self.split(q), self.windows(k), alpha=scale)
        return near, torch.baddbmm(keep_global[:, None], q, k_global.mT, alpha=scale)


class _Local(torch.autograd.Function):
    """As `local_attention`, with all heads in one dimension and the keys' marks as 0 or -inf.

    With p = exp2(logit - log2_total), computed again in the backward: dv = p^T d_out, d_logit = p * (d_out v^T -
    d_out.out), d_q and d_k from it.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, k_global: Tensor, v_global: Tensor, *rest: Any) -> Tensor:
        keep, keep_global, half = rest
        heads, length, dim = q.shape
        tiles = _Tiles.of(length, half)
        out = q.new_empty(heads, tiles.rows, dim)
        log2_total = q.new_empty(heads, tiles.rows, 1)
        with torch.autocast(q.device.type, enabled=False):
            for g in tiles.parts(q):
                near, far = tiles.logits(tiles.pad(q[g]), k[g], k_global[g], keep[g], keep_global[g])
                some = tiles.split(far)  # (T, size, G)
                top = torch.cat([near.amax(-1, keepdim=True), some], -1).amax(-1, keepdim=True)  # (T, size, 1)
                top.masked_fill_(top == -math.inf, 0.0)
                near, some = near.sub_(top).exp2_(), some.sub_(top).exp2_()
                total = near.sum(-1, keepdim=True) + some.sum(-1, keepdim=True)

                out[g] = torch.bmm(far, v_global[g])
                mixed = tiles.split(out[g]).baddbmm_(near, tiles.windows(v[g]).mT)  # (T, size, D)
                mixed.mul_(torch.where(total > 0, 1 / total, 0.0))
                tiles.split(log2_total[g]).copy_(torch.where(total > 0, top + total.log2(), math.inf))
        out, log2_total = out[:, :length], log2_total[:, :length]
        ctx.half = half
        ctx.save_for_backward(q, k, v, k_global, v_global, keep, keep_global, out, log2_total)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, k_global, v_global, keep, keep_global, out, log2_total = ctx.saved_tensors
        tiles, scale = _Tiles.of(q.shape[1], ctx.half), 1 / math.sqrt(q.shape[-1])
        shift = (d_out * out).sum(-1, keepdim=True)
        d_q, d_k, d_v, d_k_global, d_v_global = (torch.empty_like(x) for x in (q, k, v, k_global, v_global))
        with torch.autocast(q.device.type, enabled=False):
            for g in tiles.parts(q):
                query, up, sub = tiles.pad(q[g]), tiles.pad(d_out[g]), tiles.pad(shift[g])
                # Of an empty row the total is inf, and so all its weights are 0.
                total = tiles.pad(log2_total[g], math.inf)
                near, far = tiles.logits(query, k[g], k_global[g], keep[g], keep_global[g])
                near, far = near.sub_(tiles.split(total)).exp2_(), far.sub_(total).exp2_()
                d_v[g] = tiles.fold(torch.bmm(near.mT, tiles.split(up)), len(query))
                d_v_global[g] = torch.bmm(far.mT, up)

                values, below = tiles.windows(v[g]), tiles.split(sub)
                near.mul_(torch.baddbmm(below, tiles.split(up), values, beta=-scale, alpha=scale))
                far.mul_(torch.baddbmm(sub, up, v_global[g].mT, beta=-scale, alpha=scale))
                of_query = torch.bmm(far, k_global[g])
                tiles.split(of_query).baddbmm_(near, tiles.windows(k[g]).mT)
                d_q[g] = of_query[:, : tiles.length]
                d_k[g] = tiles.fold(torch.bmm(near.mT, tiles.split(query)), len(query))
                d_k_global[g] = torch.bmm(far.mT, query)
        return d_q, d_k, d_v, d_k_global, d_v_global, None, None, None
