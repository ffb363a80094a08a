"""MRA-2 and MRA-2-s against a dense oracle, and the choice of blocks against a sorted list."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.mra2 import MRA2
from attention_zoo.mra2_s import MRA2S
from attention_zoo.selection import SelectsBlocks

from .oracles import mra2
from .oracles.mra2 import expected_pairs

BATCH, HEADS, DIM, SEQ_LEN, BLOCK = 3, 2, 6, 100, 8
SETTINGS: list[dict[str, Any]] = [
    {"blocks_per_row": 2},
    {"blocks_per_row": 0},
    {"blocks_per_row": 1, "first_blocks": 1},
    {"blocks_per_row": 4, "first_blocks": 1},
    {"blocks_per_row": 1, "diagonal_blocks": 2},
    {"blocks_per_row": 1, "first_blocks": 3, "diagonal_blocks": 1},
    {"blocks_per_row": 2, "budget": "length"},
    {"blocks_per_row": 1, "budget": "length", "diagonal_blocks": 1},
]


def inputs(length: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (BATCH, HEADS, length, DIM)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def ragged(length: int) -> Tensor:
    """One example with holes, one without a real token, one that ends early."""
    generator = torch.Generator().manual_seed(length)
    mask = torch.rand(BATCH, length, generator=generator) < 0.7
    mask[1] = False
    mask[2] = torch.arange(length) < max(1, length // 2)
    return mask


def check(core: SelectsBlocks, qkv: list[Tensor], mask: Tensor | None) -> None:
    """Values and gradients of all inputs equal the oracle's."""
    out = core(*qkv, mask)
    q, k, v = qkv
    real = torch.ones(q.shape[0], q.shape[2], dtype=torch.bool) if mask is None else mask
    expected = mra2.dense(core, q, k, v, real, coarse=isinstance(core, MRA2))
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    assert_close(out, expected)
    assert_close(torch.autograd.grad(out, qkv, direction), torch.autograd.grad(expected, qkv, direction))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("variant", [MRA2, MRA2S])
def test_every_setting_agrees_with_the_dense_oracle(variant: type[SelectsBlocks], setting: dict[str, Any]) -> None:
    core = variant(HEADS, DIM, SEQ_LEN, block_size=BLOCK, **setting)
    check(core, inputs(63), ragged(63))


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[2], SETTINGS[6]], ids=str)
@pytest.mark.parametrize("variant", [MRA2, MRA2S])
def test_ties_agree_with_the_dense_oracle(variant: type[SelectsBlocks], setting: dict[str, Any]) -> None:
    """Constant queries and keys: every score is equal, and no block is lost from both resolutions."""
    core = variant(HEADS, DIM, SEQ_LEN, block_size=BLOCK, **setting)
    q, k, v = inputs(63)
    q, k = (torch.full_like(x, 0.7).requires_grad_() for x in (q, k))
    check(core, [q, k, v], ragged(63))


def selection(core: SelectsBlocks, q: Tensor, k: Tensor, mask: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The pairs (B, H, P, 2) that a forward pass computes exactly."""
    seen: list[Tensor] = []
    choose = core.choose

    def spy(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        seen.append(choose(q, k, mask))
        return seen[-1]

    monkeypatch.setattr(core, "choose", spy)
    core(q, k, q, mask)
    return seen[0]


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_selected_pairs_are_sorted_distinct_real_and_the_oracles(
    setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    core = MRA2(HEADS, DIM, SEQ_LEN, block_size=BLOCK, **setting)
    q, k, _ = inputs(100)
    mask = ragged(100)
    chosen = selection(core, q, k, mask, monkeypatch)
    for b in range(BATCH):
        for h in range(HEADS):
            pairs = [tuple(pair) for pair in chosen[b, h].tolist()]
            filled = [pair for pair in pairs if pair[0] < 13]
            assert pairs == filled + [(13, 0)] * (len(pairs) - len(filled))
            assert filled == expected_pairs(core, q[b, h], k[b, h], mask[b])


@pytest.mark.parametrize("constant", [False, True])
def test_the_choice_does_not_depend_on_the_padding(constant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    core = MRA2(HEADS, DIM, SEQ_LEN, block_size=BLOCK, blocks_per_row=1)
    q, k, _ = (torch.full_like(x, 0.3) if constant else x.detach() for x in inputs(100))
    mask = ragged(100)
    mask[:, 60:] = False
    short = selection(core, q[:, :, :60], k[:, :, :60], mask[:, :60], monkeypatch)
    padded = selection(core, q, k, mask, monkeypatch)
    for few, many in zip(short.flatten(0, 1).tolist(), padded.flatten(0, 1).tolist(), strict=True):
        assert [pair for pair in few if pair[0] < 8] == [pair for pair in many if pair[0] < 13]


def test_forced_blocks_rank_above_any_score(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block (0, 0) scores 1e9 below the others of its row and is chosen all the same, before anything else."""
    core = MRA2(1, 1, 16, block_size=4, blocks_per_row=1, first_blocks=1)
    q, k = torch.ones(1, 1, 16, 1), torch.linspace(-1e9, 0, 16).view(1, 1, 16, 1)
    chosen = selection(core, q, k, torch.ones(1, 16, dtype=torch.bool), monkeypatch)[0, 0].tolist()
    assert chosen[:4].count([0, 0]) == 1
    assert {x for x, _ in chosen if x < 4} == {0, 1, 2, 3}


def test_every_query_block_with_real_tokens_gets_a_key_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first row takes the whole budget; the others fall back to their best block."""
    core = MRA2S(HEADS, DIM, SEQ_LEN, block_size=BLOCK, blocks_per_row=1, first_blocks=1)
    q, k, _ = inputs(100)
    chosen = selection(core, q, k, torch.ones(BATCH, 100, dtype=torch.bool), monkeypatch)
    for head in chosen.flatten(0, 1).tolist():
        assert {x for x, _ in head if x < 13} == set(range(13))


@pytest.mark.parametrize("variant", [MRA2, MRA2S])
def test_very_negative_logits_beside_padding_do_not_underflow(variant: type[SelectsBlocks]) -> None:
    """All real logits are near -1000; padded keys and empty blocks would score 0, but take part in no maximum."""
    q, k, v = inputs(63)
    q, k = (torch.full_like(q, 20.0) + q).detach(), (torch.full_like(k, -20.0) + k).detach()
    mask = torch.arange(63).expand(BATCH, -1) < 43
    core = variant(HEADS, DIM, SEQ_LEN, block_size=BLOCK, blocks_per_row=1)
    check(core, [q.requires_grad_(), k.requires_grad_(), v], mask)


@pytest.mark.parametrize("variant", [MRA2, MRA2S])
def test_outputs_are_means_of_the_values(variant: type[SelectsBlocks]) -> None:
    q, k, v = inputs(63)
    mask = ragged(63)
    out = variant(HEADS, DIM, SEQ_LEN, block_size=BLOCK, blocks_per_row=1)(q, k, torch.ones_like(v), mask)
    assert_close(out, mask[:, None, :, None].expand_as(out).double())


@pytest.mark.parametrize("variant", [MRA2, MRA2S])
def test_autocast_changes_nothing_inside(variant: type[SelectsBlocks]) -> None:
    q, k, v = (x.detach().float() for x in inputs(63))
    core = variant(HEADS, DIM, SEQ_LEN, block_size=BLOCK, blocks_per_row=1)
    expected = core(q, k, v, ragged(63))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = core(q, k, v, ragged(63))
    assert_close(out, expected, rtol=0, atol=0)


def test_share_counts_the_exact_pairs_of_each_example(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, _ = inputs(100)
    mask = ragged(100)
    for budget in ("seq_len", "length"):
        core = MRA2(HEADS, DIM, SEQ_LEN, block_size=BLOCK, blocks_per_row=3, budget=budget)
        chosen = selection(core, q, k, mask, monkeypatch)
        blocks = [sum(bool(row[i : i + BLOCK].any()) for i in range(0, 100, BLOCK)) for row in mask]
        counted = [(chosen[b, 0, :, 0] < 13).sum() / max(1, n**2) for b, n in enumerate(blocks)]
        assert_close(core.share(mask), torch.stack(counted))


def test_the_budget_may_follow_seq_len_or_the_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """At half of seq_len, 13 x 2 pairs of 49 with the budget of seq_len, 7 x 2 with that of the length."""
    q, k, _ = inputs(50)
    mask = torch.ones(BATCH, 50, dtype=torch.bool)
    found = []
    for budget in ("seq_len", "length"):
        core = MRA2(HEADS, DIM, SEQ_LEN, block_size=BLOCK, blocks_per_row=2, budget=budget)
        found.append((selection(core, q, k, mask, monkeypatch)[..., 0] < 7).sum(-1).unique().tolist())
    assert found == [[26], [14]]


@pytest.mark.parametrize(
    "wrong",
    [
        {"block_size": 0},
        {"block_size": 2.5},
        {"blocks_per_row": -1},
        {"first_blocks": -1},
        {"diagonal_blocks": True},
        {"budget": "len"},
    ],
    ids=str,
)
@pytest.mark.parametrize("variant", [MRA2, MRA2S])
def test_a_wrong_parameter_is_named_in_one_line(variant: type[SelectsBlocks], wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}=.*(must|is not)[^\n]*$"):
        variant(HEADS, DIM, SEQ_LEN, **wrong)
