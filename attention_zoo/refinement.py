"""The parts of general MRA: pairs of blocks and their children, the greedy choice, and the cover that it leaves.

G heads of all examples; K blocks at one scale, each with r children at the next; P pairs per head, which make T = G P
tiles of r x r children.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# The rank of a pair that cannot be chosen.
NEVER = 2**63 - 1


class Pairs(NamedTuple):
    """Pairs of a query block x and a key block y, (G, P) each, of K = `blocks` blocks; an empty pair is (K, 0)."""

    x: Tensor
    y: Tensor
    blocks: int

    def rows(self) -> tuple[Tensor, Tensor]:
        """(T,) each: the query blocks and the key blocks among the G K of all heads; an empty pair has any."""
        head = torch.arange(len(self.x), device=self.x.device)[:, None] * self.blocks
        return (head + self.x.clamp(max=self.blocks - 1)).flatten(), (head + self.y).flatten()

    def children(self, place: Tensor, r: int) -> Pairs:
        """The children at `place` (G, P') of 0..P r r, where P r r is none, sorted by query block and key block."""
        pairs, blocks = self.x.shape[1], self.blocks * r
        tile = (place // r**2).clamp(max=pairs - 1)
        x = self.x.gather(1, tile) * r + place // r % r
        y = self.y.gather(1, tile) * r + place % r
        code = (x * blocks + y).masked_fill(place == pairs * r**2, blocks**2).sort(1).values
        return Pairs(code // blocks, code % blocks, blocks)


class Cover(NamedTuple):
    """What the pairs that are not refined add up to for each query block, in units of 2^top.

    top   (G, K) the largest base-2 logit, -inf where nothing is covered yet; a constant for the gradients
    sums  (G, K, D + 1) the sums of weight x values and of weight x count
    """

    top: Tensor
    sums: Tensor

    def add(self, logits: Tensor, keep: Tensor, row: Tensor, values: Tensor) -> Cover:
        """The cover of the r children of each query block, with the kept children of the tiles added.

        Base-2 logits and keep (T, r, r); row (T,) the query block; values (T, r, D + 1) sums of values, and counts.
        """
        heads, blocks, width = self.sums.shape
        r = logits.shape[1]
        logits = logits.masked_fill(~keep, -math.inf)
        above = self.top.view(-1, 1).expand(-1, r)  # (G K, r)
        top = highest(logits.detach().amax(-1), row, above)
        base = top.masked_fill(top == -math.inf, 0.0)
        inherited = (above - base).exp2()[:, :, None] * self.sums.view(-1, 1, width)  # (G K, r, D + 1)
        added = (logits - base[row][:, :, None]).exp2() @ values  # (T, r, D + 1)
        sums = sum_by(row, added, inherited)
        return Cover(top.view(heads, blocks * r), sums.view(heads, blocks * r, width))

    def mean(self) -> tuple[Tensor, Tensor]:
        """The cover of a query block as one key: its logit (G, K) and value (G, K, D); -inf and 0 if it is empty."""
        total = self.sums[:, :, -1].masked_fill(self.top == -math.inf, 1.0)
        return self.top * math.log(2.0) + total.log(), self.sums[:, :, :-1] / total[:, :, None]


def highest(values: Tensor, row: Tensor, least: Tensor) -> Tensor:
    """(R, r) the largest of `least` (R, r) and those values (T, r) that belong to its row, by row (T,)."""
    return least.scatter_reduce(0, row[:, None].expand_as(values), values, "amax")


# Sums in an order that never changes: of index_add and accumulating index_put, each keeps it on one kind of device.
def sum_by(row: Tensor, x: Tensor, into: Tensor) -> Tensor:
    """`into` (R, ...) plus the T rows of x, each added to the row that row (T,) names."""
    return into.index_add(0, row, x) if x.is_cpu else into.index_put((row,), x, accumulate=True)


def pick(x: Tensor, row: Tensor) -> Tensor:
    """(R, ...) -> (T, ...); its backward is sum_by."""
    return x.index_select(0, row) if x.is_cpu else x[row]


@torch.no_grad()
def largest(scores: Tensor, real: Tensor, budget: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The real candidates of the largest scores, as many as `budget` (G,) <= most; of equal ones, the first.

    scores (G, E) float32, real (G, E). Returns their places (G, min(most, E)), ascending, then E where there are
    fewer; and chosen (G, E) bool.
    """
    count = scores.shape[1]
    # Read as an integer, the bits of a float32 but for its sign are in the order of its magnitude.
    # The place makes every rank different.
    bits = (-scores).view(torch.int32).long()
    order = torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits) + 2**31
    rank = (order * count + torch.arange(count, device=bits.device)).masked_fill(~real, NEVER)

    best = rank.topk(min(most, count), largest=False, sorted=True).values  # (G, P')
    missing = (torch.arange(best.shape[1], device=best.device) >= budget[:, None]) | (best == NEVER)
    last = best.masked_fill(missing, -1).amax(1, keepdim=True)
    return torch.where(missing, count, best % count).sort(1).values, rank <= last
