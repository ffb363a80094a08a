from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Attention
from .ops import kernels
from .ops.softmax_dropout import softmax_dropout


class Softmax(Attention):
    """Softmax attention: softmax(q k^T / sqrt(D)) v over all real tokens.

    Vaswani et al., "Attention Is All You Need", 2017. https://arxiv.org/abs/1706.03762
    Cost O(N^2 D) time, O(N D) memory where there is a fused kernel. Deviation: no dropout of attention probabilities
    unless `dropout` asks for it (training only); the MRA paper's Transformer used 0.1.
    """

    def __init__(self, heads: int, head_dim: int, seq_len: int, *, dropout: float = 0.0) -> None:
        super().__init__(heads, head_dim, seq_len)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout={dropout!r} must be a number with 0 <= dropout < 1")
        self.dropout = dropout

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if self.training and self.dropout:
            return softmax_dropout(q, k, v, mask, self.dropout)
        if mask is None:
            return F.scaled_dot_product_attention(q, k, v)
        # An example without a real token looks at all its places: their values are 0, and nothing is NaN.
        seen = mask | ~mask.any(-1, keepdim=True)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None, :])

    def kernel(self, device: torch.device) -> str | None:
        return kernels.name(device) if self.dropout and device.type == "cpu" else None

    @classmethod
    def exact_limit(cls, seq_len: int) -> dict[str, int]:
        return {}
