from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.bigbird import BigBird

from . import masked_attention
from .blocks import Pair, real_tokens

SMALL = {"block_size": 8, "random_blocks": 1}
TINY = {"block_size": 1, "random_blocks": 1}


def chosen_pairs(core: BigBird, head: int, mask: Tensor) -> list[Pair]:
    """The pairs of blocks of one example and head; mask (N,)."""
    alive = [x for x, tokens in enumerate(real_tokens(mask, core.block_size)) if tokens]
    ends = alive[: core.global_blocks] + alive[len(alive) - min(core.global_blocks, len(alive)) :]
    order = core.order[head].tolist()
    pairs = []
    for x in alive:
        near = [y for y in alive if abs(x - y) <= core.window_blocks // 2]
        far = sorted((y for y in alive if y not in near and y not in ends), key=lambda y: order[x][y])
        keys = alive if x in ends else near + ends + far[: core.random_blocks]
        pairs += [(x, y) for y in sorted(set(keys))]
    return pairs


def pattern(core: BigBird, head: int, mask: Tensor) -> Tensor:
    """(N, N) bool: who sees whom in one example and head; mask (N,)."""
    blocks = real_tokens(mask, core.block_size)
    allowed = torch.zeros(len(mask), len(mask), dtype=torch.bool)
    for x, y in chosen_pairs(core, head, mask):
        for i in blocks[x]:
            allowed[i, blocks[y]] = True
    return allowed


def dense(core: BigBird, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    rows = [
        [masked_attention(q[b, h], k[b, h], v[b, h], pattern(core, h, mask[b])) for h in range(core.heads)]
        for b in range(len(mask))
    ]
    return torch.stack([torch.stack(row) for row in rows])
