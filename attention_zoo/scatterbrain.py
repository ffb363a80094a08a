from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .base import Attention, whole
from .functional import orthogonal_features
from .ops.precision import LN2

SHORTEST = 32  # tokens of a block, at least
GROUP = 16  # blocks that a triangular matrix sums at once
# Features and weights of one part of the heads: on a CPU about its cache.
PART = {"cpu": 2**20}


class Scatterbrain(Attention):
    """Softmax in a local window; outside it, exp(q.k / sqrt(D)) is estimated by random features, phi(q).phi(k).

    One normaliser for both. The window of query i is [i - floor(window / 2), i - floor(window / 2) + window). With
    x' = x / D^(1/4), phi(x) = [exp(w_m.x'), exp(-w_m.x')] exp(-|x'|^2 / 2) / sqrt(M), for M / 2 random w_m.
    Chen et al., "Scatterbrain: Unifying Sparse and Low-rank Attention Approximation", 2021.
    https://arxiv.org/abs/2110.15343
    Cost O(N (M + window) D + N M window). Deviations: the sparse part is a local window, as in the published LRA runs,
    not chosen by hashing; the estimates inside the window are never added, instead of added and subtracted again; the
    features, orthogonal and one set for all heads, are drawn once and not again.
    """

    directions: Tensor

    def __init__(
        self, heads: int, head_dim: int, seq_len: int, *, features: int | None = None, window: int = 64
    ) -> None:
        """features M: an even number; None is D ln D, rounded down to an even number of at least 2."""
        super().__init__(heads, head_dim, seq_len)
        if features is None:
            features = max(2, 2 * int(head_dim * math.log(head_dim) / 2))
        if whole("features", features, least=2) % 2:
            raise ValueError(f"features={features} must be even")
        self.features = features
        self.window = whole("window", window, least=1)
        self.register_buffer("directions", orthogonal_features(features // 2, head_dim))  # (M / 2, D)

    @classmethod
    def exact_limit(cls, seq_len: int) -> dict[str, int]:
        return {"window": 2 * seq_len}

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, dim = q.shape
        dtype = torch.promote_types(q.dtype, torch.float32)
        if mask is None:
            mask = torch.ones(batch, length, dtype=torch.bool, device=q.device)
        # Blocks so long that the window of a query lies in its own and the two beside it.
        size = min(max(self.window // 2, SHORTEST), length)
        missing = -length % size
        real = F.pad(mask, (0, missing)).unflatten(1, (-1, size)).repeat_interleave(heads, 0)  # (G, K, size), G = B H
        qs, ks, vs = (F.pad(x.to(dtype).flatten(0, 1), (0, 0, 0, missing)).unflatten(1, (-1, size)) for x in (q, k, v))
        with torch.autocast(q.device.type, enabled=False):
            values = torch.cat([vs, torch.ones_like(vs[..., :1])], -1)  # the ones add up to the normaliser
            blocked = (qs * dim**-0.25, ks * dim**-0.25, values, real)
            # A few heads at a time, computed again in the backward, so that features and weights are not kept.
            step = max(1, PART.get(q.device.type, 2**26) // (real[0].numel() * (self.features + 3 * size)))
            parts = list(zip(*(x.split(step) for x in blocked), strict=True))
            if len(parts) == 1:
                mixed = self._mix(*blocked)  # (G, K, size, D + 1)
            else:
                again = partial(checkpoint, self._mix, use_reentrant=False, preserve_rng_state=False)
                mixed = torch.cat([again(*part) for part in parts])
            # Each real query has a weight of 1 in its normaliser.
            out = mixed[..., :dim] / mixed[..., dim:].clamp(min=0.5)
        return out.flatten(1, 2)[:, :length].unflatten(0, (batch, heads)).to(v.dtype)

    def _mix(self, q: Tensor, k: Tensor, values: Tensor, real: Tensor) -> Tensor:
        """q, k scaled (G, K, size, D), values (G, K, size, D + 1), real (G, K, size) -> (G, K, size, D + 1)."""
        size, reach = q.shape[2], self.window // 2
        offset = torch.arange(-size, 2 * size, device=q.device) - torch.arange(size, device=q.device)[:, None]
        inside = (offset >= -reach) & (offset < self.window - reach)  # (size, 3 size)
        near_values = torch.cat(_three(values), 2)  # (G, K, 3 size, D + 1)

        # Inside: softmax with a maximum of its own.
        logits = (q / LN2) @ torch.cat(_three(k.mT.contiguous()), 3)  # (G, K, size, 3 size)
        seen = inside & torch.cat(_three(real), 2)[:, :, None, :]
        logits = logits.masked_fill_(~seen, -math.inf)
        exact_top = logits.detach().amax(-1, keepdim=True)
        exact = logits.sub_(_finite(exact_top)).exp2_() @ near_values  # (G, K, size, D + 1)

        # Outside: each feature of the keys, and each query's features, with a maximum of their own.
        directions = self.directions.to(q.dtype)
        directions = torch.cat([directions, -directions]).T / LN2  # (D, M)
        norms = k.square().sum(-1, keepdim=True) / (2 * LN2)
        of_keys = (k @ directions).sub_(norms.masked_fill(~real[..., None], math.inf))  # (G, K, size, M)
        largest = _finite(of_keys.detach().amax((1, 2), keepdim=True))
        of_keys = of_keys.sub_(largest).exp2_().mT.contiguous()  # (G, K, M, size)
        of_queries = (q @ directions).add_(largest)  # (G, K, size, M)
        top = of_queries.detach().amax(-1, keepdim=True)
        of_queries = of_queries.sub_(top).exp2_()
        estimate = of_queries @ _two_away(of_keys @ values)  # (G, K, size, D + 1)
        for n, (keys, beside, exactly) in enumerate(
            zip(_three(of_keys), near_values.split(size, 2), inside.split(size, 1), strict=True)
        ):
            if n != 1 or size > self.window - reach:
                estimate = estimate + (of_queries @ keys).masked_fill_(exactly, 0.0) @ beside

        # phi(q).phi(k) = 2^estimate_top * its sum.
        norms = q.square().sum(-1, keepdim=True) / (2 * LN2)
        estimate_top = top - math.log2(self.features) - norms
        # Nothing is outside, or all of it is 2^-120 of an estimate inside: beside its exact logit, too, it is nothing,
        # for an unbiased positive estimate is hardly ever much larger than the truth (Markov's inequality).
        amount = estimate.detach()[..., -1:]
        estimate_top = estimate_top.masked_fill(amount < 64 * torch.finfo(amount.dtype).tiny, -math.inf)
        best = _finite(torch.maximum(exact_top, estimate_top.detach() + amount.log2()))
        return exact * (exact_top - best).exp2() + estimate * (estimate_top - best).exp2()


def _three(x: Tensor) -> list[Tensor]:
    """x (G, K, ...) moved by one block: the block before each block, the block itself, and the block after it."""
    beyond = torch.zeros_like(x[:, :1])
    return [torch.cat([beyond, x[:, :-1]], 1), x, torch.cat([x[:, 1:], beyond], 1)]


def _two_away(x: Tensor) -> Tensor:
    """x (G, K, M, D): for each block, the sum over the blocks at least two before it or two after it."""
    count = x.shape[1]
    # Running sums from both ends: within groups of blocks by a triangular matrix, then over the groups.
    groups = F.pad(x.flatten(2), (0, 0, 0, -count % GROUP)).unflatten(1, (-1, GROUP))  # (G, K / GROUP, GROUP, M D)
    lower = torch.ones(GROUP, GROUP, dtype=x.dtype, device=x.device).tril()
    upto, since = lower @ groups, lower.mT @ groups
    upto = upto + F.pad(upto[:, :-1, -1:].cumsum(1), (0, 0, 0, 0, 1, 0))
    since = since + F.pad(since[:, 1:, :1].flip(1).cumsum(1).flip(1), (0, 0, 0, 0, 0, 1))
    upto, since = upto.flatten(1, 2)[:, : max(0, count - 2)], since.flatten(1, 2)[:, 2:count]
    return (F.pad(upto, (0, 0, 2, 0))[:, :count] + F.pad(since, (0, 0, 0, 2))[:, :count]).unflatten(2, x.shape[2:])


def _finite(x: Tensor) -> Tensor:
    return x.masked_fill(x == -math.inf, 0.0)
