from __future__ import annotations

import math

import torch
from torch import Tensor

from attention_zoo.scatterbrain import Scatterbrain

from . import per_head, softmax_rows
from .performer import log_kernel

SMALL = {"window": 10, "features": 8}
TINY = {"window": 3, "features": 2}


def in_window(length: int, window: int) -> Tensor:
    """(N, N) bool: whether key j is in the window of query i."""
    half = window // 2
    return torch.tensor([[i - half <= j < i - half + window for j in range(length)] for i in range(length)])


def dense(core: Scatterbrain, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    directions = core.directions.to(q.dtype)
    both = torch.cat([directions, -directions])  # exp(w.x) and exp(-w.x)

    def one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        exact = q @ k.T / math.sqrt(q.shape[1])
        logits = torch.where(in_window(len(q), core.window), exact, log_kernel(q, k, both))
        return softmax_rows(logits.masked_fill(~mask, -math.inf), v)

    return per_head(one, mask, q, k, v)
