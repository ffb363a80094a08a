from __future__ import annotations

import math

import torch
from torch import Tensor

from .functional import block_means, masked_softmax
from .ops.block_sparse import attend_pairs
from .selection import SelectsBlocks


class MRA2(SelectsBlocks):
    """MRA-2: softmax attention in which each logit of an unselected block pair is replaced by that pair's mean logit.

    Zeng et al., "Multi Resolution Analysis (MRA) for Approximate Self-Attention", 2022. https://arxiv.org/abs/2207.10284
    Cost O(P block_size^2 D + K^2 D) for P selected pairs of K x K.
    Deviations from the authors' code: padding is excluded before every maximum and never selected, ties are broken by
    position, a query block without a selected key block gets its best one, and nothing is added to the normaliser.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            counts = self.counts(q, mask)  # (B, K)
            q_mean, k_mean, v_mean = (block_means(x, counts, self.block_size) for x in (q, k, v))  # (B, H, K, D)
            logits = q_mean @ k_mean.mT / math.sqrt(self.head_dim)  # (B, H, K, K)
            pairs = self.select(logits, counts)  # (B, H, P, 2)

            # The unselected pairs as one virtual key per query block: a mean logit stands for count tokens.
            coarse = unselected(pairs, counts)
            logits = logits.to(dtype) + counts.clamp(min=1).to(dtype).log()[:, None, None, :]
            weights, prior_logit = masked_softmax(logits, coarse)
            prior_value = weights @ v_mean.to(dtype)  # (B, H, K, D)
        return attend_pairs(q, k, v, mask, pairs, self.block_size, prior_logit, prior_value)


def unselected(pairs: Tensor, counts: Tensor) -> Tensor:
    """(B, H, K, K) bool: the pairs of blocks with real tokens that are not in pairs (B, H, P, 2); counts (B, K)."""
    count = counts.shape[-1]
    real = (counts[:, :, None] * counts[:, None, :] > 0)[:, None]  # (B, 1, K, K)
    place = pairs[..., 0] * count + pairs[..., 1]  # (B, H, P), empty pairs stand at K^2
    selected = real.new_zeros(*place.shape[:2], count**2 + 1).scatter(-1, place, True)
    return real & ~selected[..., :-1].unflatten(-1, (count, count))
