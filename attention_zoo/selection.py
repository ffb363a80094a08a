"""Which (query block, key block) pairs to compute exactly: MRA's choice, shared by its variants."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Attention, whole
from .functional import block_counts, real_blocks
from .ops import kernels
from .ops.block_choice import block_logits, choose_blocks

BUDGETS = ("seq_len", "length")


class SelectsBlocks(Attention):
    """An attention that computes the most promising block pairs exactly.

    block_size       tokens per block
    blocks_per_row   pairs per head, as a mean over the query blocks; a query block always gets its best key block
    first_blocks     the first so many query blocks and key blocks are always chosen, as long as the budget lasts
    diagonal_blocks  the same for pairs of blocks at most floor(diagonal_blocks / 2) apart, if it is not 0
    budget           "seq_len": blocks_per_row x the blocks of seq_len, whatever the input's length (as published);
                     "length": blocks_per_row x the blocks of the example that hold real tokens
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        seq_len: int,
        *,
        block_size: int = 32,
        blocks_per_row: int = 8,
        first_blocks: int = 0,
        diagonal_blocks: int = 0,
        budget: str = "seq_len",
    ) -> None:
        super().__init__(heads, head_dim, seq_len)
        self.block_size = whole("block_size", block_size, least=1)
        self.blocks_per_row = whole("blocks_per_row", blocks_per_row, least=0)
        self.first_blocks = whole("first_blocks", first_blocks, least=0)
        self.diagonal_blocks = whole("diagonal_blocks", diagonal_blocks, least=0)
        if budget not in BUDGETS:
            raise ValueError(f"budget={budget!r} is not one of {', '.join(BUDGETS)}")
        self.budget = budget

    @classmethod
    def exact_limit(cls, seq_len: int) -> dict[str, int]:
        return {"blocks_per_row": seq_len}

    def kernel(self, device: torch.device) -> str:
        return kernels.name(device, self.block_size, self.head_dim)

    def share(self, mask: Tensor) -> Tensor:
        """(B,) the share of an example's real block pairs that fits the budget; mask (B, N). 0 where nothing is real.

        Pairs beyond the budget, chosen because a query block would have none, are not counted.
        """
        blocks = (block_counts(mask, self.block_size) > 0).sum(-1)
        return torch.minimum(self._pairs(blocks), blocks**2) / (blocks**2).clamp(min=1)

    def _pairs(self, blocks: Tensor) -> Tensor:
        """The budget of examples with so many real blocks."""
        if self.budget == "length":
            return self.blocks_per_row * blocks
        return torch.full_like(blocks, self.blocks_per_row * -(-self.seq_len // self.block_size))

    def _misses_rows(self) -> bool:
        """Whether the forced pairs can leave less of the budget than one pair for each query block."""
        diagonals = 2 * (self.diagonal_blocks // 2) + 1 if self.diagonal_blocks else 0
        return self.blocks_per_row <= 2 * self.first_blocks + diagonals

    @torch.no_grad()
    def choose(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """Choose the block pairs of every head: (B, H, P, 2) int64, sorted, empty pairs (K, 0) at the end.

        For queries and keys (B, H, N, D), mask (B, N). `ops/block_choice.py` says in which order pairs are chosen.
        """
        logits = block_logits(q, k, mask, self.block_size)  # (B, H, K, K)
        count = logits.shape[-1]
        whole = self.blocks_per_row * -(-self.seq_len // self.block_size)
        real = None if mask is None else real_blocks(mask, self.block_size)  # (B, K)
        # A plain number where all examples share it: on a GPU each step of so little work costs the same.
        budget: Tensor | int = whole
        if self.budget == "length":
            budget = self.blocks_per_row * (count if real is None else real.sum(-1))  # (B,)
        forced = self.first_blocks, self.diagonal_blocks
        return choose_blocks(logits, real, budget, min(whole, count**2), *forced, fill=self._misses_rows())
