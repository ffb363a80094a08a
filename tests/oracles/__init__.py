"""Dense attention, slow and obvious: what the fast code is judged by. Shares nothing with it.

One module per variant of the zoo, with the variant's name. Each may hold

SMALL   parameters under which the variant approximates already at 100 tokens
TINY    the same at 9 tokens
dense   (core, q, k, v, mask) -> (B, H, N, D): the variant from its n x n matrix. q, k, v (B, H, N, D), mask (B, N);
        what stands in padded places must not matter, and padded places of the result are not looked at. Gradients
        are compared too.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor


def oracle(name: str) -> ModuleType | None:
    """The module of a variant; None where it has none."""
    path = f"{__name__}.{name}"
    return importlib.import_module(path) if importlib.util.find_spec(path) else None


def small(name: str) -> dict[str, Any]:
    """The parameters of a variant for laws at 100 tokens."""
    return dict(getattr(oracle(name), "SMALL", {}))


def tiny(name: str) -> dict[str, Any]:
    """The parameters of a variant for laws at 9 tokens."""
    return dict(getattr(oracle(name), "TINY", {}))


def per_head(function: Callable[..., Tensor], mask: Tensor, *inputs: Tensor) -> Tensor:
    """Apply function(*heads, mask) to every example and head of inputs (B, H, N, D); mask (B, N)."""
    return torch.stack(
        [
            torch.stack([function(*(x[b, h] for x in inputs), mask[b]) for h in range(inputs[0].shape[1])])
            for b in range(len(mask))
        ]
    )


def softmax_rows(logits: Tensor, values: Tensor) -> Tensor:
    """softmax over the finite logits (N, M) of each row, times values (M, D); 0 where a row has none."""
    rows = []
    for row in logits:
        seen = row > -math.inf
        rows.append(torch.softmax(row[seen], 0) @ values[seen] if seen.any() else 0.0 * values[0])
    return torch.stack(rows)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """One head of softmax attention, q, k, v (N, D), over the pairs of allowed (N, N) bool; 0 where a row has none."""
    logits = (q @ k.T / math.sqrt(q.shape[1])).masked_fill(~allowed, -math.inf)
    return softmax_rows(logits, v)
