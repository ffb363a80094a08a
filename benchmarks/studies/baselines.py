"""Exact attentions by name: softmax with its scores in memory, torch's fused backends one by one, FlexAttention.

Each keeps the contract of attention_zoo.base. A backend that cannot run says so: there is no falling back on another.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import flex_attention

from attention_zoo.base import Attention
from benchmarks.contenders import BACKENDS


class Exact(Attention):
    """Softmax attention, whatever computes it."""

    @classmethod
    def exact_limit(cls, seq_len: int) -> dict[str, Any] | None:
        return {}


class Eager(Exact):
    """Softmax attention one operator at a time, as the public training loops of the Long Range Arena have it.

    The scores, their division by sqrt(D), their masking and the probabilities are N x N each. This is what papers call
    softmax or Transformer in their tables of speed and memory.
    """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        scores = q @ k.mT / math.sqrt(self.head_dim)  # (B, H, N, N)
        if mask is not None:
            scores = scores.masked_fill(~seen(mask)[:, None, None, :], -math.inf)
        return (scores.softmax(-1) @ v).to(v.dtype)


class Sdpa(Exact):
    """torch's scaled_dot_product_attention held to one backend. The backward needs no holding: it is the forward's."""

    def __init__(self, heads: int, head_dim: int, seq_len: int, *, backend: str) -> None:
        """backend: a name of torch's SDPBackend, such as FLASH_ATTENTION."""
        super().__init__(heads, head_dim, seq_len)
        self.backend: SDPBackend = getattr(SDPBackend, backend)
        self.asked: tuple[Tensor, int] | None = None
        self.padded = False

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None and self.backend is SDPBackend.FLASH_ATTENTION and mask.is_cuda:
            if self.pads(mask):
                raise RuntimeError("FlashAttention takes no mask on a GPU, and this one has padding")
            mask = None
        bias = None if mask is None else seen(mask)[:, None, None, :]
        with sdpa_kernel(self.backend):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)

    def pads(self, mask: Tensor) -> bool:
        """Whether a mask has padding: asked of the device, which must be waited for, once for each mask."""
        if self.asked is None or self.asked[0] is not mask or self.asked[1] != mask._version:
            self.asked, self.padded = (mask, mask._version), not bool(mask.all())
        return self.padded


class Flex(Exact):
    """torch's FlexAttention, compiled for each shape; padding is a rule for its scores.

    `reached` is the dtype in which q came to it, "" before it ran: a watch on operators would undo the compiling.
    """

    def __init__(self, heads: int, head_dim: int, seq_len: int) -> None:
        super().__init__(heads, head_dim, seq_len)
        # After a few shapes torch would compile no other.
        torch.compiler.reset()
        self.plain: Callable[..., Any] = torch.compile(flex_attention, fullgraph=True, dynamic=False)
        self.masked: Callable[..., Any] = torch.compile(masked_flex, fullgraph=True, dynamic=False)
        self.reached = ""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        self.reached = str(q.dtype).removeprefix("torch.")
        if not torch.is_grad_enabled():
            # On a CPU it has no backward, and refuses what could ask for one.
            q, k, v = q.detach(), k.detach(), v.detach()
        return self.plain(q, k, v) if mask is None else self.masked(q, k, v, seen(mask))


def masked_flex(q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Any:
    """FlexAttention to the keys that are True in real (B, N)."""

    def rule(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return torch.where(real[b, j], score, -math.inf)

    return flex_attention(q, k, v, score_mod=rule)


def seen(mask: Tensor) -> Tensor:
    """(B, N) the keys that are looked at: the real ones; of an example that has none all, their values are 0."""
    return mask | ~mask.any(-1, keepdim=True)


EXACT: dict[str, Callable[[int, int, int], Attention]] = {
    "eager": Eager,
    **{name: partial(Sdpa, backend=backend) for name, backend in BACKENDS.items()},
    "flex": Flex,
}


def on(device: str) -> list[str]:
    """The names of EXACT that exist for a device, cpu or cuda."""
    missing = () if device == "cuda" else ("sdpa efficient", "sdpa cudnn")
    return [name for name in EXACT if name not in missing]
