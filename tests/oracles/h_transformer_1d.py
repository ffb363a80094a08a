from __future__ import annotations

import math

import torch
from torch import Tensor

from attention_zoo.h_transformer_1d import HTransformer1D

from . import per_head, softmax_rows

SMALL = {"block_size": 4}
TINY = {"block_size": 2}


def level_of(i: int, j: int, block_size: int) -> int:
    """The first level at which the blocks of the tokens i and j are the same or neighbours."""
    level = 0
    while abs(i // (block_size << level) - j // (block_size << level)) > 1:
        level += 1
    return level


def group_means(x: Tensor, mask: Tensor, level: int) -> Tensor:
    """For each row of x (N, D) the mean over the real tokens of its group of 2^level tokens."""
    rows: list[Tensor] = []
    for start in range(0, len(x), 1 << level):
        group, real = x[start : start + (1 << level)], mask[start : start + (1 << level)]
        rows += [group[real].mean(0) if real.any() else 0.0 * x[0]] * len(group)
    return torch.stack(rows)


def dense(core: HTransformer1D, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    tokens = range(mask.shape[1])
    levels = torch.tensor([[level_of(i, j, core.block_size) for j in tokens] for i in tokens])

    def one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        logits = torch.full((len(mask), len(mask)), -math.inf, dtype=q.dtype)
        for level in range(int(levels.max()) + 1):
            coarse = group_means(q, mask, level) @ group_means(k, mask, level).T / math.sqrt(q.shape[1])
            logits = torch.where((levels == level) & mask, coarse, logits)
        return softmax_rows(logits, v)

    return per_head(one, mask, q, k, v)
