"""What an attention around another attention has in common with it."""

from __future__ import annotations

import torch
from torch import Tensor

from .base import Attention


class Wrapper(Attention):
    """An attention that looks, to everything outside, like its core."""

    def __init__(self, core: Attention) -> None:
        super().__init__(core.heads, core.head_dim, core.seq_len)
        self.core = core
        self.reads = core.reads
        self.normalised = core.normalised
        self.resamples = core.resamples
        self.surrogate_gradient = core.surrogate_gradient

    def kernel(self, device: torch.device) -> str | None:
        return self.core.kernel(device)

    def share(self, mask: Tensor) -> Tensor | None:
        return self.core.share(mask)

    def share_with(self, first: Attention) -> None:
        if not isinstance(first, type(self)):
            raise ValueError(f"{type(self).__name__} shares parameters with its like, not with {type(first).__name__}")
        self.core.share_with(first.core)
