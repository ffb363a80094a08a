from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .base import Attention, whole
from .functional import orthogonal_features
from .ops.precision import LN2

# Features of one part of the heads: on a CPU about its cache.
PART = {"cpu": 2**20}


class Performer(Attention):
    """FAVOR+: exp(q.k / sqrt(D)) is estimated by a product of positive random features of q and of k.

    With x' = x / D^(1/4) and random w_m: E exp(w_m.q' - |q'|^2/2) exp(w_m.k' - |k'|^2/2) = exp(q'.k').
    Choromanski et al., "Rethinking Attention with Performers", 2020. https://arxiv.org/abs/2009.14794
    Cost O(N M D) for M features. Deviations: the features, orthogonal and one set for all heads, are drawn once and not
    again, as in the published LRA runs; each feature of the keys has a stabiliser of its own, and nothing is added.
    No exact limit: an estimate by random features, whose error falls as 1/sqrt(M).
    """

    directions: Tensor

    def __init__(self, heads: int, head_dim: int, seq_len: int, *, features: int = 256) -> None:
        super().__init__(heads, head_dim, seq_len)
        self.features = whole("features", features, least=1)
        self.register_buffer("directions", orthogonal_features(features, head_dim))  # (M, D)

    def kernel(self, device: torch.device) -> str:
        return "reference"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            directions = self.directions.to(dtype) * (self.head_dim**-0.25 / LN2)
            pads = None if mask is None else ~mask.repeat_interleave(self.heads, 0)[:, :, None]  # (G, N, 1), G = B H
            heads = (x.to(dtype).flatten(0, 1) for x in (q, k, v))
            out, *_ = torch.ops.zoo.linear_attention(*heads, pads, directions)
            return out.unflatten(0, (-1, self.heads)).to(v.dtype)


torch.library.define(
    "zoo::linear_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor? pads, Tensor directions)"
    " -> (Tensor out, Tensor total, Tensor top, Tensor largest, Tensor sums)",
)


@torch.library.impl("zoo::linear_attention", "CompositeExplicitAutograd")
def _forward(q: Tensor, k: Tensor, v: Tensor, pads: Tensor | None, directions: Tensor) -> tuple[Tensor, ...]:
    """q, k, v (G, N, D), pads (G, N, 1) bool or None, directions (M, D) for base-2 exponents -> out (G, N, D).

    A few heads at a time, so that their features (N, M) stay in a CPU's cache; the backward computes them again.
    With a_im = w_m.q', b_jm = w_m.k' - |k'|^2/2 and c_m = max_j b_jm over the real keys, query i weighs feature m by
    exp(a_im + c_m - max_m) and the sums of feature m are those of exp(b_jm - c_m). What is subtracted cancels, |q'|^2/2
    too. Each normaliser has a term of at least 1: the best feature weighs 1, and its largest key 1.
    """
    out, total, top, largest, sums = _fake(q, k, v, pads, directions)
    norms = _half_norms(k, pads)
    for part in _parts(q, directions):
        weights = _logits(norms[part], k[part], directions)
        most = weights.amax(1, keepdim=True)
        largest[part] = most = most.masked_fill(most == -math.inf, 0.0)
        weights.sub_(most).exp2_()
        sums[part] = summed = weights.mT @ torch.cat([v[part], torch.ones_like(norms[part])], -1)  # (g, M, D + 1)

        weights = _logits(most, q[part], directions)
        top[part] = best = weights.amax(-1, keepdim=True)
        mixed = weights.sub_(best).exp2_() @ summed  # (g, N, D + 1)
        # Below 1 only where no key is real.
        total[part] = normaliser = mixed[..., -1:].clamp(min=1.0)
        out[part] = mixed[..., :-1] / normaliser
    return out, total, top, largest, sums


@torch.library.register_fake("zoo::linear_attention")
def _fake(q: Tensor, k: Tensor, v: Tensor, pads: Tensor | None, directions: Tensor) -> tuple[Tensor, ...]:
    heads, length, dim = q.shape
    features = len(directions)
    shapes = (
        (heads, length, dim),
        (heads, length, 1),
        (heads, length, 1),
        (heads, 1, features),
        (heads, features, dim + 1),
    )
    return tuple(q.new_empty(shape) for shape in shapes)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output)


def _backward(ctx: Any, d_out: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        raise NotImplementedError("zoo::linear_attention has first derivatives only")
    q, k, v, pads, directions, out, total, top, largest, sums = ctx.saved_tensors
    d_q, d_k, d_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    with torch.autocast(q.device.type, enabled=False):
        norms = _half_norms(k, pads)
        d_mixed = d_out / total
        d_mixed = torch.cat([d_mixed, -(d_mixed * out).sum(-1, keepdim=True)], -1)  # (G, N, D + 1)
        natural = directions * LN2

        for part in _parts(q, directions):
            weights = _logits(largest[part], q[part], directions).sub_(top[part]).exp2_()
            d_sums = weights.mT @ d_mixed[part]  # (g, M, D + 1)
            d_q[part] = (d_mixed[part] @ sums[part].mT).mul_(weights) @ natural

            weights = _logits(norms[part], k[part], directions).sub_(largest[part]).exp2_()
            d_v[part] = weights @ d_sums[..., :-1]
            d_logits = torch.baddbmm(d_sums[..., -1:].mT, v[part], d_sums[..., :-1].mT).mul_(weights)
            d_k[part] = d_logits @ natural - d_logits.sum(-1, keepdim=True) * k[part] / math.sqrt(k.shape[-1])
    return d_q, d_k, d_v, None, None


torch.library.register_autograd("zoo::linear_attention", _backward, setup_context=_setup_context)


def _parts(x: Tensor, directions: Tensor) -> Iterator[slice]:
    """Split the heads of x (G, N, D)."""
    step = max(1, PART.get(x.device.type, 2**26) // (x.shape[1] * len(directions)))
    for start in range(0, x.shape[0], step):
        yield slice(start, start + step)


def _half_norms(k: Tensor, pads: Tensor | None) -> Tensor:
    """(G, N, 1) -|k'|^2 / 2 in base 2, -inf at pads."""
    norms = k.square().sum(-1, keepdim=True) * (-0.5 / (math.sqrt(k.shape[-1]) * LN2))
    return norms if pads is None else norms.masked_fill(pads, -math.inf)


def _logits(start: Tensor, x: Tensor, directions: Tensor) -> Tensor:
    """(g, N, M) start + directions.x, base 2."""
    return torch.baddbmm(start, x, directions.T.expand(len(x), -1, -1))
