"""What the laws do not say about YOSO: estimates meet their expectation, and the traps of public copies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.yoso import YOSO, unit

from .oracles.yoso import dense
from .test_laws import BATCH, DIM, HEADS, Result, inputs, ragged, run

LENGTH = 40


def build(**parameters: Any) -> YOSO:
    torch.manual_seed(0)
    return YOSO(HEADS, DIM, LENGTH, **parameters).eval()


def mixed(core: YOSO, qkv: list[Tensor]) -> Result:
    """Before the output's normalisation."""
    mix = core.expected if core.expectation else core.sampled
    return run(lambda q, k, v, mask: mix(unit(q), unit(k), v, mask), qkv)


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hashes": 0}, r"^hashes=0 must be an integer of at least 1$"),
        ({"bits": 0}, r"^bits=0 must be an integer of at least 1$"),
        ({"bits": 2.5}, r"^bits=2.5 must be an integer of at least 1$"),
        ({"bits": 17}, r"^bits=17 must be at most 16: every function has a table of 2\^bits rows$"),
        ({"expectation": 1}, r"^expectation=1 must be true or false$"),
    ],
)
def test_wrong_parameters_are_answered_by_name(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**parameters)


@pytest.mark.parametrize(
    ("seq_len", "bits"), [(1, 1), (2, 1), (1024, 10), (2000, 10), (2048, 11), (4096, 12), (2**20, 16)]
)
def test_a_code_has_as_many_bits_as_the_positions_number(seq_len: int, bits: int) -> None:
    assert YOSO(1, 1, seq_len, hashes=1).bits == bits


def test_collisions_are_as_frequent_as_the_angle_says() -> None:
    """4,000 functions: the standard deviation of a share is below 0.008."""
    core = build(hashes=4000, bits=3)
    cosine = torch.linspace(-1, 1, LENGTH)
    q = torch.zeros(1, HEADS, LENGTH, DIM)
    q[..., 0] = 1
    k = torch.zeros_like(q)
    k[..., 1], k[..., 0] = (1 - cosine**2).sqrt(), cosine
    same = core.codes(q, core.directions, None) == core.codes(k, core.directions, None)
    expected = (1 - cosine.acos() / math.pi) ** 3
    assert_close(same.double().mean(-1), expected.double().expand(1, HEADS, -1), rtol=0, atol=0.032)


def test_values_and_gradients_meet_their_expectation_as_the_root_of_the_hashes() -> None:
    """Four times the hash functions halve the error, of the values as of the three gradients."""
    qkv = inputs(LENGTH, torch.float64)
    exact = mixed(build(bits=4, expectation=True), qkv)
    errors = []
    for hashes in (32, 128, 512, 2048):
        found = mixed(build(bits=4, hashes=hashes), qkv)
        pairs = zip((found.out, *found.gradients), (exact.out, *exact.gradients), strict=True)
        errors.append([distance(*pair) for pair in pairs])
    assert max(errors[-1]) < 0.1
    for more, fewer in zip(errors, errors[1:], strict=False):
        for before, after in zip(more, fewer, strict=True):
            assert 1.6 < before / after < 2.5


@pytest.mark.parametrize("masked", [False, True])
def test_the_expectation_is_the_closed_form(masked: bool) -> None:
    core = build(expectation=True)
    mask = ragged(LENGTH) if masked else torch.ones(BATCH, LENGTH, dtype=torch.bool)
    qkv = inputs(LENGTH, torch.float64)
    expected = run(lambda q, k, v, mask: dense(core, q, k, v, mask), qkv, mask)
    assert_close(run(core, qkv, mask if masked else None).at(mask), expected.at(mask))


def test_the_expectation_has_finite_gradients_where_a_key_is_its_query() -> None:
    q, _, v = inputs(LENGTH)
    result = run(build(expectation=True), [q, q, v])
    assert all(x.isfinite().all() for x in (result.out, *result.gradients))


def test_the_expectation_draws_nothing() -> None:
    core = build(expectation=True)
    assert list(core.buffers()) == []
    assert not core.resamples
    assert core.kernel(torch.device("cpu")) is None


def test_training_leaves_the_functions_of_evaluation_alone() -> None:
    core = build(bits=2)
    before = core.directions.clone()
    core.train()(*inputs(LENGTH)).sum().backward()
    assert_close(core.directions, before, rtol=0, atol=0)


def test_training_repeats_bit_for_bit_under_a_seed() -> None:
    core = build().train()
    assert_close(run(core, inputs(LENGTH)), run(core, inputs(LENGTH)), rtol=0, atol=0)


def test_a_query_that_collides_with_nothing_gets_zero_and_finite_gradients() -> None:
    q, _, v = inputs(1)
    result = run(build(), [q, -q, v])  # opposite vectors differ in every sign
    for x in (result.out, *result.gradients):
        assert_close(x, torch.zeros_like(x), rtol=0, atol=0)


def test_a_key_in_the_direction_of_its_query_always_collides() -> None:
    q, _, v = inputs(1)
    assert_close(build(bits=12)(q, 3 * q, v), torch.nn.functional.normalize(v, dim=-1))


def test_outputs_have_length_one() -> None:
    length = build(bits=1)(*inputs(LENGTH), ragged(LENGTH)).norm(dim=-1)
    mask = ragged(LENGTH)[:, None].expand_as(length)
    assert_close(length[mask], torch.ones_like(length[mask]))


@pytest.mark.parametrize("expectation", [False, True])
def test_lengths_of_queries_keys_and_all_values_change_nothing(expectation: bool) -> None:
    core = build(bits=2, expectation=expectation)
    q, k, v = inputs(LENGTH, torch.float64)
    assert_close(core(5 * q, 0.01 * k, 1e-30 * v), core(q, k, v))


def test_padding_fills_no_bucket() -> None:
    """A padded vector is 0 and would have the code of all signs below 0; its value of 0 would still not be seen, so
    the codes themselves are looked at."""
    core, mask = build(bits=3), ragged(LENGTH)
    codes = core.codes(inputs(LENGTH)[0], core.directions, mask).transpose(1, 2)
    assert (codes[~mask] == 8).all()
    assert (codes[mask] < 8).all()


def test_a_row_of_zeros_has_no_direction_and_a_finite_gradient() -> None:
    x = torch.zeros(2, 3).requires_grad_()
    (slope,) = torch.autograd.grad(unit(x).sum(), x)
    assert_close(unit(x), torch.zeros(2, 3), rtol=0, atol=0)
    assert slope.isfinite().all()
