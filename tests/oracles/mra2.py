from __future__ import annotations

from torch import Tensor

from attention_zoo.selection import SelectsBlocks

from . import per_head
from .blocks import chosen_pairs, dense_mra2

SMALL = {"block_size": 8, "blocks_per_row": 2}
TINY = {"block_size": 2, "blocks_per_row": 1}


def expected_pairs(core: SelectsBlocks, q: Tensor, k: Tensor, mask: Tensor) -> list[tuple[int, int]]:
    """The choice for one head."""
    blocks = -(-core.seq_len // core.block_size)
    if core.budget == "length":
        blocks = sum(bool(mask[i : i + core.block_size].any()) for i in range(0, len(mask), core.block_size))
    return chosen_pairs(
        q,
        k,
        mask,
        block_size=core.block_size,
        budget=core.blocks_per_row * blocks,
        first_blocks=core.first_blocks,
        diagonal_blocks=core.diagonal_blocks,
    )


def dense(core: SelectsBlocks, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, coarse: bool = True) -> Tensor:
    def one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return dense_mra2(q, k, v, mask, expected_pairs(core, q, k, mask), core.block_size, coarse)

    return per_head(one, mask, q, k, v)
