"""Performer's random features: what they estimate, how fast, and the traps of the published copies."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.functional import orthogonal_features
from attention_zoo.performer import Performer
from attention_zoo.softmax import Softmax

from .oracles import performer
from .oracles.performer import log_kernel

HEADS, DIM, LENGTH = 2, 8, 40


def inputs(scale: float = 1.0, length: int = LENGTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, HEADS, length, DIM, generator=generator) for _ in range(3))
    return [scale * q, scale * k, v]


def build(features: int, seed: int = 0) -> Performer:
    torch.manual_seed(seed)
    return Performer(HEADS, DIM, LENGTH, features=features)


def kernel_error(features: int, seeds: int, divide: float = 1.0) -> float:
    """Of the estimated exp(q.k / sqrt(D)) averaged over seeds, relative to the truth divided by `divide`."""
    q, k, _ = (x[0, 0].double() for x in inputs(0.3))
    truth = (q @ k.T / (math.sqrt(DIM) * divide)).exp()
    found = torch.stack([log_kernel(q, k, build(features, seed).directions.double()).exp() for seed in range(seeds)])
    return float((found.mean(0) - truth).norm() / truth.norm())


def test_the_rows_of_a_block_are_orthogonal_and_their_norms_differ() -> None:
    torch.manual_seed(0)
    rows = orthogonal_features(20, 8)
    assert rows.shape == (20, 8)
    for block in rows.split(8):
        gram = block @ block.T
        assert_close(gram, gram.diagonal().diag(), rtol=0, atol=1e-4)
    assert rows.norm(dim=1).unique().numel() == 20


def test_every_feature_is_a_standard_normal_vector() -> None:
    """Mean 0 and covariance I over many draws, in each row: rotations as LAPACK returns them have neither."""
    torch.manual_seed(0)
    draws = orthogonal_features(4 * 4000, 4).view(4000, 4, 4)
    assert_close(draws.mean(0), torch.zeros(4, 4), rtol=0, atol=0.07)
    for row in draws.unbind(1):
        assert_close(row.T @ row / 4000, torch.eye(4), rtol=0, atol=0.12)


def test_the_kernel_estimate_is_unbiased() -> None:
    """The mean of 200 estimates is nearer to exp(q.k / sqrt(D)) than one of them is, and than it is to exp(q.k / D)."""
    one, many = kernel_error(16, 1), kernel_error(16, 200)
    assert many < 0.2 * one
    assert many < 0.02
    assert kernel_error(16, 200, divide=math.sqrt(DIM)) > 3 * many


def test_the_error_falls_as_the_square_root_of_the_features() -> None:
    """For short queries and keys: of long ones the estimates have tails too heavy for so few features."""
    qkv = inputs(0.3)
    exact = Softmax(HEADS, DIM, LENGTH)(*qkv)
    errors = [
        sum(float((build(features, seed)(*qkv) - exact).square().mean()) for seed in range(12)) ** 0.5
        for features in (32, 128, 512, 2048)
    ]
    slope = math.log(errors[-1] / errors[0]) / math.log(2048 / 32)
    assert slope == pytest.approx(-0.5, abs=0.08)


def test_pads_stay_out_of_the_normaliser() -> None:
    """phi(0) is not 0: pads zeroed before the features would shrink the output."""
    q, k, _ = inputs()
    mask = torch.arange(LENGTH).expand(2, -1) < LENGTH // 4
    out = build(64)(q, k, torch.ones_like(q), mask)
    assert_close(out, mask[:, None, :, None].expand_as(out).float())


@pytest.mark.parametrize("scale", [0.01, 5.0, 30.0])
def test_nothing_is_added_to_features_however_small_they_are(scale: float) -> None:
    """An added 1e-4 would swamp features whose exponents lie below the largest by more than 9."""
    core = build(32).double()
    q, k, v = qkv = [x.double().requires_grad_() for x in inputs(scale)]
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    out, expected = core(q, k, v), performer.dense(core, q, k, v, mask)
    assert_close(out, expected)
    direction = torch.ones_like(out).cumsum(-1).sin()
    assert_close(torch.autograd.grad(out, qkv, direction), torch.autograd.grad(expected, qkv, direction))
    narrow = build(32)(*(x.detach().float() for x in qkv))
    assert_close(narrow.double(), out.detach(), rtol=1e-3, atol=1e-3)


def test_a_token_that_dwarfs_the_others_does_not_starve_the_features() -> None:
    """One key with every largest feature, and a query that it repels: the others still decide."""
    q, k, v = (x.double() for x in inputs())
    k[:, :, 7] = 40.0 * k[:, :, 7]
    core = build(32).double()
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    assert_close(core(q, k, v), performer.dense(core, q, k, v, mask))
    assert_close(core.float()(q.float(), k.float(), v.float()).double(), core.double()(q, k, v), rtol=1e-3, atol=1e-3)


def test_heads_in_many_parts_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for part in (2**20, 1):
        monkeypatch.setattr("attention_zoo.performer.PART", {"cpu": part})
        qkv = [x.requires_grad_() for x in inputs()]
        out = build(32)(*qkv)
        results.append([out, *torch.autograd.grad(out.square().sum(), qkv)])
    assert_close(results[1], results[0])


def test_features_are_drawn_once_in_training_too() -> None:
    core = build(16).train()
    before = core.directions.clone()
    core(*(x.requires_grad_() for x in inputs())).sum().backward()
    assert_close(core.directions, before, rtol=0, atol=0)
    assert "directions" in core.state_dict()


def test_autocast_changes_nothing_inside() -> None:
    core, results = build(16), []
    for enabled in (False, True):
        qkv = [x.requires_grad_() for x in inputs()]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = core(*qkv)
            results.append([out, *torch.autograd.grad(out.sum(), qkv)])
    assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_the_operator_is_what_its_schema_and_its_fake_say(masked: bool) -> None:
    q, k, v = (x.flatten(0, 1).requires_grad_() for x in inputs())
    pads = torch.arange(LENGTH).expand(4, -1)[..., None] >= 30 if masked else None
    arguments = (q, k, v, pads, build(16).directions)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    found = torch.library.opcheck(torch.ops.zoo.linear_attention.default, arguments, test_utils=checks)
    assert found == dict.fromkeys(checks, "SUCCESS")


def test_a_second_derivative_is_refused() -> None:
    qkv = [x.requires_grad_() for x in inputs()]
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        torch.autograd.grad(build(16)(*qkv).sum(), qkv, create_graph=True)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True, "256"])
def test_a_wrong_parameter_is_named_in_one_line(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^features=[^\n]* must be an integer of at least 1$"):
        Performer(HEADS, DIM, LENGTH, features=wrong)
