from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from attention_zoo.yoso import YOSO

# Few signs: every query of the laws then collides with some key.
SMALL = {"hashes": 16, "bits": 1}
TINY = {"hashes": 16, "bits": 2}


class Weighted(torch.autograd.Function):
    """weights @ v, with the paper's derivative of a weight by the cosine of its angle: slope * weight."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, weights: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(q, k, v, weights)
        ctx.slope = slope
        return weights @ v

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        by_cosine = ctx.slope * weights * (upstream @ v.T)
        return by_cosine @ k, by_cosine.T @ q, weights.T @ upstream, None, None


def collisions(q: Tensor, k: Tensor, directions: Tensor, hashes: int, bits: int) -> Tensor:
    """(N, N) the share of hash functions under which query i and key j agree in all signs; directions (D, signs)."""
    share = q.new_zeros(len(q), len(k))
    for hash_function in directions.to(q.dtype).split(bits, dim=1):
        q_signs, k_signs = q @ hash_function > 0, k @ hash_function > 0
        share += (q_signs[:, None] == k_signs[None, :]).all(-1) / hashes
    return share


def dense_head(core: YOSO, head: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    q, k = (x / x.norm(dim=1, keepdim=True) for x in (q, k))
    if core.expectation:
        weights = (1 - torch.acos((q @ k.T).detach().clamp(-1, 1)) / math.pi) ** core.bits
    else:
        weights = collisions(q.detach(), k.detach(), core.directions[head], core.hashes, core.bits)
    mixed = Weighted.apply(q, k, v, weights * mask, core.bits / 2)
    return mixed / mixed.norm(dim=1, keepdim=True)


def dense(core: YOSO, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    rows = []
    for b in range(len(q)):
        rows.append(torch.stack([dense_head(core, h, q[b, h], k[b, h], v[b, h], mask[b]) for h in range(core.heads)]))
    return torch.stack(rows)
