from __future__ import annotations

import math

import torch
from torch import Tensor

from attention_zoo.mra import MRA

from . import per_head, softmax_rows
from .blocks import real_tokens

SMALL = {"scales": (16, 4, 1), "blocks_per_row": (3, 3)}
TINY = {"scales": (4, 2, 1), "blocks_per_row": (1, 1)}

# A pair of blocks: scale, query block, key block.
Triple = tuple[int, int, int]


def cover(core: MRA, q: Tensor, k: Tensor, mask: Tensor) -> list[Triple]:
    """The paper's set J for one head, q, k (N, D), mask (N,): the pairs of blocks that cover the grid, by sorting."""
    exact = (q.detach().double() @ k.detach().double().T / math.sqrt(q.shape[1])).tolist()
    scales = core.scales
    tokens = {s: real_tokens(mask, s) + [[]] * scales[0] for s in scales}

    def logit(pair: Triple) -> float:
        s, x, y = pair
        entries = [exact[i][j] for i in tokens[s][x] for j in tokens[s][y]]
        return round(sum(entries) / len(entries), 9)

    def real(pair: Triple) -> bool:
        s, x, y = pair
        return bool(tokens[s][x] and tokens[s][y])

    coarsest = range(-(-len(mask) // scales[0]))
    candidates = [(scales[0], x, y) for x in coarsest for y in coarsest]
    done = []
    for s, finer, per_row in zip(scales, scales[1:], core.blocks_per_row, strict=False):
        candidates = [pair for pair in candidates if real(pair)]
        of = {pair: logit(pair) for pair in candidates}
        best: dict[int, float] = {}
        for (_, x, _), value in of.items():
            best[x] = max(value, best.get(x, -math.inf))
        score = {pair: round(of[pair] - best[pair[1]], 9) if core.rule == "row" else of[pair] for pair in of}
        blocks = sum(bool(block) for block in tokens[s]) if core.budget == "length" else -(-core.seq_len // s)
        order = sorted(candidates, key=lambda pair: -score[pair])
        refined, left = sorted(order[: per_row * blocks]), order[per_row * blocks :]
        done += left
        r = s // finer
        candidates = [(finer, x * r + a, y * r + b) for _, x, y in refined for a in range(r) for b in range(r)]
    return done + [pair for pair in candidates if real(pair)]


def dense(core: MRA, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    def one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        exact = q @ k.T / math.sqrt(q.shape[1])
        logits = torch.full_like(exact, -math.inf)
        tokens = {s: real_tokens(mask, s) for s in core.scales}
        singles = torch.zeros_like(exact, dtype=torch.bool)
        for s, x, y in cover(core, q, k, mask):
            if s == 1:
                singles[x, y] = True
            else:
                place = torch.tensor(tokens[s][x])[:, None], torch.tensor(tokens[s][y])[None, :]
                logits = logits.index_put(place, exact[place].mean())
        return softmax_rows(torch.where(singles, exact, logits), v)

    return per_head(one, mask, q, k, v)
