from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Attention, whole


class Linformer(Attention):
    """Linformer: softmax attention to `rank` rows E k and E v, a learned projection of the sequence for each head.

    Wang et al., "Linformer: Self-Attention with Linear Complexity", 2020. https://arxiv.org/abs/2006.04768
    Cost O(N rank D). One E (H, rank, seq_len) serves keys and values, and all layers after `share_with`.
    Deviations: padded rows are zeroed before the projection, and N < seq_len takes the first N columns of E; the paper
    has one length and no padding. No exact limit: an E is learned; it is softmax only where E is the identity.
    """

    normalised = False

    def __init__(self, heads: int, head_dim: int, seq_len: int, *, rank: int = 256) -> None:
        super().__init__(heads, head_dim, seq_len)
        self.rank = whole("rank", rank, least=1)
        self.projection = nn.Parameter(torch.randn(heads, rank, seq_len) * rank**-0.5)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, _, length, dim = q.shape
        dtype = torch.promote_types(q.dtype, torch.float32)
        with torch.autocast(q.device.type, enabled=False):
            projection = self.projection[:, :, :length].to(dtype)  # (H, M, N)
            # One product projects the keys and values of all examples.
            rows = torch.cat([x.to(dtype).permute(1, 2, 0, 3) for x in (k, v)], 2)  # (H, N, 2B, D)
            rows = (projection @ rows.flatten(2)).unflatten(2, (2, batch, dim))  # (H, M, 2, B, D)
            keys, values = rows.permute(2, 3, 0, 1, 4).unbind(0)  # (B, H, M, D)
            return F.scaled_dot_product_attention(q.to(dtype), keys, values).to(v.dtype)

    def share_with(self, first: Attention) -> None:
        if not isinstance(first, Linformer) or first.projection.shape != self.projection.shape:
            shape = tuple(first.projection.shape) if isinstance(first, Linformer) else None
            raise ValueError(
                f"a Linformer with a projection of {tuple(self.projection.shape)} cannot share that of"
                f" {type(first).__name__}, {shape}"
            )
        self.projection = first.projection
