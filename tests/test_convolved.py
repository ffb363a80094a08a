"""The convolution around a core: a sum over the taps of each head's filter, added to what the core returns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo import Convolved
from attention_zoo.soft import Soft
from attention_zoo.softmax import Softmax
from lra.model import MultiHead

BATCH, HEADS, DIM, SEQ_LEN = 2, 3, 4, 300


def inputs(length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (BATCH, HEADS, length, DIM)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def convolution(v: Tensor, filters: Tensor) -> Tensor:
    """Place i, filter of head h: the sum over t of filters[h, t] v[i + t - taps // 2]."""
    length, taps = v.shape[2], filters.shape[1]
    v = torch.nn.functional.pad(v, (0, 0, taps // 2, taps // 2))
    return torch.stack([filters[:, t, None, None] * v[:, :, t : t + length] for t in range(taps)]).sum(0)


@pytest.mark.parametrize("length", [1, 16, 63, 64, 65, 130])
@pytest.mark.parametrize("taps", [1, 3, 33, 81])
def test_it_adds_a_sum_over_the_taps(taps: int, length: int) -> None:
    torch.manual_seed(0)
    core = Convolved(Softmax(HEADS, DIM, SEQ_LEN), taps).double()
    q, k, v = inputs(length)
    out, expected = core(q, k, v) - core.core(q, k, v).detach(), convolution(v, core.filters)
    assert_close(out, expected)
    direction = torch.sin(torch.arange(out.numel(), dtype=out.dtype)).view_as(out)
    found = torch.autograd.grad(core(q, k, v) - core.core(q, k, v), (v, core.filters), direction)
    assert_close(found, torch.autograd.grad(expected, (v, core.filters), direction))


@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e30])
def test_padded_values_never_enter(junk: float) -> None:
    core = Convolved(Softmax(HEADS, DIM, SEQ_LEN), taps=33).double()
    q, k, v = inputs(70)
    mask = torch.rand(BATCH, 70, generator=torch.Generator().manual_seed(0)) < 0.7
    real = mask[:, None, :, None]
    out = core(q, k, v.masked_fill(~real, junk), mask)
    expected = core.core(q, k, v, mask) + convolution(v.masked_fill(~real, 0.0), core.filters)
    assert_close(out, expected.masked_fill(~real, 0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_sum_is_taken_in_float32_at_least(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    core = Convolved(Softmax(HEADS, DIM, SEQ_LEN), taps=33)
    q, k, v = (x.to(dtype) for x in inputs(70))
    expected = (core.core(q, k, v) + convolution(v.double(), core.filters.double()).to(dtype)).detach()
    assert core(q, k, v).dtype == dtype
    assert_close(core(q, k, v).detach(), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = core(q, k, v) - core.core(q, k, v)
    assert_close(mixed, core(q, k, v) - core.core(q, k, v))


def test_around_soft_the_keys_stay_unread() -> None:
    torch.manual_seed(0)
    soft = Soft(HEADS, DIM, SEQ_LEN, landmarks=8)
    core = Convolved(soft, taps=33)
    assert (core.reads, core.normalised) == ("qv", False)
    q, k, v = inputs(70)
    assert_close(core(q, k, v), soft(q, k, v) + convolution(v, core.filters))
    model = MultiHead(core, dim=5)
    assert sorted(model.project) == ["q", "v"]
    model(torch.randn(BATCH, 70, 5), torch.ones(BATCH, 70, dtype=torch.bool)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("wrong", [0, 2, 32, -1, 33.0, True, "33"])
def test_taps_without_a_middle_are_answered_in_one_line(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"\Ataps=[^\n]* must be [^\n]*\Z"):
        Convolved(Softmax(HEADS, DIM, SEQ_LEN), wrong)
