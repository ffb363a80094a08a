"""What variants of block pairs are judged by: real blocks, MRA's choice of pairs, attention over a list of pairs."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from . import softmax_rows

Pair = tuple[int, int]


def real_tokens(mask: Tensor, block_size: int) -> list[list[int]]:
    """The real token positions of each block; mask (N,)."""
    length = len(mask)
    return [
        [i for i in range(start, min(start + block_size, length)) if mask[i]] for start in range(0, length, block_size)
    ]


def chosen_pairs(
    q: Tensor, k: Tensor, mask: Tensor, *, block_size: int, budget: int, first_blocks: int, diagonal_blocks: int
) -> list[Pair]:
    """MRA's selection for one head by sorting one list of candidates; q, k (N, D), mask (N,)."""
    blocks = real_tokens(mask, block_size)
    alive = [x for x, tokens in enumerate(blocks) if tokens]
    queries, keys = q.detach().double().numpy(), k.detach().double().numpy()
    logit = {
        (x, y): float(np.mean(queries[blocks[x]], 0) @ np.mean(keys[blocks[y]], 0)) / math.sqrt(q.shape[1])
        for x in alive
        for y in alive
    }
    candidates = []
    best: dict[int, Pair] = {}
    for x in alive:
        top = max(logit[x, y] for y in alive)
        lost = {y: round(top - logit[x, y], 9) for y in alive}
        best[x] = (x, min(alive, key=lambda y: (lost[y], y)))
        for y in alive:
            forced = x < first_blocks or y < first_blocks
            forced = forced or (diagonal_blocks > 0 and abs(x - y) <= diagonal_blocks // 2)
            group = 0 if forced else 1 if best[x] == (x, y) else 2
            candidates.append((group, lost[y], x, y))
    chosen = [(x, y) for _, _, x, y in sorted(candidates)[:budget]]
    chosen += [best[x] for x in alive if x not in {row for row, _ in chosen}]
    return sorted(chosen)


def dense_mra2(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, pairs: Iterable[Pair], block_size: int, coarse: bool
) -> Tensor:
    """One head, (N, D): the logits of unselected pairs are replaced by their mean (coarse) or left out."""
    blocks = real_tokens(mask, block_size)
    selected = set(pairs)
    exact = q @ k.T / math.sqrt(q.shape[1])
    logits = torch.full_like(exact, -math.inf)
    for x, rows in enumerate(blocks):
        for y, columns in enumerate(blocks):
            if not rows or not columns:
                continue
            place = torch.tensor(rows)[:, None], torch.tensor(columns)[None, :]
            if (x, y) in selected:
                logits = logits.index_put(place, exact[place])
            elif coarse:
                logits = logits.index_put(place, exact[place].mean())
    return softmax_rows(logits, v)


def dense_pairs(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pairs: Iterable[Pair],
    block_size: int,
    mask: Tensor,
    prior_logit: Tensor | None,
    prior_value: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The operator for one head, row by row: q, k, v (N, D), mask (N,), priors (K,) and (K, D)."""
    blocks = real_tokens(mask, block_size)
    out, lse = [], []
    for i in range(len(q)):
        x = i // block_size
        keys = [j for row, y in pairs if row == x for j in blocks[y]] if mask[i] else []
        logits, values = k[keys] @ q[i] / math.sqrt(q.shape[1]), v[keys]
        if prior_logit is not None and prior_value is not None and mask[i] and prior_logit[x] > -math.inf:
            logits = torch.cat([logits, prior_logit[x, None]])
            values = torch.cat([values, prior_value[x, None]])
        out.append(torch.softmax(logits, 0) @ values if len(logits) else torch.zeros_like(q[i]))
        lse.append(logits.logsumexp(0) if len(logits) else q.new_full((), -math.inf))
    return torch.stack(out), torch.stack(lse)
