from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Attention, whole
from .functional import block_counts, block_means
from .ops import kernels
from .ops.block_sparse import block_sparse_attention
from .refinement import Cover, Pairs, highest, largest, pick
from .selection import BUDGETS

RULES = ("magnitude", "row")


class MRA(Attention):
    """MRA: attention weights that are constant over pairs of blocks, the largest of which are refined, scale by scale.

    Zeng et al., "Multi Resolution Analysis (MRA) for Approximate Self-Attention", 2022. https://arxiv.org/abs/2207.10284
    The weight of a pair of blocks is exp(mean query . mean key / sqrt D).
    Cost O((N / s_0)^2 D + sum of m_i (s_i / s_(i+1))^2 D) for scales s_0 > s_1 > ... with m_i pairs refined at s_i.
    Deviations: padding is in no mean and never refined, ties are broken by position, and the budgets m_i are given per
    query block, as in the authors' code, whose choice of pairs is rule="row".

    scales          tokens per block, from coarse to fine, each a multiple of the next; where the last is above 1, all
                    queries of a block of it have one output
    blocks_per_row  for each scale but the last: pairs to refine per head, as a mean over the query blocks of that scale
    rule            "magnitude": refine the largest weights of the head (the paper's greedy choice); "row": the largest
                    relative to the best of their query block
    budget          "seq_len": blocks_per_row x the blocks of seq_len, whatever the input's length;
                    "length": blocks_per_row x the blocks of the example that hold real tokens
    """

    def __init__(
        self,
        heads: int,
        head_dim: int,
        seq_len: int,
        *,
        scales: Sequence[int] = (32, 8, 1),
        blocks_per_row: Sequence[int] = (16, 8),
        rule: str = "magnitude",
        budget: str = "seq_len",
    ) -> None:
        super().__init__(heads, head_dim, seq_len)
        self.scales = wholes("scales", scales)
        self.blocks_per_row = wholes("blocks_per_row", blocks_per_row)
        steps = len(self.scales) - 1
        if steps < 1 or any(s <= t or s % t for s, t in zip(self.scales, self.scales[1:], strict=False)):
            raise ValueError(f"scales={self.scales} must be two or more, each above the next and a multiple of it")
        if len(self.blocks_per_row) != steps:
            raise ValueError(f"blocks_per_row={self.blocks_per_row} must be {steps} for scales={self.scales}")
        for name, value, allowed in (("rule", rule, RULES), ("budget", budget, BUDGETS)):
            if value not in allowed:
                raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}")
        self.rule = rule
        self.budget = budget

    @classmethod
    def exact_limit(cls, seq_len: int) -> dict[str, Any]:
        return {"blocks_per_row": (seq_len, seq_len)}

    def kernel(self, device: torch.device) -> str | None:
        return kernels.name(device, self.scales[-2], self.head_dim) if self.scales[-1] == 1 else None

    def share(self, mask: Tensor) -> Tensor:
        """(B,) the share of an example's real block pairs that the budgets let reach single tokens; mask (B, N).

        0 where nothing is real, and where the last scale is above 1.
        """
        share = (mask.any(-1) & (self.scales[-1] == 1)).float()
        for step, scale in enumerate(self.scales[:-1]):
            blocks = (block_counts(mask, scale) > 0).sum(-1)
            share = torch.minimum(share, self._budget(step, blocks) / (blocks**2).clamp(min=1))
        return share

    def _most(self, step: int) -> int:
        return self.blocks_per_row[step] * -(-self.seq_len // self.scales[step])

    def _budget(self, step: int, blocks: Tensor) -> Tensor:
        """The pairs that examples with so many real blocks may refine."""
        if self.budget == "length":
            return self.blocks_per_row[step] * blocks
        return torch.full_like(blocks, self._most(step))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, dim = q.shape
        missing = -length % self.scales[0]
        if mask is None:
            mask = torch.ones(batch, length, dtype=torch.bool, device=q.device)
        mask = F.pad(mask, (0, missing))
        q, k, v = (F.pad(x, (0, 0, 0, missing)) for x in (q, k, v))

        # At first nothing is covered, and one pair is to be refined: all queries with all keys.
        first = torch.zeros(batch * heads, 1, dtype=torch.int64, device=q.device)  # (G, 1)
        pairs = Pairs(first, first, blocks=1)
        top = torch.full_like(first, -math.inf, dtype=torch.promote_types(q.dtype, torch.float32))
        cover = Cover(top, top.new_zeros(batch * heads, 1, dim + 1))
        with torch.autocast(q.device.type, enabled=False):
            for step in range(sum(scale > 1 for scale in self.scales)):
                pairs, cover = self._refine(step, q, k, v, mask, pairs, cover)
            logit, value = cover.mean()

        if self.scales[-1] > 1:
            out = value.repeat_interleave(self.scales[-1], 1).to(v.dtype)
        else:
            q, k, v = (x.flatten(0, 1) for x in (q, k, v))
            blocks, mask = torch.stack([pairs.x, pairs.y], -1), mask.repeat_interleave(heads, 0)
            out, _ = block_sparse_attention(q, k, v, blocks, self.scales[-2], mask, logit, value)
        return out[:, :length].unflatten(0, (batch, heads))

    def _refine(
        self, step: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pairs: Pairs, cover: Cover
    ) -> tuple[Pairs, Cover]:
        """Split the pairs into children at scale `step`: the largest are the next pairs, the cover gets the others."""
        scale, dim, groups = self.scales[step], self.head_dim, len(pairs.x)
        r = mask.shape[1] // scale // pairs.blocks
        counts = block_counts(mask, scale)  # (B, K r)
        real = (counts > 0).repeat_interleave(self.heads, 0).view(-1, r)  # (G K, r)
        q_mean, k_mean, v_mean = (block_means(x, counts, scale) for x in (q, k, v))  # (B, H, K r, D)
        values = F.pad(v_mean, (0, 1), value=1.0) * counts[:, None, :, None]  # (B, H, K r, D + 1)
        values = values.to(cover.sums.dtype).view(-1, r, dim + 1)

        row, column = pairs.rows()
        k_t = (k_mean / (math.sqrt(dim) * math.log(2.0))).view(-1, r, dim).mT.contiguous()
        logits = pick(q_mean.view(-1, r, dim), row) @ pick(k_t, column)  # (T, r, r), the weights are powers of 2
        keep = real[row][:, :, None] & real[column][:, None, :] & (pairs.x < pairs.blocks).view(-1, 1, 1)
        if step < len(self.blocks_per_row):
            scores = logits.detach().float().masked_fill(~keep, -math.inf)
            if self.rule == "row":
                best = highest(scores.amax(-1), row, scores.new_full(real.shape, -math.inf))
                scores = scores - best[row][:, :, None]
            budget = self._budget(step, (counts > 0).sum(-1)).repeat_interleave(self.heads)  # (G,)
            place, chosen = largest(scores.view(groups, -1), keep.view(groups, -1), budget, self._most(step))
            pairs, keep = pairs.children(place, r), keep & ~chosen.view_as(keep)
        return pairs, cover.add(logits.to(values.dtype), keep, row, pick(values, column))


def wholes(name: str, values: Sequence[int]) -> tuple[int, ...]:
    """`values` as a tuple if they are a list of positive integers, ValueError that names them if not."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"{name}={values!r} must be a list of integers")
    return tuple(whole(f"{name}[{i}]", value, least=1) for i, value in enumerate(values))
