from __future__ import annotations

import math

import torch
from torch import Tensor

from attention_zoo.soft import Soft

from . import per_head

SMALL = {"landmarks": 8}
TINY = {"landmarks": 3}


def kernel(x: Tensor, y: Tensor) -> Tensor:
    """(n, m) exp(-|x_i - y_j|^2 / 2)."""
    return torch.stack([torch.exp(-(row - y).square().sum(1) / 2) for row in x])


def landmark(core: Soft, q: Tensor, mask: Tensor, start: int) -> Tensor | None:
    """The landmark of the window that begins at start; None where no token of it is real. q (N, D), mask (N,)."""
    weight = core.convolution.weight.to(q.dtype)  # (D, D, window)
    tokens = [i for i in range(start, min(start + core.window, len(q))) if mask[i]]
    if not tokens:
        return None
    x = sum((weight[:, :, i - start] @ q[i] for i in tokens), torch.zeros_like(q[0])) / (len(tokens) / core.window)
    x = (x - x.mean()) / torch.sqrt((x - x.mean()).square().mean() + core.norm.eps)
    x = x * core.norm.weight.to(q.dtype) + core.norm.bias.to(q.dtype)
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def newton(m: Tensor, iterations: int) -> Tensor:
    v = m / m.sum(1).max() ** 2
    for _ in range(iterations):
        v = 2 * v - v @ m @ v
    return v


def dense(core: Soft, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    def one(q: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        q = q / q.shape[1] ** 0.25
        found = [landmark(core, q, mask, start) for start in range(0, len(q), core.window)]
        rows = [x for x in found if x is not None]
        out = torch.zeros_like(v)
        if rows:
            tokens, landmarks = mask.nonzero()[:, 0], torch.stack(rows)
            a = kernel(q[tokens], landmarks)  # (n, M)
            weights = a @ newton(kernel(landmarks, landmarks), core.iterations) @ a.T  # (n, n)
            out[tokens] = weights @ v[tokens]
        return out

    return per_head(one, mask, q, v)
