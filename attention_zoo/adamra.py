from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Attention, whole

COMPRESSIONS = ("mean", "convolution")
FEATURE_MAPS = ("elu", "relu", "softmax")
ROUTINGS = ("soft", "hard")

# relu alone can leave a query without a positive feature, and so without weights.
RELU_FLOOR = 1e-3


class AdaMRA(Attention):
    """AdaMRA: linear attention to memories of several resolutions; each query decides which of them it reads.

    Zhang et al., "Adaptive Multi-Resolution Attention with Linear Complexity", 2021. https://arxiv.org/abs/2108.04962
    From its abstract: heads of coarse to fine resolution, kernel attention, and the query's choice of the resolution.
    Deviations: the full text could not be read, so everything else is our reading. Head r compresses each rates[r]
    consecutive keys and values to one and keeps the memory M_r = sum phi(k) v^T, z_r = sum phi(k), where a compressed
    token counts as often as it has real tokens. With p = softmax(W q) over the heads' memories, a query q of any head
    gets sum_r p_r phi(q) M_r / phi(q) z_r.
    Cost O(N H^2 D^2). No exact limit: a product of feature maps is not exp(q.k), at whatever rates.
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        seq_len: int,
        *,
        rates: Sequence[int] | None = None,
        compression: str = "mean",
        feature_map: str = "elu",
        routing: str = "soft",
    ) -> None:
        """rates        tokens that become one, for each head; None: 1, 4, 16, ..., at most seq_len
        compression  "mean", or "convolution": learned weights of the places, for each channel, at first the mean
        feature_map  phi: "elu" + 1, "relu" + 0.001, or "softmax" over the channels
        routing      "soft": all memories, mixed by p; "hard": the likeliest one, with the gradient of the mixture
        """
        super().__init__(heads, head_dim, seq_len)
        if rates is None:
            rates = [min(4**head, seq_len) for head in range(heads)]
        if not isinstance(rates, Sequence) or len(rates) != heads:
            raise ValueError(f"rates={rates!r} must be a list with one entry for each of heads={heads}")
        self.rates = [whole("rates", rate, least=1) for rate in rates]
        for name, value, known in (
            ("compression", compression, COMPRESSIONS),
            ("feature_map", feature_map, FEATURE_MAPS),
            ("routing", routing, ROUTINGS),
        ):
            if value not in known:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(known)}")
        self.feature_map = feature_map
        self.routing = routing
        self.normalised = compression == "mean"
        self.surrogate_gradient = routing == "hard"
        self.router = nn.Parameter(torch.empty(heads, head_dim).uniform_(-1, 1) * head_dim**-0.5)
        # (2, rate, D) for each head: of its keys and of its values. A convolution of one token is a scale.
        self.filters = nn.ParameterList(
            [torch.full((2, rate, head_dim), 1 / rate) for rate in self.rates] if compression == "convolution" else []
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        if mask is None:
            mask = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool, device=q.device)
        with torch.autocast(q.device.type, enabled=False):
            memories = [self.memory(k[:, r].to(dtype), v[:, r].to(dtype), mask, r) for r in range(self.heads)]
            values = torch.cat([m for m, _ in memories], 1)[:, None]  # (B, 1, R D, D)
            totals = torch.stack([z for _, z in memories], -1)[:, None]  # (B, 1, D, R)

            features = self.features(q.to(dtype))  # (B, H, N, D)
            total = features @ totals  # (B, H, N, R)
            empty = total < torch.finfo(dtype).tiny
            share = (self.route(q.to(dtype)) / total.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)
            spread = (share[..., None] * features[..., None, :]).flatten(3)  # (B, H, N, R D)
            out = spread @ values  # (B, H, N, D)
        return out.to(v.dtype)

    def route(self, q: Tensor) -> Tensor:
        """(B, H, N, R): the share of each memory in the output of each query."""
        p = (q @ self.router.to(q.dtype).mT).softmax(-1)
        if self.routing == "soft":
            return p
        chosen = torch.zeros_like(p).scatter(-1, p.argmax(-1, keepdim=True), 1.0)
        return chosen + (p - p.detach())

    def memory(self, k: Tensor, v: Tensor, mask: Tensor, head: int) -> tuple[Tensor, Tensor]:
        """One head's M (B, D, D) and z (B, D); its keys and values k, v (B, N, D), mask (B, N)."""
        rate = self.rates[head]
        missing = -k.shape[1] % rate
        mask, k, v = F.pad(mask, (0, missing)), F.pad(k, (0, 0, 0, missing)), F.pad(v, (0, 0, 0, missing))
        counts = mask.unflatten(1, (-1, rate)).sum(2, dtype=k.dtype)[..., None]  # (B, M, 1)
        k, v = k.unflatten(1, (-1, rate)), v.unflatten(1, (-1, rate))  # (B, M, rate, D)
        if self.filters:
            of_keys, of_values = rate * self.filters[head].to(k.dtype)
            k, v = k * of_keys, v * of_values
        k, v = k.sum(2) / counts.clamp(min=1), v.sum(2) / counts.clamp(min=1)  # (B, M, D)
        features = counts * self.features(k)
        return features.mT @ v, features.sum(1)

    def features(self, x: Tensor) -> Tensor:
        """phi, never negative."""
        if self.feature_map == "elu":
            return x.clamp(max=0).exp() + F.relu(x)  # elu + 1, exact where it is small
        if self.feature_map == "relu":
            return F.relu(x) + RELU_FLOOR
        return x.softmax(-1)
