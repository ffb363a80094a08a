"""The contract that every attention core keeps, and the one legend for shapes.

B batch, H heads, N tokens, D head dim, M landmarks or features, K blocks, W window.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .ops.padding import clear


class Attention(nn.Module):
    """An attention core: everything between the projections of q, k, v and the output projection.

    A variant implements `attend` and gets the checks and the treatment of padding from `forward`. Its own parameters
    are keyword-only arguments with the paper's defaults.
    """

    # What a variant is by nature. The laws of tests/test_laws.py hold each of them to it, both ways round.
    reads: str = "qkv"
    """The projections that the variant looks at: "qv" where keys are the queries."""
    normalised: bool = True
    """Each output is a weighted mean of the values: weights that sum to 1 (they may be negative)."""
    resamples: bool = False
    """It draws at random anew in every forward pass of training; evaluation uses what was drawn when it was built."""
    surrogate_gradient: bool = False
    """The gradients of q and k are not those of the output, a step function of them, but of what it estimates."""

    def __init__(self, heads: int, head_dim: int, seq_len: int) -> None:
        """heads H, head_dim D, seq_len the largest N; ValueError unless all three are positive integers."""
        super().__init__()
        self.heads = whole("heads", heads, least=1)
        self.head_dim = whole("head_dim", head_dim, least=1)
        self.seq_len = whole("seq_len", seq_len, least=1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the values of all real tokens into every real token, in both directions.

        q, k, v (B, H, N, D), any 1 <= N <= seq_len; mask (B, N) bool, True = real token, None = all real.
        Returns (B, H, N, D) in v's dtype, 0 at padded places. What stands in padded places is never read.
        """
        self._check(q, k, v, mask)
        if mask is None:
            return self.attend(q, k, v, None)
        padded = ~mask[:, None, :, None]
        q, k, v = (clear(x, padded) for x in (q, k, v))
        return clear(self.attend(q, k, v, mask), padded, tokens_first=True)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """The variant itself: as `forward`, but shapes are checked, padded rows of q, k, v are 0, and what it returns
        at padded places is dropped (it must be finite)."""
        raise NotImplementedError

    def kernel(self, device: torch.device) -> str | None:
        """Which kernel runs the variant's own op on `device` ("reference"), None where it has no op of its own."""
        return None

    def share(self, mask: Tensor) -> Tensor | None:
        """(B,) the share of an example's real pairs that a budget lets the variant compute exactly; mask (B, N).

        None where no budget chooses pairs.
        """
        return None

    def share_with(self, first: Attention) -> None:
        """Take over from the core of the first layer the parameters that all layers share; most variants share none."""

    @classmethod
    def exact_limit(cls, seq_len: int) -> dict[str, Any] | None:
        """Parameters under which the variant equals softmax for every N <= seq_len; None: it has no such limit."""
        return None

    def _check(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
        if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
            shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
            raise ValueError(f"q, k, v must have one shape (B, H, N, D), got {shapes}")
        batch, heads, length, dim = q.shape
        if (heads, dim) != (self.heads, self.head_dim):
            raise ValueError(f"built for heads={self.heads}, head_dim={self.head_dim}, got q of {tuple(q.shape)}")
        if not 1 <= length <= self.seq_len:
            raise ValueError(f"N={length} is outside 1 <= N <= seq_len={self.seq_len}")
        if mask is not None and (mask.dtype != torch.bool or mask.shape != (batch, length)):
            raise ValueError(
                f"mask must be bool of shape {(batch, length)}, got {mask.dtype} of shape {tuple(mask.shape)}"
            )


def whole(name: str, value: int, least: int) -> int:
    """`value` if it is an integer of at least `least`, ValueError that names it if not."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r} must be an integer of at least {least}")
    return value
