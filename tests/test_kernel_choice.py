"""The compiled choice of pairs, and the logits that it goes by, against their references."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.ops import block_choice, kernels

from .kernel_cases import HERE, Case, arguments
from .oracles import rounding

ODD = (math.nan, -math.nan, math.inf, -math.inf, 3e38, -3e38, 1e-45, -0.0, 0.0)


@pytest.fixture(scope="module", autouse=True)
def _compiled_or_error() -> Iterator[None]:
    with kernels.use("cpu"):
        assert kernels.available()
        yield


@settings(max_examples=150)
@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 2**20),
    share=st.floats(0, 1),
    kind=st.sampled_from(["normal", "few values", "constant", "nan", "odd"]),
    forced=st.tuples(st.integers(0, 3), st.integers(0, 4)),
    fill=st.booleans(),
)
def test_the_choice_is_that_of_the_reference(
    count: int, seed: int, share: float, kind: str, forced: tuple[int, int], fill: bool
) -> None:
    """Whatever the logits hold: ties by place, and NaN and infinities end it no later and no differently."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, count, count, generator=generator)
    odd = torch.tensor(ODD)[torch.randint(0, len(ODD), logits.shape, generator=generator)]
    logits = {
        "normal": logits,
        "few values": logits.round(),
        "constant": 0 * logits + 0.3,
        "nan": logits * math.nan,
        "odd": torch.where(torch.rand(logits.shape, generator=generator) < 0.2, odd, logits),
    }[kind]
    real = torch.rand(3, count, generator=generator) < 0.3 + share
    real[1] = real[1] & (seed % 2 == 0)
    most = int(share * count**2)
    budget = torch.randint(0, count**2 + 2, (3,), generator=generator)
    given = logits, real, budget, most, *forced, fill
    assert_close(torch.ops.zoo.choose_blocks(*given), block_choice.choose_blocks_reference(*given), rtol=0, atol=0)


def means(x: Tensor, mask: Tensor | None, block_size: int) -> rounding.Rounded:
    """(G, K, D) in float64, as exact as a sum of that many numbers can be."""
    real = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    counts = rounding.block_sums(rounding.exact(real), block_size).value.clamp(min=1)
    sums = rounding.block_sums(rounding.exact(x).keep(real[:, :, None]), block_size)
    return rounding.Rounded(sums.value / counts[:, :, None], sums.error / counts[:, :, None])


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("length", "block_size", "dim"), [(100, 8, 5), (1024, 32, 32), (63, 16, 64), (1, 8, 1)])
def test_logits_of_block_means_are_the_references_but_for_the_rounding_of_float64(
    length: int, block_size: int, dim: int, masked: bool, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both round once more at the end, to float32: half a unit in the last place beside the error of float64.

    That error is the bound of oracles/rounding.py, which counts in units of 2^-24, taken in those of 2^-53.
    """
    monkeypatch.setenv("ZOO_ISA", level)
    given = arguments(Case(3, length, dim, block_size, 0.0, masked, False, 1.0, 1))
    q, k, mask = given["q"], given["k"], given["mask"]
    bound = rounding.product(means(q, mask, block_size), means(k, mask, block_size).mT, dim + 4)
    exact, within = bound.value / math.sqrt(dim), bound.error / math.sqrt(dim) * 2.0**-29
    expected = block_choice.block_logits_reference(q, k, block_size, mask)
    found = torch.ops.zoo.block_logits(q, k, block_size, mask)
    for logits in (found, expected):
        assert ((logits.double() - exact).abs() <= within + exact.abs() * 2.0**-24).all()
    assert (found == expected).double().mean() > 0.999


CHOICE = torch.zeros(2, 3, 3), torch.ones(2, 3, dtype=torch.bool), torch.tensor([2, 2])


@pytest.mark.parametrize(
    ("complaint", "given"),
    [
        (r"logits must be .* of shape \(2, 2, 2\)", (CHOICE[0][:, :2], *CHOICE[1:], 4)),
        (r"real must be .* bool .* of shape \(2, 3\)", (CHOICE[0], CHOICE[1][:1], CHOICE[2], 4)),
        (r"budget must be .* int64 .* of shape \(2\)", (*CHOICE[:2], CHOICE[2].int(), 4)),
        ("most=10 must be from 0 to 9", (*CHOICE, 10)),
        ("most=-1 must be from 0 to 9", (*CHOICE, -1)),
    ],
    ids=str,
)
def test_wrong_arrays_of_the_choice_raise_and_are_not_read(complaint: str, given: tuple[Any, ...]) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        torch.ops.zoo.choose_blocks(*given, 0, 0, True)


def test_no_heads_and_no_blocks_choose_nothing() -> None:
    for heads, count in ((0, 3), (2, 0), (0, 0)):
        given = torch.zeros(heads, count, count), torch.ones(heads, count, dtype=torch.bool), torch.ones(heads).long()
        assert torch.ops.zoo.choose_blocks(*given, count**2, 0, 0, True).shape == (heads, count**2 + count, 2)
