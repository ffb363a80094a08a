"""The operator of YOSO against every pair, one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.ops.hash_collisions import CHUNK, hash_collisions

HEADS, LENGTH, FUNCTIONS, DIM, SLOPE = 2, 150, 3, 5, 1.5


def inputs(*shape: int) -> list[Tensor]:
    """q, k, v and an upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(4)]


def codes(buckets: int) -> list[Tensor]:
    """Of queries and keys, a tenth of which collide with nothing, and some buckets much larger than others."""
    generator = torch.Generator().manual_seed(buckets)
    shares = torch.rand(HEADS, LENGTH, 2 * FUNCTIONS, generator=generator) ** 3
    nothing = torch.rand(shares.shape, generator=generator) < 0.1
    return list((shares * buckets).long().masked_fill(nothing, buckets).split(FUNCTIONS, -1))


def expected(tensors: list[Tensor], codes: list[Tensor], buckets: int) -> list[Tensor]:
    """out, d_q, d_k, d_v from the (N, N) matrix of weights."""
    q, k, v, upstream = (x.detach() for x in tensors)
    same = codes[0][:, :, None] == codes[1][:, None]  # (HEADS, N, N, FUNCTIONS)
    weights = (same & (codes[0][:, :, None] < buckets)).double().mean(-1)
    by_product = SLOPE * weights * (upstream @ v.mT)
    return [weights @ v, by_product @ k, by_product.mT @ q, weights.mT @ upstream]


def found(tensors: list[Tensor], codes: list[Tensor], buckets: int) -> list[Tensor]:
    q, k, v, upstream = tensors
    out = hash_collisions(q, k, v, codes[0], codes[1], buckets, SLOPE)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), upstream.detach())]


@pytest.mark.parametrize("buckets", [1, 2, 3, 10, 100, 1000])
def test_values_and_gradients_are_those_of_all_pairs_whatever_the_buckets_sizes(buckets: int) -> None:
    x = inputs(HEADS, LENGTH, DIM)
    assert_close(found(x, codes(buckets), buckets), expected(x, codes(buckets), buckets))


@pytest.mark.parametrize("queries", [1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1])
@pytest.mark.parametrize("keys", [0, 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_a_bucket_of_any_size_is_exact_beside_others(queries: int, keys: int) -> None:
    """The first function has one bucket of these sizes, and its other tokens stand alone."""
    place = torch.arange(LENGTH)
    alone = [torch.where(place < size, 0, 1 + place) for size in (queries, keys)]
    both = [first[None, :, None].expand(HEADS, LENGTH, 1) for first in alone]
    pairs = [torch.cat([x, y[:, :, 1:]], -1) for x, y in zip(both, codes(LENGTH + 1), strict=True)]
    x = inputs(HEADS, LENGTH, DIM)
    assert_close(found(x, pairs, LENGTH + 1), expected(x, pairs, LENGTH + 1))


def test_where_nothing_collides_all_is_zero() -> None:
    x = inputs(HEADS, LENGTH, DIM)
    never = torch.full((HEADS, LENGTH, FUNCTIONS), 4)
    for pair in ([never, never], [torch.zeros_like(never), torch.ones_like(never)]):
        for result in found(x, pair, 4):
            assert_close(result, torch.zeros_like(result), rtol=0, atol=0)


@pytest.mark.parametrize("buckets", [64, 2**14])
def test_more_heads_and_functions_than_fit_one_part_change_nothing(buckets: int) -> None:
    length = 1200
    x = inputs(5, length, 2)
    pair = [torch.randint(buckets, (5, length, 8), generator=torch.Generator().manual_seed(i)) for i in range(2)]
    together = found(x, pair, buckets)
    for head in range(5):
        one = slice(head, head + 1)
        alone = [y[one].detach().requires_grad_() for y in x]
        assert_close([y[one] for y in together], found(alone, [y[one] for y in pair], buckets))


def test_every_result_repeats_bit_for_bit() -> None:
    x = [x.detach().float().requires_grad_() for x in inputs(HEADS, LENGTH, DIM)]
    assert_close(found(x, codes(10), 10), found(x, codes(10), 10), rtol=0, atol=0)


def test_a_second_derivative_raises() -> None:
    q, k, v, _ = inputs(HEADS, LENGTH, DIM)
    q_codes, k_codes = codes(10)
    out = hash_collisions(q, k, v, q_codes, k_codes, 10, SLOPE)
    (slope,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        slope.sum().backward()


def test_the_operator_is_registered_as_torch_asks() -> None:
    x = [x.detach().requires_grad_() for x in inputs(HEADS, 9, DIM)[:3]]
    small = [code[:, :9] for code in codes(4)]
    tests = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_static")
    report = torch.library.opcheck(torch.ops.zoo.hash_collisions.default, (*x, *small, 4, SLOPE), test_utils=tests)
    assert set(report.values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": torch.zeros(HEADS, 4, DIM)}, r"^q, k, v must have one shape"),
        ({"v": torch.zeros(HEADS, 5, DIM).double()}, r"^q, k, v must all be float32 or float64"),
        ({"q_codes": torch.zeros(HEADS, 5, FUNCTIONS)}, r"^q_codes must be int64"),
        ({"k_codes": torch.zeros(HEADS, 4, FUNCTIONS).long()}, r"^k_codes must be int64"),
        ({"k_codes": torch.zeros(HEADS, 5, 1).long()}, r"^q_codes and k_codes must have one shape"),
        ({"buckets": 0}, r"^buckets=0 must be at least 1$"),
    ],
)
def test_wrong_arguments_are_answered_by_name(change: dict[str, Tensor | int], message: str) -> None:
    zeros, code = torch.zeros(HEADS, 5, DIM), torch.zeros(HEADS, 5, FUNCTIONS).long()
    arguments = {"q": zeros, "k": zeros, "v": zeros, "q_codes": code, "k_codes": code, "buckets": 4, "slope": SLOPE}
    with pytest.raises(ValueError, match=message):
        hash_collisions(**(arguments | change))  # type: ignore[arg-type]
