"""zoo::block_sparse_attention against attention written row by row, and torch's own checks of an operator."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.ops.block_sparse import block_sparse_attention

from .oracles.blocks import dense_pairs

HEADS, DIM = 3, 5


class Case(NamedTuple):
    length: int
    block_size: int
    masked: bool
    prior: bool


CASES = [
    Case(1, 4, False, False),
    Case(3, 8, True, True),
    Case(17, 4, False, False),
    Case(17, 4, True, True),
    Case(32, 8, True, False),
    Case(33, 8, False, True),
]


def arguments(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Random heads with about half of all pairs, none in query block 1; head 1 is masked altogether."""
    generator = torch.Generator().manual_seed(case.length)
    count = -(-case.length // case.block_size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    blocks = torch.tensor([count, 0]).repeat(HEADS, count**2 + 1, 1)
    for head in range(HEADS):
        drawn = torch.rand(count, count, generator=generator) < 0.5
        if count > 1:
            drawn[1] = False
        pairs = drawn.nonzero()
        blocks[head, : len(pairs)] = pairs
    mask = torch.rand(HEADS, case.length, generator=generator) < 0.6
    mask[1] = False
    prior_logit = normal(HEADS, count)
    prior_logit[0, -1] = -math.inf
    return {
        "q": normal(HEADS, case.length, DIM).requires_grad_(),
        "k": normal(HEADS, case.length, DIM).requires_grad_(),
        "v": normal(HEADS, case.length, DIM).requires_grad_(),
        "blocks": blocks,
        "block_size": case.block_size,
        "mask": mask if case.masked else None,
        "prior_logit": prior_logit.requires_grad_() if case.prior else None,
        "prior_value": normal(HEADS, count, DIM).requires_grad_() if case.prior else None,
    }


def differentiable(given: dict[str, Any]) -> list[Tensor]:
    return [x for x in given.values() if isinstance(x, Tensor) and x.requires_grad]


def oracle(q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, **rest: Any) -> tuple[Tensor, Tensor]:
    heads = []
    for head in range(len(q)):
        mask, logit, value = (None if x is None else x[head] for x in rest.values())
        mask = torch.ones(q.shape[1], dtype=torch.bool) if mask is None else mask
        heads.append(dense_pairs(q[head], k[head], v[head], blocks[head].tolist(), block_size, mask, logit, value))
    outs, lses = zip(*heads, strict=True)
    return torch.stack(outs), torch.stack(lses)


def objective(out: Tensor, lse: Tensor) -> Tensor:
    """A scalar that depends on all of out and on every finite lse."""
    generator = torch.Generator().manual_seed(1)
    upstream, upstream_lse = (torch.randn(x.shape, generator=generator).to(x.dtype) for x in (out, lse))
    finite = lse > -math.inf
    return (out * upstream).sum() + (lse[finite] * upstream_lse[finite]).sum()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients_are_those_of_attention_row_by_row(case: Case) -> None:
    given = arguments(case)
    out, lse = block_sparse_attention(**given)
    expected, expected_lse = oracle(**given)
    assert_close(out, expected)
    assert_close(lse, expected_lse)
    found = torch.autograd.grad(objective(out, lse), differentiable(given))
    wanted = torch.autograd.grad(objective(expected, expected_lse), differentiable(given))
    assert_close(found, wanted)


@pytest.mark.parametrize("case", CASES[:4], ids=str)
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    given = arguments(case)

    def scalar(*changed: Tensor) -> Tensor:
        names = [name for name, x in given.items() if isinstance(x, Tensor) and x.requires_grad]
        return objective(*block_sparse_attention(**(given | dict(zip(names, changed, strict=True)))))

    values = differentiable(given)
    if case.prior:
        values[3].data[0, -1] = -3.0  # finite differences of -inf are NaN
    assert torch.autograd.gradcheck(scalar, values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("case", CASES[2:], ids=str)
def test_torch_accepts_the_operator(case: Case, dtype: torch.dtype) -> None:
    """Schema, autograd registration, fake tensors and ahead-of-time dispatch, with static and dynamic shapes."""
    results = torch.library.opcheck(
        torch.ops.zoo.block_sparse_attention.default,
        tuple(arguments(case, dtype).values()),
        rtol=2e-2 if dtype == torch.bfloat16 else None,
        atol=2e-2 if dtype == torch.bfloat16 else None,
    )
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_half_precision_is_lost_in_the_output_alone(case: Case, dtype: torch.dtype) -> None:
    """Inside, at least float32: the result is the exact one of the rounded inputs, rounded once.

    Sums of up to 33 terms of order 1 leave `noise` in float32; a gradient rounds q, k, v, out and itself.
    """
    given = arguments(case, dtype)
    exact: dict[str, Any] = {
        name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in given.items()
    }
    out, lse = block_sparse_attention(**given)
    expected, expected_lse = oracle(**exact)
    ulp, noise = torch.finfo(dtype).eps, 16 * torch.finfo(torch.float32).eps
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert_close(out.double(), expected, rtol=ulp, atol=noise)
    assert_close(lse.double(), expected_lse, rtol=0, atol=noise)
    found = torch.autograd.grad(objective(out.float(), lse), differentiable(given))
    wanted = torch.autograd.grad(objective(expected, expected_lse), [x for x in exact.values() if _learns(x)])
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert_close(one.double(), other, rtol=4 * ulp, atol=4 * ulp + noise)


def _learns(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def test_every_result_repeats_bit_for_bit() -> None:
    given = arguments(Case(33, 8, True, True), torch.float32)
    runs = []
    for _ in range(2):
        out, lse = block_sparse_attention(**given)
        runs.append([out, lse, *torch.autograd.grad(objective(out, lse), differentiable(given))])
    assert_close(runs[0], runs[1], rtol=0, atol=0)


def test_int32_pairs_and_transposed_inputs_change_nothing() -> None:
    given = arguments(Case(33, 8, True, True))
    out, lse = block_sparse_attention(**given)
    strided = {name: given[name].mT.contiguous().mT for name in "qkv"}
    assert_close(block_sparse_attention(**given | strided | {"blocks": given["blocks"].int()}), (out, lse))


def test_no_pairs_at_all_leave_the_virtual_key() -> None:
    given = arguments(Case(9, 4, False, True))
    given["blocks"] = given["blocks"][:, :0]
    out, lse = block_sparse_attention(**given)
    logit, value = (given[name].repeat_interleave(4, 1)[:, :9] for name in ("prior_logit", "prior_value"))
    assert_close(out, torch.where(logit[..., None] > -math.inf, value, 0.0))
    assert_close(lse, logit)
    gradients = torch.autograd.grad(objective(out, lse), differentiable(given))
    assert all(x.isfinite().all() for x in gradients)


def test_many_heads_are_computed_as_each_alone() -> None:
    """More heads than the reference takes at a time."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(40, 256, 4, generator=generator) for _ in range(3))
    blocks = torch.cartesian_prod(torch.arange(8), torch.arange(8)).repeat(40, 1, 1)
    out, lse = block_sparse_attention(q, k, v, blocks, 32)
    alone, lse_alone = block_sparse_attention(q[37:38], k[37:38], v[37:38], blocks[:1], 32)
    assert_close((out[37:38], lse[37:38]), (alone, lse_alone))
    assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, k, v))


def test_a_second_derivative_raises() -> None:
    given = arguments(Case(17, 4, False, False))
    out, lse = block_sparse_attention(**given)
    (first,) = torch.autograd.grad(objective(out, lse), given["q"], create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("block_size", lambda x: 0),
        ("q, k, v", lambda x: x),
        ("blocks", lambda x: x.float()),
        ("mask", lambda x: x.int()),
        ("prior_logit", lambda x: x[:, 1:]),
        ("prior_value", lambda x: None),
    ],
)
def test_wrong_arguments_are_named_in_one_line(name: str, change: Any) -> None:
    given = arguments(Case(17, 4, True, True))
    if name == "q, k, v":
        given["k"] = given["k"][:, :-1]
    else:
        given[name] = change(given[name])
    with pytest.raises(ValueError, match=f"{name}[^\n]*$"):
        block_sparse_attention(**given)
