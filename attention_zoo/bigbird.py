from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Attention, whole
from .functional import block_counts
from .ops import kernels
from .ops.block_sparse import attend_pairs


class BigBird(Attention):
    """Softmax attention over blocks of tokens: those around the query's, a few random ones, the first and the last.

    Zaheer et al., "Big Bird: Transformers for Longer Sequences", 2020, its block version with internal global tokens.
    https://arxiv.org/abs/2007.14062
    Cost O(N block_size (window_blocks + 2 global_blocks + random_blocks) D + N global_blocks block_size D).
    Deviations: the last global blocks are the last of the example that hold real tokens, not of the padded input. The
    random blocks are drawn once, over the whole of seq_len, and are the same in training and evaluation: of the blocks
    that a query block may draw, it takes those of an example that come first in an order of its own and its head's.

    block_size      tokens per block
    window_blocks   key blocks around each query block, itself included: an odd number
    global_blocks   blocks at either end of an example that attend to all blocks and that all blocks attend to
    random_blocks   further key blocks for each other query block, neither global nor in its window
    """

    order: Tensor

    def __init__(
        self,
        heads: int,
        head_dim: int,
        seq_len: int,
        *,
        block_size: int = 32,
        window_blocks: int = 3,
        global_blocks: int = 1,
        random_blocks: int = 2,
    ) -> None:
        super().__init__(heads, head_dim, seq_len)
        self.block_size = whole("block_size", block_size, least=1)
        self.window_blocks = whole("window_blocks", window_blocks, least=1)
        if window_blocks % 2 == 0:
            raise ValueError(f"window_blocks={window_blocks} must be odd")
        self.global_blocks = whole("global_blocks", global_blocks, least=0)
        self.random_blocks = whole("random_blocks", random_blocks, least=0)
        count = -(-self.seq_len // self.block_size)
        # The rank of every key block for every query block of every head: a permutation in each row.
        self.register_buffer("order", torch.rand(heads, count, count).argsort(-1).int())  # (H, K, K)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, _, length, _ = q.shape
        if mask is None:
            real = torch.ones(1, -(-length // self.block_size), dtype=torch.bool, device=q.device)
        else:
            real = block_counts(mask, self.block_size) > 0
        pairs = self.select(real)  # (B or 1, H, P, 2)
        return attend_pairs(q, k, v, mask, pairs.expand(batch, -1, -1, -1), self.block_size)

    @classmethod
    def exact_limit(cls, seq_len: int) -> dict[str, int]:
        return {"window_blocks": 2 * seq_len + 1}

    def kernel(self, device: torch.device) -> str:
        return kernels.name(device, self.block_size, self.head_dim)

    def select(self, real: Tensor) -> Tensor:
        """The pattern of examples whose blocks `real` (B, K) hold real tokens: (B, H, P, 2) int64, sorted by query
        block, empty pairs (K, 0) at the end. P depends on K alone."""
        batch, count = real.shape
        block = torch.arange(count, device=real.device)
        ends, is_end = self._ends(real)  # (B, E): K is no block; (B, K)
        inner = (real & ~is_end)[:, :, None]  # (B, K, 1)

        reach = min(self.window_blocks // 2, count - 1)
        near = block[:, None] + torch.arange(-reach, reach + 1, device=real.device)  # (K, W)
        outer = F.pad(inner[:, :, 0], (reach, reach)).unfold(1, 2 * reach + 1, 1)  # (B, K, W): no end, and it exists
        window = torch.where(inner & outer, near, count)

        drawn = min(self.random_blocks, count)
        far = inner & inner.mT & ((block[:, None] - block).abs() > reach)  # (B, K, K)
        order = self.order[:, :count, :count].masked_fill(~far[:, None], self.order.shape[-1])
        rank, random = order.topk(drawn, largest=False)  # (B, H, K, random_blocks)
        random = torch.where(rank < self.order.shape[-1], random, count)

        def place(query: Tensor, key: Tensor) -> Tensor:
            """(B, H, ...) x K + y for every pair of blocks (x, y), K^2 where one of them is K."""
            places = torch.where((query < count) & (key < count), query * count + key, count**2)
            places = places if places.dim() == 4 else places[:, None].expand(-1, self.heads, -1, -1)
            return places.flatten(2)

        row, rows = block[:, None], torch.where(real, block, count)
        from_inner = torch.where(inner, row, count)
        chosen = [
            place(row, window),
            place(row, random),
            place(from_inner, ends[:, None, :]),
            place(ends[:, :, None], rows[:, None, :]),
        ]
        places = torch.cat(chosen, -1).sort(-1).values  # (B, H, P)
        return torch.stack([places // count, places % count], -1)

    def _ends(self, real: Tensor) -> tuple[Tensor, Tensor]:
        """The global blocks (B, E), K where there are fewer, and which blocks are global (B, K)."""
        count = real.shape[1]
        rank = real.cumsum(-1)
        last = rank[:, -1:]
        is_end = real & ((rank <= self.global_blocks) | (rank > last - self.global_blocks))
        block = torch.where(is_end, torch.arange(count, device=real.device), count)
        return block.topk(min(2 * self.global_blocks, count), largest=False).values, is_end
