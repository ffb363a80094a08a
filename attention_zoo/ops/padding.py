"""Zeros in the rows of padding, laid out in memory as the next operator reads them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import kernels


def clear(x: Tensor, padded: Tensor, tokens_first: bool = False) -> Tensor:
    """x (B, H, N, D) with zeros where padded (B, 1, N, 1) is True, whatever stands there; x itself stays.

    Where an attention has had the library for CPUs loaded, the result is dense head by head, as operators on heads
    read it, or with `tokens_first` token by token, as a projection of all heads reads it: a copy that they need no
    longer make. Elsewhere torch clears, to the same bits, and leaves the layout as it is.
    """
    if torch.compiler.is_compiling() or type(x) is not Tensor or not x.is_cpu or not kernels.ready(x.device):
        # masked_fill would copy first and fill then: two launches on a GPU.
        return torch.where(padded, 0.0, x)
    return _Clear.apply(x, padded, tokens_first)


class _Clear(torch.autograd.Function):
    """The compiled one. It is linear, and its own transpose but for the layout."""

    @staticmethod
    def forward(x: Tensor, padded: Tensor, tokens_first: bool) -> Tensor:
        x = x if x.stride(3) == 1 else x.contiguous()
        out = torch.ops.zoo.clear_rows_cpu(x, padded[:, 0, :, 0].contiguous(), tokens_first)
        return out.transpose(1, 2) if tokens_first else out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        _, padded, ctx.tokens_first = inputs
        ctx.save_for_backward(padded)
        ctx.save_for_forward(padded)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor, None, None]:
        (padded,) = ctx.saved_tensors
        return clear(d_out, padded, not ctx.tokens_first), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *others: None) -> Tensor:
        (padded,) = ctx.saved_tensors
        return clear(tangent, padded, ctx.tokens_first)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, int | None, None], x: Tensor, padded: Tensor, tokens_first: bool
    ) -> tuple[Tensor, int]:
        x, padded = (
            each if dim is None else each.movedim(dim, 0) for each, dim in zip((x, padded), in_dims, strict=False)
        )
        return torch.where(padded, 0.0, x), 0


@kernels.probe
def _probe(device: torch.device) -> None:
    """ValueError unless the compiled copy is right, bit for bit, in either layout. There is one for CPUs alone."""
    if device.type != "cpu":
        return
    x = torch.arange(2 * 5 * 3 * 4, dtype=torch.float32).view(2, 5, 3, 4).transpose(1, 2)
    padded = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 0, 0, 0]], dtype=torch.bool)[:, None, :, None]
    for tokens_first in (False, True):
        if not torch.equal(_Clear.forward(x, padded, tokens_first), x.masked_fill(padded, 0.0)):
            raise ValueError("the compiled zoo::clear_rows disagrees with masked_fill")
