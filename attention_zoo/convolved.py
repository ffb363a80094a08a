from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Attention, whole
from .wrapper import Wrapper


class Convolved(Wrapper):
    """Any attention plus a convolution of its values over the sequence: one filter of `taps` tokens for each head.

    Xiong et al., "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention", 2021, whose skip
    connection it is. https://arxiv.org/abs/2102.03902
    Cost O(N taps D) beside the core's. A head's channels share its filter, there is no bias, and padded values are 0.
    """

    def __init__(self, core: Attention, taps: int) -> None:
        """taps: an odd number of tokens, so that the filter has a middle."""
        super().__init__(core)
        if whole("taps", taps, least=1) % 2 == 0:
            raise ValueError(f"taps={taps} must be odd")
        self.normalised = False
        bound = taps**-0.5
        self.filters = nn.Parameter(torch.empty(self.heads, taps).uniform_(-bound, bound))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, dim = v.shape
        taps = self.filters.shape[1]
        # conv1d with the channels as examples: (B D, H, N), each head a group of its own.
        values = v.permute(0, 3, 1, 2).reshape(batch * dim, heads, length)
        mixed = F.conv1d(values, self.filters[:, None].to(v.dtype), padding=taps // 2, groups=heads)
        return self.core.attend(q, k, v, mask) + mixed.view(batch, dim, heads, length).permute(0, 2, 3, 1)
