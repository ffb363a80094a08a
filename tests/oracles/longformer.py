from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.longformer import Longformer

from . import masked_attention, per_head

SMALL = {"window": 8}
TINY = {"window": 2}


def pattern(core: Longformer, mask: Tensor) -> Tensor:
    """(N, N) bool: who sees whom in one example; mask (N,)."""
    real = [i for i in range(len(mask)) if mask[i]]
    first = real[: core.global_tokens]
    allowed = torch.zeros(len(mask), len(mask), dtype=torch.bool)
    for i in real:
        for j in real:
            allowed[i, j] = abs(i - j) <= core.window / 2 or i in first or j in first
    return allowed


def dense(core: Longformer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return per_head(lambda q, k, v, mask: masked_attention(q, k, v, pattern(core, mask)), mask, q, k, v)
