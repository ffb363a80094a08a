"""What the laws do not say of Linformer: its limit, its short inputs, and the projection that layers share."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from attention_zoo import Attention
from attention_zoo.linformer import Linformer
from attention_zoo.softmax import Softmax

from .oracles import softmax

BATCH, HEADS, DIM, SEQ_LEN = 2, 2, 6, 40


def inputs(length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (BATCH, HEADS, length, DIM)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def test_with_the_identity_as_the_projection_it_is_softmax() -> None:
    core = Linformer(HEADS, DIM, SEQ_LEN, rank=SEQ_LEN)
    core.projection = nn.Parameter(torch.eye(SEQ_LEN).expand(HEADS, -1, -1))
    qkv = inputs(SEQ_LEN)
    q, k, v = qkv
    out = core(q, k, v)
    expected = softmax.dense(core, q, k, v, torch.ones(BATCH, SEQ_LEN, dtype=torch.bool))
    assert_close(out, expected)
    direction = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    assert_close(torch.autograd.grad(out, qkv, direction), torch.autograd.grad(expected, qkv, direction))


def test_a_short_input_takes_the_first_columns_of_the_projection() -> None:
    core, cut = Linformer(HEADS, DIM, SEQ_LEN, rank=5), Linformer(HEADS, DIM, 17, rank=5)
    cut.projection = nn.Parameter(core.projection[:, :, :17].detach())
    assert_close(core(*inputs(17)), cut(*inputs(17)), rtol=0, atol=0)


def test_padded_keys_leave_no_trace_on_the_projected_axis() -> None:
    """The projected rows are no tokens and are never masked: real tokens alone make them."""
    core = Linformer(HEADS, DIM, SEQ_LEN, rank=5)
    q, k, v = inputs(SEQ_LEN)
    mask = torch.arange(SEQ_LEN).expand(BATCH, -1) < 17
    short = core(q[:, :, :17], k[:, :, :17], v[:, :, :17])
    assert_close(core(q, k, v, mask)[:, :, :17], short)


def test_one_projection_for_each_head_serves_keys_and_values() -> None:
    torch.manual_seed(0)
    core = Linformer(HEADS, DIM, 400, rank=64)
    ((name, projection),) = core.named_parameters()
    assert (name, tuple(projection.shape)) == ("projection", (HEADS, 64, 400))
    assert_close(projection.std().item(), 1 / math.sqrt(64), rtol=0.02, atol=0)


def test_layers_that_share_learn_one_projection() -> None:
    first, second = (Linformer(HEADS, DIM, SEQ_LEN, rank=5) for _ in range(2))
    second.share_with(first)
    assert second.projection is first.projection
    layers = nn.ModuleList([first, second])
    assert len(list(layers.parameters())) == 1
    q, k, v = inputs(17)
    alone = [torch.autograd.grad(f(q, k, v).square().sum(), first.projection)[0] for f in (first, second)]
    both = torch.autograd.grad((first(q, k, v).square() + second(q, k, v).square()).sum(), first.projection)[0]
    assert_close(both, alone[0] + alone[1])


@pytest.mark.parametrize(
    "first",
    [
        Softmax(HEADS, DIM, SEQ_LEN),
        Linformer(HEADS, DIM, SEQ_LEN, rank=6),
        Linformer(HEADS, DIM, SEQ_LEN + 1, rank=5),
        Linformer(HEADS + 1, DIM, SEQ_LEN, rank=5),
    ],
    ids=lambda core: type(core).__name__,
)
def test_a_projection_that_does_not_fit_is_refused_in_one_line(first: Attention) -> None:
    with pytest.raises(ValueError, match=r"\Aa Linformer with a projection of \(2, 5, 40\) cannot share [^\n]*\Z"):
        Linformer(HEADS, DIM, SEQ_LEN, rank=5).share_with(first)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "8"])
def test_a_wrong_rank_is_named_in_one_line(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"\Arank=[^\n]* must be an integer of at least 1\Z"):
        Linformer(HEADS, DIM, SEQ_LEN, rank=wrong)
