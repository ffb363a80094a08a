"""What the laws do not say of SOFT: its kernel, its inverse, and its windows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.soft import Soft, gaussian, inverse

HEADS, DIM, SEQ_LEN = 2, 6, 40


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def kernel(*shape: int) -> Tensor:
    """A Gaussian kernel matrix of points with its gradient asked for."""
    x = 2 * normal(*shape)
    return torch.exp(-torch.cdist(x, x).square() / 2).requires_grad_()


def test_the_kernel_is_one_without_a_slope_at_distance_zero() -> None:
    x = normal(2, HEADS, 9, DIM).requires_grad_()
    found = gaussian(x, x)
    assert_close(found.diagonal(dim1=-2, dim2=-1), torch.ones(2, HEADS, 9, dtype=torch.float64))
    assert_close(found, torch.exp(-torch.cdist(x, x).square() / 2))
    (slope,) = torch.autograd.grad(found.diagonal(dim1=-2, dim2=-1).sum(), x)
    assert_close(slope, torch.zeros_like(slope))


def test_the_kernel_underflows_to_zero_with_finite_gradients() -> None:
    x, y = 1e3 * normal(1, 1, 9, DIM, dtype=torch.float32), normal(1, 1, 5, DIM, dtype=torch.float32)
    x.requires_grad_()
    found = gaussian(x, y)
    assert_close(found, torch.zeros_like(found), rtol=0, atol=0)
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert_close(slope, torch.zeros_like(slope), rtol=0, atol=0)


def test_the_inverse_converges_to_the_inverse_and_its_gradient() -> None:
    m, direction = kernel(2, 3, 8, DIM), normal(2, 3, 8, 8)
    found, exact = inverse(m, 40), torch.linalg.inv(m)
    assert_close(found, exact)
    (slope,), (expected,) = (torch.autograd.grad(x, m, direction) for x in (found, exact))
    assert_close(slope + slope.mT, expected + expected.mT)


@pytest.mark.parametrize(
    "matrix",
    [torch.eye(8), torch.ones(8, 8), torch.eye(8) + torch.ones(8, 8)],
    ids=["identity", "singular", "both"],
)
def test_newton_starts_where_it_cannot_diverge(matrix: Tensor) -> None:
    """From 2 / |M|_inf^2, the paper's start, one step turns the identity to 0. A singular M gets its pseudo-inverse."""
    m = matrix.view(1, 1, 8, 8).double()
    assert_close(inverse(m, 20), torch.linalg.pinv(m, hermitian=True))


def test_each_head_is_inverted_by_itself() -> None:
    m = kernel(2, 3, 8, DIM)
    assert_close(inverse(m, 7)[1:, 2:], inverse(m[1:, 2:], 7))


def test_a_head_that_has_converged_rests() -> None:
    """In float32, 14 idle steps of the backward would multiply its gradient by 1e-7 each."""
    m = torch.eye(8).expand(1, 1, 8, 8) + 0.01 * normal(1, 1, 8, 8, dtype=torch.float32).square()
    m = ((m + m.mT) / 2).requires_grad_()
    found, longer = inverse(m, 20), inverse(m, 60)
    assert_close(longer, found, rtol=0, atol=0)
    direction = normal(1, 1, 8, 8, dtype=torch.float32)
    (slope,), (expected,) = (torch.autograd.grad(x, m, direction) for x in (longer, torch.linalg.inv(m)))
    assert_close(slope + slope.mT, expected + expected.mT)


def test_the_weights_are_symmetric() -> None:
    """A token attends to another as much as that one to it: A M^-1 A^T."""
    core = Soft(1, SEQ_LEN, SEQ_LEN, landmarks=8)
    q = normal(1, 1, SEQ_LEN, SEQ_LEN)
    weights = core(q, q, torch.eye(SEQ_LEN, dtype=torch.float64).expand_as(q))
    weights = weights / weights.abs().max()
    assert_close(weights, weights.mT)


@pytest.mark.parametrize(("seq_len", "landmarks", "window"), [(40, 8, 5), (41, 8, 6), (7, 8, 1), (2048, 64, 32)])
def test_windows_follow_seq_len_alone(seq_len: int, landmarks: int, window: int) -> None:
    core = Soft(HEADS, DIM, seq_len, landmarks=landmarks)
    assert core.convolution.weight.shape == (DIM, DIM, window)
    found, real = core.summarise(normal(3, HEADS, min(seq_len, 9), DIM), torch.ones(3, min(seq_len, 9)).bool())
    assert found.shape[2] == math.ceil(min(seq_len, 9) / window) <= landmarks
    assert real.all()


def test_a_half_filled_window_counts_as_much_as_a_full_one() -> None:
    """With equal taps a landmark depends on the mean of its real tokens."""
    core = Soft(HEADS, DIM, SEQ_LEN, landmarks=8).double()
    with torch.no_grad():
        core.convolution.weight.copy_(core.convolution.weight[:, :, :1].expand_as(core.convolution.weight))
    q = normal(1, HEADS, 1, DIM).expand(-1, -1, 5, -1)
    mask = torch.tensor([[True, False, True, False, False]])
    (half, real), (full, _) = core.summarise(q * mask[:, None, :, None], mask), core.summarise(q, mask | True)
    assert_close(half, full)
    assert real.all()
    assert not core.summarise(q * 0, mask & False)[1].any()


def test_autocast_changes_nothing_inside() -> None:
    core, q, mask = Soft(HEADS, DIM, SEQ_LEN), normal(2, HEADS, 17, DIM, dtype=torch.float32), torch.ones(2, 17).bool()
    expected = core(q, q, q, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = core(q, q, q, mask)
    assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong", [{"landmarks": 0}, {"landmarks": 2.5}, {"iterations": -1}, {"iterations": True}], ids=str
)
def test_a_wrong_parameter_is_named_in_one_line(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"\A{name}=[^\n]* must be an integer of at least [01]\Z"):
        Soft(HEADS, DIM, SEQ_LEN, **wrong)
