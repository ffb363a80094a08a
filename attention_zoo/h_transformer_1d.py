from __future__ import annotations

import torch
from torch import Tensor

from .base import Attention, whole
from .ops.hierarchical import hierarchical_attention


class HTransformer1D(Attention):
    """H-Transformer-1D: softmax attention to single tokens nearby and to means of ever more tokens farther away.

    Level l has groups of 2^l consecutive tokens, in blocks of block_size groups. At level 0 a block attends itself and
    its two neighbours, exactly. At each level above it attends its neighbours, without the pairs of half blocks that
    the level below has covered: every pair of tokens is weighed at one level, and all groups share one softmax.

    Zhu & Soricut, "H-Transformer-1D: Fast One-Dimensional Hierarchical Attention for Sequences", 2021.
    https://arxiv.org/abs/2107.11906
    Cost O(N block_size D) time, O(N (block_size + D)) memory.
    Deviations from the authors' code: a group's query and key are the means of its real tokens, not of its halves'
    means; a maximum is subtracted from each row, not from each head; the length need not be a power of 2. The port
    behind the MRA paper's numbers has another partition, sibling blocks only.
    """

    def __init__(self, heads: int, head_dim: int, seq_len: int, *, block_size: int = 16) -> None:
        """block_size: groups in a block, an even number, so that a block has halves."""
        super().__init__(heads, head_dim, seq_len)
        self.block_size = whole("block_size", block_size, least=2)
        if block_size % 2 == 1:
            raise ValueError(f"block_size={block_size} must be even")

    @classmethod
    def exact_limit(cls, seq_len: int) -> dict[str, int]:
        return {"block_size": seq_len + seq_len % 2}

    def kernel(self, device: torch.device) -> str:
        return "reference"

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return hierarchical_attention(q, k, v, mask, self.block_size)
