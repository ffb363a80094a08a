from __future__ import annotations

import math

import torch
from torch import Tensor

from attention_zoo.nystromformer import Nystromformer

from . import per_head

SMALL = {"landmarks": 8}
TINY = {"landmarks": 3}


def softmax_matrix(queries: Tensor, keys: Tensor) -> Tensor:
    """(n, m) softmax over the keys of each query."""
    return torch.stack([torch.softmax(keys @ query / math.sqrt(len(query)), 0) for query in queries])


def segment_means(x: Tensor, count: int) -> Tensor:
    """(count, D) means of the n > count rows of x: row r belongs to segment floor(r count / n)."""
    members = [[r for r in range(len(x)) if r * count // len(x) == segment] for segment in range(count)]
    return torch.stack([x[rows].mean(0) for rows in members])


def iterated_inverse(a: Tensor, iterations: int) -> Tensor:
    eye = torch.eye(len(a), dtype=a.dtype)
    z = a.T / (a.abs().sum(0).max() * a.abs().sum(1).max())
    for _ in range(iterations):
        z = 0.25 * z @ (13 * eye - a @ z @ (15 * eye - a @ z @ (7 * eye - a @ z)))
    return z


def dense(core: Nystromformer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    def one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        tokens = mask.nonzero()[:, 0]
        out = torch.zeros_like(v)
        if len(tokens) == 0:
            return out
        q, k, v = q[tokens], k[tokens], v[tokens]
        weights = softmax_matrix(q, k)
        if len(tokens) > core.landmarks:
            q_mean, k_mean = segment_means(q, core.landmarks), segment_means(k, core.landmarks)
            middle = iterated_inverse(softmax_matrix(q_mean, k_mean), core.iterations)
            weights = softmax_matrix(q, k_mean) @ middle @ softmax_matrix(q_mean, k)  # (n, n)
        out[tokens] = weights @ v
        return out

    return per_head(one, mask, q, k, v)
