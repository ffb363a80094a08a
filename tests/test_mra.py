"""General MRA against a dense oracle, against MRA-2 where they meet, and the promises of its refinement."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.mra import MRA
from attention_zoo.mra2 import MRA2

from .oracles import mra, per_head
from .oracles.blocks import dense_mra2, real_tokens

BATCH, HEADS, DIM, SEQ_LEN = 3, 2, 6, 100
SETTINGS: list[dict[str, Any]] = [
    {"scales": (8, 1), "blocks_per_row": (2,)},
    {"scales": (16, 4, 1), "blocks_per_row": (2, 3), "rule": "row"},
    {"scales": (16, 4, 1), "blocks_per_row": (2, 3), "budget": "length"},
    {"scales": (24, 12, 4, 1), "blocks_per_row": (2, 2, 2)},
    {"scales": (16, 4, 1), "blocks_per_row": (1, 40)},
    {"scales": (8, 2), "blocks_per_row": (2,)},
    {"scales": (16, 8, 4), "blocks_per_row": (2, 1), "rule": "row", "budget": "length"},
    {},
]
settings = pytest.mark.parametrize("setting", SETTINGS, ids=str)


def inputs(length: int, dim: int = DIM, heads: int = HEADS) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, heads, length, dim)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def constant(length: int) -> list[Tensor]:
    """Queries and keys that make every weight equal."""
    q, k, v = inputs(length)
    return [torch.full_like(q, 0.7).requires_grad_(), torch.full_like(k, 0.7).requires_grad_(), v]


def ragged(length: int) -> Tensor:
    """One example with holes, one without a real token, one that ends early."""
    mask = torch.rand(BATCH, length, generator=torch.Generator().manual_seed(length)) < 0.7
    mask[1] = False
    mask[2] = torch.arange(length) < max(1, length // 2)
    return mask


def check(found: Tensor, expected: Tensor, qkv: list[Tensor]) -> None:
    """Values and gradients of all inputs are equal."""
    direction = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=found.dtype)
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found, qkv, direction), torch.autograd.grad(expected, qkv, direction))


def softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1) @ v


def error(core: MRA | MRA2, qkv: list[Tensor]) -> float:
    """The relative error of the output against softmax attention."""
    exact = softmax(*qkv)
    return float((core(*qkv) - exact).norm() / exact.norm())


@settings
def test_every_setting_agrees_with_the_dense_oracle(setting: dict[str, Any]) -> None:
    core, (q, k, v), mask = MRA(HEADS, DIM, SEQ_LEN, **setting), inputs(63), ragged(63)
    check(core(q, k, v, mask), mra.dense(core, q, k, v, mask), [q, k, v])


@settings
def test_ties_agree_with_the_dense_oracle(setting: dict[str, Any]) -> None:
    core, (q, k, v), mask = MRA(HEADS, DIM, SEQ_LEN, **setting), constant(63), ragged(63)
    check(core(q, k, v, mask), mra.dense(core, q, k, v, mask), [q, k, v])


@settings
def test_ties_are_broken_in_one_way_however_much_padding_follows(setting: dict[str, Any]) -> None:
    core, qkv, mask = MRA(HEADS, DIM, SEQ_LEN, **setting), constant(100), ragged(100)
    mask[:, 50:] = False
    short = [x.detach()[:, :, :50].requires_grad_() for x in qkv]
    gradients = torch.autograd.grad(core(*qkv, mask).square().sum(), qkv)
    expected = torch.autograd.grad(core(*short, mask[:, :50]).square().sum(), short)
    assert_close([x[:, :, :50] for x in gradients], list(expected))


@pytest.mark.parametrize("budget", ["seq_len", "length"])
@pytest.mark.parametrize("blocks_per_row", [1, 3])
def test_two_scales_and_the_rows_rule_are_mra2(blocks_per_row: int, budget: str) -> None:
    qkv, mask = inputs(63), ragged(63)
    core = MRA(HEADS, DIM, SEQ_LEN, scales=(8, 1), blocks_per_row=(blocks_per_row,), rule="row", budget=budget)
    peer = MRA2(HEADS, DIM, SEQ_LEN, block_size=8, blocks_per_row=blocks_per_row, budget=budget)
    check(core(*qkv, mask), peer(*qkv, mask), qkv)


def test_two_scales_refine_the_largest_weights_of_the_head() -> None:
    core, qkv, mask = MRA(HEADS, DIM, SEQ_LEN, scales=(8, 1), blocks_per_row=(1,)), inputs(63), ragged(63)

    def mra2_of_the_largest(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        logits = (q @ k.T).detach()
        blocks = [(x, tokens) for x, tokens in enumerate(real_tokens(mask, 8)) if tokens]
        means = {(x, y): float(logits[rows][:, columns].mean()) for x, rows in blocks for y, columns in blocks}
        pairs = sorted(means, key=lambda pair: -means[pair])[:13]
        return dense_mra2(q, k, v, mask, pairs, block_size=8, coarse=True)

    check(core(*qkv, mask), per_head(mra2_of_the_largest, mask, *qkv), qkv)


@settings
def test_refining_loses_no_pair_of_tokens(setting: dict[str, Any]) -> None:
    """With one-hot values the output is the matrix of weights: positive at every real key, and a row sums to 1."""
    length = 40
    q, k, _ = inputs(length, dim=length)
    mask = ragged(length)
    core = MRA(HEADS, length, SEQ_LEN, **setting)
    weights = core(q, k, torch.eye(length, dtype=q.dtype).expand_as(q), mask)
    seen = (mask[:, :, None] & mask[:, None, :])[:, None].expand_as(weights)
    assert torch.equal(weights > 0, seen)
    assert_close(weights.sum(-1), mask[:, None].expand(-1, HEADS, -1).double())


def test_the_finest_scale_above_one_makes_the_output_constant_over_its_blocks() -> None:
    qkv = inputs(63)
    out = MRA(HEADS, DIM, SEQ_LEN, scales=(16, 4), blocks_per_row=(2,))(*qkv)
    assert_close(out[:, :, :60], out[:, :, :60:4].repeat_interleave(4, 2))
    everything = MRA(HEADS, DIM, SEQ_LEN, scales=(16, 4), blocks_per_row=(SEQ_LEN,))(*qkv)
    assert_close(everything, MRA(HEADS, DIM, SEQ_LEN, scales=(8, 4), blocks_per_row=(SEQ_LEN,))(*qkv))


@pytest.mark.parametrize("scales", [(8, 1), (32, 16, 1), (27, 9, 3, 1)])
def test_every_list_of_scales_that_ends_at_one_has_softmax_as_its_limit(scales: tuple[int, ...]) -> None:
    core = MRA(HEADS, DIM, SEQ_LEN, scales=scales, blocks_per_row=(SEQ_LEN,) * (len(scales) - 1))
    qkv = inputs(63)
    check(core(*qkv), softmax(*qkv), qkv)


def smooth(length: int) -> list[Tensor]:
    """Queries and keys that change slowly along the sequence, as the coarse scales expect."""
    place = torch.arange(length, dtype=torch.float64)[:, None]
    channels = torch.arange(1, DIM + 1, dtype=torch.float64)
    x = 2 * torch.sin(place * channels / 12 + channels**2).expand(BATCH, HEADS, -1, -1)
    return [x, x.roll(3, 2), inputs(length)[2].detach()]


@pytest.mark.parametrize("rule", ["magnitude", "row"])
def test_the_error_falls_as_the_budget_grows(rule: str) -> None:
    qkv = smooth(96)
    errors = [
        error(MRA(HEADS, DIM, 96, scales=(16, 4, 1), blocks_per_row=(few, 4 * few), rule=rule), qkv)
        for few in (1, 2, 3, 6)
    ]
    assert all(after < 0.8 * before for before, after in zip(errors, errors[1:], strict=False))
    assert errors[-1] < 1e-9


def test_a_middle_scale_beats_mra2_at_fewer_scores() -> None:
    """The scores are those of the coarsest pairs, and of the children of all that are refined."""
    qkv = smooth(96)
    mra2 = error(MRA2(HEADS, DIM, 96, block_size=16, blocks_per_row=2), qkv)
    scores = 6 * 6 + 2 * 6 * 16**2, 6 * 6 + 4 * 6 * 4**2 + 6 * 24 * 4**2
    with_middle = error(MRA(HEADS, DIM, 96, scales=(16, 4, 1), blocks_per_row=(4, 6)), qkv)
    assert scores[1] < scores[0]
    assert with_middle < 0.8 * mra2


def test_very_negative_logits_beside_padding_do_not_underflow() -> None:
    """All real logits are near -1000; padded tokens would score 0, but take part in no mean and in no maximum."""
    q, k, v = inputs(63)
    q, k = (20.0 + q).detach().requires_grad_(), (k - 20.0).detach().requires_grad_()
    mask = torch.arange(63).expand(BATCH, -1) < 43
    core = MRA(HEADS, DIM, SEQ_LEN, scales=(16, 4, 1), blocks_per_row=(1, 1))
    check(core(q, k, v, mask), mra.dense(core, q, k, v, mask), [q, k, v])


def test_a_query_block_without_a_refined_pair_keeps_its_coarse_output() -> None:
    """The first block's queries take the whole budget of the head; the others are answered all the same."""
    q, k, v = (x.detach() for x in inputs(64))
    q = q.abs() * torch.where(torch.arange(64) < 16, 10.0, 0.1)[:, None]
    k = k.abs()
    out = MRA(HEADS, DIM, 64, scales=(16, 4, 1), blocks_per_row=(1, 1))(q, k, v)
    assert_close(out[:, :, 16:32], out[:, :, 16:17].expand(-1, -1, 16, -1))
    assert (out[:, :, 0] - out[:, :, 1]).abs().max() > 1e-3
    assert (out[:, :, 16:].abs().sum(-1) > 0).all()


def test_autocast_changes_nothing_inside() -> None:
    q, k, v = (x.detach().float() for x in inputs(63))
    core = MRA(HEADS, DIM, SEQ_LEN, scales=(16, 4, 1), blocks_per_row=(2, 2))
    expected = core(q, k, v, ragged(63))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = core(q, k, v, ragged(63))
    assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize("budget", ["seq_len", "length"])
@pytest.mark.parametrize("blocks_per_row", [(2, 3), (1, 20), (30, 1)])
def test_share_counts_the_pairs_that_reach_single_tokens(blocks_per_row: tuple[int, ...], budget: str) -> None:
    q, k, _ = inputs(96)
    mask = torch.ones(BATCH, 96, dtype=torch.bool)
    mask[0, 48:], mask[1] = False, False
    core = MRA(HEADS, DIM, 96, scales=(16, 4, 1), blocks_per_row=blocks_per_row, budget=budget)
    singles = [sum(s == 1 for s, _, _ in mra.cover(core, q[b, 0], k[b, 0], mask[b])) for b in range(BATCH)]
    expected = [n / max(1, int(row.sum()) ** 2) for n, row in zip(singles, mask, strict=True)]
    assert_close(core.share(mask), torch.tensor(expected))


def test_nothing_reaches_single_tokens_where_the_last_scale_is_above_one() -> None:
    core = MRA(HEADS, DIM, SEQ_LEN, scales=(16, 4), blocks_per_row=(2,))
    assert_close(core.share(ragged(63)), torch.zeros(BATCH))
    assert core.kernel(torch.device("cpu")) is None
    assert MRA(HEADS, DIM, SEQ_LEN).kernel(torch.device("cpu")) == "cpu"


def test_lists_are_taken_for_tuples() -> None:
    core = MRA(HEADS, DIM, SEQ_LEN, scales=[16, 4, 1], blocks_per_row=[2, 3])
    assert (core.scales, core.blocks_per_row) == ((16, 4, 1), (2, 3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"scales": 8},
        {"scales": "8"},
        {"scales": (8,)},
        {"scales": (1, 8)},
        {"scales": (8, 8, 1)},
        {"scales": (8, 3, 1)},
        {"scales": (8, 0)},
        {"scales": (8.0, 1)},
        {"blocks_per_row": 8},
        {"blocks_per_row": (8,)},
        {"blocks_per_row": (8, 0)},
        {"blocks_per_row": (8, True)},
        {"rule": "column"},
        {"budget": "len"},
    ],
    ids=str,
)
def test_a_wrong_parameter_is_named_in_one_line(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^{name}(\[\d\])?=.*(must|is not)[^\n]*$"):
        MRA(HEADS, DIM, SEQ_LEN, **wrong)


def test_weights_are_powers_of_the_mean_logit_of_a_block() -> None:
    """One query block and two key blocks of one head, by hand."""
    q = torch.tensor([1.0, 3.0, 0.0, 0.0]).view(1, 1, 4, 1)
    k = torch.tensor([0.5, 1.5, -1.0, -2.0]).view(1, 1, 4, 1)
    v = torch.tensor([1.0, 2.0, 3.0, 5.0]).view(1, 1, 4, 1)
    mask = torch.tensor([[True, True, True, False]])
    out = MRA(1, 1, 4, scales=(4, 2), blocks_per_row=(1,))(q, k, v, mask)
    near, far = 2 * math.exp(2.0), math.exp(-2.0)
    assert_close(out[0, 0, 0, 0], torch.tensor((near * 1.5 + far * 3.0) / (near + far)))
