from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from attention_zoo.adamra import AdaMRA


def phi(x: Tensor, feature_map: str) -> Tensor:
    if feature_map == "elu":
        return torch.where(x > 0, x + 1, x.exp())
    if feature_map == "relu":
        return x.clamp(min=0) + 1e-3
    return x.exp() / x.exp().sum(-1, keepdim=True)


def compressed(core: AdaMRA, x: Tensor, mask: Tensor, head: int, which: int) -> tuple[Tensor, Tensor]:
    """The groups of x (N, D) with a real token, and the real tokens of each: (M, D), (M,)."""
    rate = core.rates[head]
    rows, counts = [x[:0].sum(0)], [0]
    for start in range(0, len(x), rate):
        real = [n for n in range(start, min(start + rate, len(x))) if mask[n]]
        if real and core.filters:
            filters = core.filters[head][which].to(x.dtype)
            rows.append(sum(filters[n - start] * x[n] for n in real) * rate / len(real))
        elif real:
            rows.append(x[real].mean(0))
        counts += [len(real)] if real else []
    return torch.stack(rows[1:] or rows), torch.tensor(counts[1:] or counts, dtype=x.dtype)


def dense(core: AdaMRA, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """For each head of queries and each resolution an n x n_c matrix of weights; the router mixes their products."""
    router = core.router.to(q.dtype)
    out = []
    for b in range(len(mask)):
        for queries in q[b]:
            logits = queries @ router.T
            chances = torch.stack([F.softmax(row, 0) for row in logits])  # (N, R)
            if core.routing == "hard":
                picked = torch.stack([F.one_hot(row.argmax(), len(row)) for row in chances])
                chances = picked + chances - chances.detach()
            mixed = torch.zeros_like(queries)
            for r in range(core.heads):
                keys, counts = compressed(core, k[b, r], mask[b], r, 0)
                values, _ = compressed(core, v[b, r], mask[b], r, 1)
                weights = phi(queries, core.feature_map) @ phi(keys, core.feature_map).T * counts
                weights = weights / weights.sum(1, keepdim=True) if mask[b].any() else weights
                mixed = mixed + chances[:, r, None] * (weights @ values)
            out.append(mixed)
    return torch.stack(out).unflatten(0, (len(mask), -1))
