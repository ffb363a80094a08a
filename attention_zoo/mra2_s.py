from __future__ import annotations

from torch import Tensor

from .ops.block_sparse import attend_pairs
from .selection import SelectsBlocks


class MRA2S(SelectsBlocks):
    """MRA-2-s: softmax attention over the tokens of the selected block pairs alone.

    Zeng et al., "Multi Resolution Analysis (MRA) for Approximate Self-Attention", 2022. https://arxiv.org/abs/2207.10284
    Cost O(P block_size^2 D + K^2 D) for P selected pairs of K x K.
    Deviations from the authors' code: padding is excluded before every maximum and never selected, ties are broken by
    position, a query block without a selected key block gets its best one, and nothing is added to the normaliser.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        # The projections leave heads and tokens turned around: both steps want them in order.
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        pairs = self.choose(q, k, mask)  # (B, H, P, 2)
        return attend_pairs(q, k, v, mask, pairs, self.block_size)
