"""The tiling of an image: which pixels become a block, and that nothing else changes."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from attention_zoo import Tiled
from attention_zoo.mra2_s import MRA2S
from attention_zoo.softmax import Softmax

# A 6 x 8 image in tiles of 2 x 4 pixels: the first block is the upper left corner.
GRID, TILE = (6, 8), (2, 4)
FIRST = [0, 1, 2, 3, 8, 9, 10, 11]


def inputs() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 2, 48, 8, generator=generator, dtype=torch.float64) for _ in range(3)]


def corner_of_each_tile(row: int, column: int) -> list[int]:
    return [8 * (row + r) + column + c for r in range(2) for c in range(4)]


def test_a_tile_is_a_run_of_tokens_and_every_pixel_is_in_one() -> None:
    tiled = Tiled(Softmax(2, 8, 48), GRID, TILE)
    assert tiled.order[:8].tolist() == FIRST
    expected = [pixel for row in (0, 2, 4) for column in (0, 4) for pixel in corner_of_each_tile(row, column)]
    assert tiled.order.tolist() == expected
    assert sorted(expected) == list(range(48))


def test_softmax_does_not_care_about_the_order() -> None:
    tiled = Tiled(Softmax(2, 8, 48), GRID, TILE)
    for length in (48, 47, 11, 1):
        q, k, v = (x[:, :, :length] for x in inputs())
        assert_close(tiled(q, k, v), Softmax(2, 8, 48)(q, k, v))


def test_blocks_are_patches_of_the_image() -> None:
    """A pixel's output depends on the values of its own patch alone, where only the diagonal blocks are exact."""
    core = MRA2S(2, 8, 48, block_size=8, blocks_per_row=1, diagonal_blocks=1)
    q, k, v = inputs()
    v.requires_grad_()
    out = Tiled(core, GRID, TILE)(q, k, v)
    (slope,) = torch.autograd.grad(out[0, 0, 9].sum(), v)
    assert slope[0, 0].abs().sum(-1).nonzero().flatten().tolist() == FIRST


def test_the_share_counts_the_tokens_of_patches() -> None:
    """The upper half of the image is real: 2 of 6 patches wholly and 2 by half, so 4 blocks hold real tokens."""
    core = MRA2S(2, 8, 48, block_size=8, blocks_per_row=1)
    mask = (torch.arange(48) < 24).expand(1, -1)
    assert_close(Tiled(core, GRID, TILE).share(mask), torch.tensor([6 / 16]))
    assert_close(core.share(mask), torch.tensor([6 / 9]))


def test_a_short_input_keeps_the_places_of_its_pixels() -> None:
    core = MRA2S(2, 8, 48, block_size=8, blocks_per_row=2)
    mask = (torch.arange(48) < 20).expand(2, -1)
    tiled = Tiled(core, GRID, TILE)
    whole = tiled(*inputs(), mask)
    short = tiled(*(x[:, :, :20] for x in inputs()))
    assert_close(short, whole[:, :, :20])
