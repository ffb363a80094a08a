from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Attention, whole
from .wrapper import Wrapper


class Tiled(Wrapper):
    """Any attention over the pixels of an image, taken tile by tile, so that a block of tokens is a patch.

    Zeng et al., "Multi Resolution Analysis (MRA) for Approximate Self-Attention", 2022, whose image and Pathfinder runs
    take 4 x 8 pixels as a block of 32. https://arxiv.org/abs/2207.10284
    Costs two permutations. A shorter input is computed as if padded to the whole grid, so that a pixel has one place.
    """

    order: Tensor
    place: Tensor

    def __init__(self, core: Attention, grid: Sequence[int], tile: Sequence[int]) -> None:
        """grid (rows, columns) of the image, as many pixels as the core's seq_len; tile (rows, columns) divides it."""
        super().__init__(core)
        rows, columns = _pair("grid", grid)
        high, wide = _pair("tile", tile)
        if rows * columns != self.seq_len:
            raise ValueError(f"grid={rows}x{columns} must have as many pixels as seq_len={self.seq_len}")
        if rows % high or columns % wide:
            raise ValueError(f"tile={high}x{wide} must divide grid={rows}x{columns}")
        pixels = torch.arange(self.seq_len).view(rows // high, high, columns // wide, wide)
        order = pixels.transpose(1, 2).flatten()  # the pixel at each place
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("place", order.argsort(), persistent=False)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        length = q.shape[2]
        q, k, v = (self._fill(x, 2)[:, :, self.order] for x in (q, k, v))
        return self.core.attend(q, k, v, self._mask(mask, q.shape[0], length))[:, :, self.place[:length]]

    def share(self, mask: Tensor) -> Tensor | None:
        return self.core.share(self._fill(mask, 1)[:, self.order])

    def _fill(self, x: Tensor, dim: int) -> Tensor:
        """x with zeros along dim up to the whole grid."""
        missing = self.seq_len - x.shape[dim]
        return F.pad(x, [0, 0] * (x.dim() - 1 - dim) + [0, missing]) if missing else x

    def _mask(self, mask: Tensor | None, batch: int, length: int) -> Tensor | None:
        """(B, N) of the whole grid in the order of the tiles; None where all of it is real."""
        if mask is None and length == self.seq_len:
            return None
        if mask is None:
            mask = self.order.new_ones(batch, length, dtype=torch.bool)
        return self._fill(mask, 1)[:, self.order]


def _pair(name: str, value: Sequence[int]) -> tuple[int, int]:
    if len(value) != 2:
        raise ValueError(f"{name}={value!r} must be two integers, rows and columns")
    return whole(name, value[0], least=1), whole(name, value[1], least=1)
