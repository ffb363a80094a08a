from __future__ import annotations

from torch import Tensor

from attention_zoo.selection import SelectsBlocks

from . import mra2
from .mra2 import SMALL, TINY

__all__ = ["SMALL", "TINY", "dense"]


def dense(core: SelectsBlocks, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    return mra2.dense(core, q, k, v, mask, coarse=False)
