"""Big Bird: which blocks each block of queries sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.bigbird import BigBird

from .oracles import bigbird

HEADS, DIM, BLOCK = 3, 4, 32

Rows = list[list[set[int]]]


def build(seq_len: int, **parameters: Any) -> BigBird:
    torch.manual_seed(0)
    return BigBird(HEADS, DIM, seq_len, **parameters)


def rows(core: BigBird, real: Tensor) -> Rows:
    """The key blocks of every query block of every head, for one example with the real blocks `real` (K,)."""
    count = len(real)
    found = core.select(real[None])[0].tolist()
    return [[{y for x, y in pairs if x == row} for row in range(count)] for pairs in found]


def test_a_block_sees_its_neighbours_the_ends_and_two_random_blocks() -> None:
    count = 64
    for head in rows(build(count * BLOCK), torch.ones(count, dtype=torch.bool)):
        assert head[0] == head[-1] == set(range(count))
        for x, keys in enumerate(head[1:-1], start=1):
            regular = {0, x - 1, x, x + 1, count - 1}
            assert keys >= regular
            assert len(keys - regular) == 2


def test_the_list_is_sorted_distinct_and_ends_with_the_empty_pairs() -> None:
    core = build(20 * BLOCK)
    real = torch.rand(6, 20, generator=torch.Generator().manual_seed(0)) < 0.7
    real[0], real[1], real[2], real[3] = True, False, torch.arange(20) < 1, torch.arange(20) < 2
    pairs = core.select(real)
    place = pairs[..., 0] * 20 + pairs[..., 1]
    steps = place.diff()
    assert ((steps > 0) | ((steps == 0) & (place[..., 1:] == 400))).all()
    assert pairs[pairs[..., 0] == 20][:, 1].eq(0).all()
    for b in range(6):
        for h in range(HEADS):
            found = [(x, y) for x, y in pairs[b, h].tolist() if x < 20]
            assert found == bigbird.chosen_pairs(core, h, real[b].repeat_interleave(BLOCK))


def test_random_blocks_come_from_the_whole_length() -> None:
    """Not from the first 1,024 tokens alone, as in the public code: all of 4,096 are equally likely."""
    count, drawn = 128, torch.zeros(128)
    core = build(count * BLOCK, random_blocks=4)
    for head in rows(core, torch.ones(count, dtype=torch.bool)):
        for x in range(1, count - 1):
            drawn[list(head[x] - {0, x - 1, x, x + 1, count - 1})] += 1
    quarters = drawn.view(4, 32).sum(1) / drawn.sum()
    assert (drawn[1:-1] > 0).all()
    assert_close(quarters, torch.full((4,), 0.25), rtol=0, atol=0.05)


def test_heads_draw_their_own_blocks() -> None:
    first, second, _ = rows(build(64 * BLOCK), torch.ones(64, dtype=torch.bool))
    assert sum(x != y for x, y in zip(first, second, strict=True)) > 40


def test_training_and_evaluation_see_the_same_blocks() -> None:
    core, real = build(64 * BLOCK), torch.ones(64, dtype=torch.bool)
    training = rows(core.train(), real)
    assert rows(core.train(), real) == training
    assert rows(core.eval(), real) == training


def test_the_pattern_travels_with_the_weights() -> None:
    core, other = build(64 * BLOCK), BigBird(HEADS, DIM, 64 * BLOCK)
    real = torch.ones(64, dtype=torch.bool)
    assert rows(other, real) != rows(core, real)
    other.load_state_dict(core.state_dict())
    assert rows(other, real) == rows(core, real)


def test_padding_changes_no_pattern_and_the_last_real_block_is_global() -> None:
    core = build(64 * BLOCK)
    for end in (1, 2, 5, 20):
        padded = rows(core, torch.arange(64) < end)
        for head, short in zip(padded, rows(core, torch.ones(end, dtype=torch.bool)), strict=True):
            assert head[:end] == short
            assert all(end - 1 in keys for keys in head[:end])
            assert not any(head[end:])


def test_padding_before_and_between_real_blocks_is_never_seen() -> None:
    real = torch.tensor([False, True, True, False, True, True, True, True, False, True, True, False])
    alive = set(real.nonzero().flatten().tolist())
    for head in rows(build(12 * BLOCK), real):
        assert head[1] == head[10] == alive
        assert head[2] >= {1, 2, 10}
        assert all(keys <= alive for keys in head)
        assert not head[0] | head[3] | head[8] | head[11]


@pytest.mark.parametrize(
    "setting",
    [
        {"random_blocks": 0, "global_blocks": 0, "window_blocks": 1},
        {"random_blocks": 50},
        {"global_blocks": 2, "window_blocks": 5},
        {"global_blocks": 50},
        {"block_size": 100},
    ],
    ids=str,
)
def test_every_setting_agrees_with_the_dense_oracle(setting: dict[str, Any]) -> None:
    """With examples that have holes, one real token, and none."""
    core = build(90, **{"block_size": 4} | setting)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, HEADS, 83, DIM, generator=generator, dtype=torch.float64) for _ in range(3))
    qkv = [x.requires_grad_() for x in (q, k, v)]
    mask = torch.rand(4, 83, generator=generator) < 0.3
    mask[1] = torch.arange(83) == 50
    mask[2] = False
    out, expected = core(q, k, v, mask), bigbird.dense(core, q, k, v, mask)
    assert_close(out, expected)
    direction = torch.randn(out.shape, generator=generator, dtype=out.dtype)
    assert_close(torch.autograd.grad(out, qkv, direction), torch.autograd.grad(expected, qkv, direction))


def test_more_random_blocks_come_closer_to_softmax() -> None:
    """And no query misses a key once all are drawn."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, HEADS, 256, DIM, generator=generator) for _ in range(3))
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    errors = [float((build(256, block_size=8, random_blocks=r)(q, k, v) - exact).norm()) for r in (0, 4, 16, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4 < errors[-2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_size": 0},
        {"window_blocks": 2},
        {"window_blocks": -1},
        {"global_blocks": -1},
        {"random_blocks": 2.0},
    ],
    ids=str,
)
def test_a_wrong_parameter_is_named_in_one_line(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^{name}=[^\n]* must [^\n]*$"):
        build(63, **wrong)
