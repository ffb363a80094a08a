from __future__ import annotations

from torch import Tensor

from attention_zoo import Attention

from . import masked_attention, per_head


def dense(core: Attention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    def one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return masked_attention(q, k, v, mask.expand(len(mask), -1))

    return per_head(one, mask, q, k, v)
