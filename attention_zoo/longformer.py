from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Attention, whole
from .ops.local import local_attention


class Longformer(Attention):
    """Softmax attention over a window around each token and over a few global tokens, which attend to all tokens.

    Beltagy et al., "Longformer: The Long-Document Transformer", 2020. https://arxiv.org/abs/2004.05150
    Cost O(N (window + global_tokens) D).
    Deviations: global tokens share the projections of the others, as in the MRA paper's LRA runs, where the paper has
    a second set; there is no dropout of attention probabilities, where those runs had 0.1 from their library.

    window          tokens i and j see each other if |i - j| <= window / 2; even
    global_tokens   the first so many real tokens of an example attend to all its tokens and all attend to them
    """

    def __init__(self, heads: int, head_dim: int, seq_len: int, *, window: int = 64, global_tokens: int = 1) -> None:
        super().__init__(heads, head_dim, seq_len)
        self.window = whole("window", window, least=0)
        if window % 2:
            raise ValueError(f"window={window} must be even")
        self.global_tokens = whole("global_tokens", global_tokens, least=0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        batch, heads, length, dim = q.shape
        dtype = v.dtype
        q, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))
        real = torch.ones(batch, length, dtype=torch.bool, device=q.device) if mask is None else mask

        # The places of the global tokens, (B, G). Where an example has fewer, padded places fill up.
        place = torch.arange(length, device=q.device) + length * ~real
        place = place.topk(min(self.global_tokens, length), largest=False).values % length
        is_global = torch.zeros_like(real).scatter(1, place, True)
        rows = place[:, None, :, None].expand(-1, heads, -1, dim)
        q_global, k_global, v_global = (x.gather(2, rows) for x in (q, k, v))  # (B, H, G, D)

        # All queries see their windows and the global keys. Windows leave these out, so that a pair counts once.
        out = local_attention(
            q, k, v, k_global, v_global, real & ~is_global, real.gather(1, place), half=self.window // 2
        )
        # The global queries see everything. Where nothing is real they see all places, whose values are 0.
        seen = real | ~real.any(-1, keepdim=True)
        with torch.autocast(q.device.type, enabled=False):
            everything = F.scaled_dot_product_attention(q_global, k, v, attn_mask=seen[:, None, None, :])
        return out.scatter(2, rows, everything).to(dtype)

    @classmethod
    def exact_limit(cls, seq_len: int) -> dict[str, int]:
        return {"window": 2 * seq_len}
