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
        dtype = torch.promote_types(v.dtype, torch.float32)
        with torch.autocast(v.device.type, enabled=False):
            mixed = convolve(v.to(dtype), self.filters.to(dtype)).to(v.dtype)
        return self.core.attend(q, k, v, mask) + mixed


def convolve(v: Tensor, filters: Tensor) -> Tensor:
    """(B, H, N, D): place i is the sum over t of filters[h, t] v[i + t - taps // 2]; v (B, H, N, D), filters (H, taps).

    By overlap and add, several times faster on a CPU than torch's convolution with groups: one matrix a head spreads
    each block of S tokens over the S + taps - 1 places that they reach, and what reaches past a block goes to the next.
    """
    taps, length = filters.shape[1], v.shape[2]
    size = max(64, taps - 1)  # S, so that a block reaches no further than the next
    count, reach = -(-length // size), size + taps - 1
    # Rows of one number less than the padded filter: each begins one place further back in it.
    rows = F.pad(filters.flip(1), (0, size)).repeat(1, size)[:, : size * reach].unflatten(1, (size, reach))
    blocks = F.pad(v, (0, 0, 0, count * size - length)).unflatten(2, (count, size))  # (B, H, K, S, D)
    blocks = blocks.permute(1, 3, 0, 2, 4)  # (H, S, B, K, D)
    spread = (rows.mT @ blocks.flatten(2)).unflatten(2, blocks.shape[2:])  # (H, S + taps - 1, B, K, D)
    own, over = F.pad(spread, (0, 0, 0, 1))[:, :size], F.pad(spread, (0, 0, 1, 0))[:, size:]
    out = own + F.pad(over, (0, 0, 0, 0, 0, 0, 0, size - taps + 1))  # (H, S, B, K + 1, D)
    return out.permute(2, 0, 3, 1, 4).flatten(2, 3)[:, :, taps // 2 :][:, :, :length]
