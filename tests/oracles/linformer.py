from __future__ import annotations

import math

import torch
from torch import Tensor

from attention_zoo.linformer import Linformer

SMALL = {"rank": 16}
TINY = {"rank": 3}


def dense(core: Linformer, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """P E v with P = softmax(q (E k)^T / sqrt(D)), over the real tokens and their columns of E."""
    out = torch.zeros_like(v)
    for b in range(len(mask)):
        tokens = mask[b].nonzero()[:, 0]
        for h in range(q.shape[1]):
            columns = core.projection[h][:, tokens].to(q.dtype)  # (rank, n)
            logits = q[b, h, tokens] @ (columns @ k[b, h, tokens]).T / math.sqrt(q.shape[3])
            weights = torch.stack([torch.softmax(row, 0) for row in logits]) @ columns  # (n, n)
            out[b, h, tokens] = weights @ v[b, h, tokens]
    return out
