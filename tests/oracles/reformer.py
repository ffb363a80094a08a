from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.reformer import Reformer

from . import per_head

SMALL = {"chunk": 8, "buckets": 4}
TINY = {"chunk": 2, "buckets": 2}


def seen(core: Reformer, q: Tensor, mask: Tensor, rotation: Tensor) -> Tensor:
    """(N, N) bool: the pairs of one round of one head, q (N, D), mask (N,), rotation (D, buckets / 2)."""
    length = len(q)
    turned = q.detach() @ rotation.to(q.dtype)
    bucket = torch.cat([turned, -turned], -1).argmax(-1).tolist()
    real = [i for i in range(length) if mask[i]]
    place = {i: s for s, i in enumerate(sorted(real, key=lambda i: (bucket[i], i)))}
    pairs = [[False] * length for _ in range(length)]
    for i in real:
        for j in real:
            near = place[i] // core.chunk - 1 <= place[j] // core.chunk <= place[i] // core.chunk
            pairs[i][j] = i != j and near and (core.across_buckets or bucket[i] == bucket[j])
    return torch.tensor(pairs)


def dense_head(core: Reformer, q: Tensor, v: Tensor, mask: Tensor, rotations: Tensor) -> Tensor:
    """The paper's equations (13) to (16): each round with 1 / N_ij of its pairs, and the softmax of the rounds."""
    rounds = torch.stack([seen(core, q, mask, rotation) for rotation in rotations])  # (rounds, N, N)
    times = rounds.sum(0)  # N_ij
    rows = []
    for i in range(len(q)):
        outs, totals = [], []
        for pairs in rounds:
            found = pairs[i].nonzero().squeeze(1)
            if len(found):
                logits = (q[found] / q[found].norm(dim=1, keepdim=True)) @ q[i] - times[i, found].log().to(q.dtype)
                outs.append(torch.softmax(logits, 0) @ v[found])
                totals.append(logits.logsumexp(0))
        rows.append(torch.softmax(torch.stack(totals), 0) @ torch.stack(outs) if outs else v[i])
    return torch.stack(rows)


def dense(core: Reformer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    heads = [
        per_head(lambda q, v, mask, h=h: dense_head(core, q, v, mask, core.rotations[:, h]), mask, q[:, [h]], v[:, [h]])
        for h in range(core.heads)
    ]
    return torch.cat(heads, 1)
