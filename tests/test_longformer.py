"""Longformer: who sees whom, told from where values arrive."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.longformer import Longformer

from .oracles import longformer

HEADS, DIM = 2, 8


def inputs(length: int, batch: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (batch, HEADS, length, DIM)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


def sees(core: Longformer, mask: Tensor | None, length: int) -> Tensor:
    """(N, N) bool of the first example: whether the value of token j arrives at token i."""
    q, k, _ = (x.detach()[:1] for x in inputs(length))
    values = torch.eye(length, dtype=torch.float64).expand(1, HEADS, -1, -1)
    columns = [core.double()(q, k, part, mask) for part in values.split(DIM, -1) if part.shape[-1] == DIM]
    return torch.cat(columns, -1)[0, 0] > 0


def check(core: Longformer, qkv: list[Tensor], mask: Tensor) -> None:
    """Values and gradients of all inputs equal the oracle's."""
    q, k, v = qkv
    out, expected = core(q, k, v, mask), longformer.dense(core, q, k, v, mask)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    assert_close(out, expected)
    assert_close(torch.autograd.grad(out, qkv, direction), torch.autograd.grad(expected, qkv, direction))


def test_a_window_of_64_is_32_tokens_on_either_side_and_the_token_itself() -> None:
    seen = sees(Longformer(HEADS, DIM, 200), None, 200)
    assert seen[100].nonzero().flatten().tolist() == [0, *range(68, 133)]
    assert seen[199].nonzero().flatten().tolist() == [0, *range(167, 200)]


def test_the_global_token_sees_all_and_all_see_it() -> None:
    seen = sees(Longformer(HEADS, DIM, 200), None, 200)
    assert seen[0].all()
    assert seen[:, 0].all()


def test_the_global_token_is_the_first_real_one() -> None:
    mask = torch.arange(200)[None] >= 3
    seen = sees(Longformer(HEADS, DIM, 200), mask, 200)
    assert seen[3].nonzero().flatten().tolist() == list(range(3, 200))
    assert seen[150].nonzero().flatten().tolist() == [3, *range(118, 183)]


def test_a_global_token_inside_the_window_counts_once() -> None:
    """Equal logits: the weight of each of the 1 + 3 tokens in sight is 1 / 4, the global one's too."""
    core = Longformer(HEADS, DIM, 8, window=4)
    zero = torch.zeros(1, HEADS, 8, DIM)
    v = torch.eye(8).expand(1, HEADS, -1, -1)
    assert_close(core(zero, zero, v)[0, 0, 1], torch.tensor([0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0]))


@pytest.mark.parametrize(
    "setting",
    [
        {"window": 0, "global_tokens": 0},
        {"window": 2, "global_tokens": 0},
        {"window": 0, "global_tokens": 3},
        {"window": 14, "global_tokens": 40},
        {"window": 70, "global_tokens": 2},
    ],
    ids=str,
)
def test_every_setting_agrees_with_the_dense_oracle(setting: dict[str, Any]) -> None:
    """With examples that have holes, one real token, and none."""
    qkv = inputs(83, batch=4)
    mask = torch.rand(4, 83, generator=torch.Generator().manual_seed(0)) < 0.7
    mask[1] = torch.arange(83) == 50
    mask[2] = False
    check(Longformer(HEADS, DIM, 83, **setting), qkv, mask)


def test_many_heads_are_computed_as_each_alone() -> None:
    """More heads than are taken at a time."""
    core = Longformer(HEADS, DIM, 2048)
    qkv = [x.detach().requires_grad_() for x in inputs(2048, batch=4, dtype=torch.float32)]
    out = core(*qkv)
    alone = [x.detach()[3:].requires_grad_() for x in qkv]
    expected = core(*alone)
    assert_close(out[3:], expected)
    gradients = [x[3:] for x in torch.autograd.grad(out.square().sum(), qkv)]
    assert_close(gradients, list(torch.autograd.grad(expected.square().sum(), alone)))


def test_very_negative_logits_beside_padding_do_not_underflow() -> None:
    q, k, v = inputs(63)
    q, k = (20.0 + q).detach().requires_grad_(), (k - 20.0).detach().requires_grad_()
    check(Longformer(HEADS, DIM, 63, window=8), [q, k, v], torch.arange(63).expand(2, -1) < 43)


def test_autocast_changes_nothing_inside() -> None:
    qkv = inputs(63, dtype=torch.float32)
    core = Longformer(HEADS, DIM, 63, window=8)
    expected = core(*qkv)
    gradients = torch.autograd.grad(expected.square().sum(), qkv)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = core(*qkv)
        found = torch.autograd.grad(out.square().sum(), qkv)
    assert_close((out, *found), (expected, *gradients), rtol=0, atol=0)


def test_a_second_derivative_raises() -> None:
    qkv = inputs(17)
    out = Longformer(HEADS, DIM, 17, global_tokens=0)(*qkv)
    (first,) = torch.autograd.grad(out.square().sum(), qkv[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize("wrong", [{"window": 7}, {"window": -2}, {"window": 4.0}, {"global_tokens": -1}], ids=str)
def test_a_wrong_parameter_is_named_in_one_line(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^{name}=[^\n]* must [^\n]*$"):
        Longformer(HEADS, DIM, 63, **wrong)
