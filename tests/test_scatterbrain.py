"""Scatterbrain: any window, one normaliser for both parts, and the traps of the published copy."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.scatterbrain import Scatterbrain

from .oracles import scatterbrain
from .oracles.performer import log_kernel

HEADS, DIM, LENGTH = 2, 6, 70


def inputs(scale: float = 1.0, length: int = LENGTH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, HEADS, length, DIM, generator=generator, dtype=torch.float64) for _ in range(3))
    return [scale * q, scale * k, v]


def build(seed: int = 0, **parameters: Any) -> Scatterbrain:
    torch.manual_seed(seed)
    return Scatterbrain(HEADS, DIM, LENGTH, **({"features": 8} | parameters)).double()


def holes(length: int = LENGTH) -> Tensor:
    """(2, N): one example with holes everywhere, one that is whole."""
    mask = torch.rand(2, length, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[0, 0] = mask[1] = True
    return mask


def check(core: Scatterbrain, qkv: list[Tensor], mask: Tensor) -> None:
    """Values and gradients equal the dense oracle's at real places."""
    q, k, v = qkv = [x.detach().requires_grad_() for x in qkv]
    keep = mask[:, None, :, None]
    out = core(q, k, v, mask) * keep
    expected = scatterbrain.dense(core, q, k, v, mask) * keep
    direction = torch.ones_like(out).cumsum(-1).cumsum(-2).sin()
    assert_close(out, expected)
    assert_close(torch.autograd.grad(out, qkv, direction), torch.autograd.grad(expected, qkv, direction))


@pytest.mark.parametrize("window", [1, 2, 3, 16, 31, 32, 33, 34, 47, 69, 70, 139, 140])
def test_any_window_equals_the_dense_oracle(window: int) -> None:
    """Shorter than a block, of odd length, as long as the sequence; with holes, which keep their places."""
    check(build(window=window), inputs(), holes())


@pytest.mark.parametrize(("group", "length"), [(1, 70), (2, 70), (2, 33), (16, 16), (3, 49)])
def test_sums_over_groups_of_blocks_equal_the_dense_oracle(
    group: int, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("attention_zoo.scatterbrain.GROUP", group)
    check(build(window=4), inputs(length=length), holes(length))


def test_more_groups_than_one_equal_the_dense_oracle() -> None:
    core = Scatterbrain(1, 2, 600, features=2, window=8).double()
    qkv = [x[:1, :1, :, :2] for x in inputs(length=600)]
    check(core, qkv, holes(600)[:1])


def test_heads_in_two_parts_change_nothing_compiled_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    core = build(window=6)
    torch.compiler.reset()
    compiled = torch.compile(core, backend="eager", fullgraph=True)
    results = []
    for part, function in ((2**20, core), (1, core), (1, compiled)):
        monkeypatch.setattr("attention_zoo.scatterbrain.PART", {"cpu": part})
        qkv = [x[:1].requires_grad_() for x in inputs(length=35)]
        out = function(*qkv, holes(35)[:1])
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), qkv)])
    assert_close(results[1], results[0])
    assert_close(results[2], results[0])


def test_the_window_is_of_places_and_not_of_real_tokens() -> None:
    """Each window of 3 holds one real token, the query itself: all its neighbours are pads."""
    core = build(window=3)
    q, k, v = inputs()
    mask = (torch.arange(LENGTH) % 2 == 0).expand(2, -1)
    both = torch.cat([core.directions, -core.directions])
    logits = log_kernel(q[0, 0, ::2], k[0, 0, ::2], both)
    exact = (q[0, 0, ::2] * k[0, 0, ::2]).sum(-1) / math.sqrt(DIM)
    logits = torch.where(torch.eye(len(logits), dtype=torch.bool), exact, logits)
    assert_close(core(q, k, v, mask)[0, 0, ::2], logits.softmax(-1) @ v[0, 0, ::2])


def test_the_estimate_inside_the_window_leaves_no_trace() -> None:
    """A key whose estimates are 1e12 times those of all others: added and subtracted again they would be lost."""
    q, k, v = (x.float() for x in inputs())
    k[:, :, 20] = 12.0 * q[:, :, 20]
    q[:, :, 5:36] = q[:, :, 20:21]
    core = build(window=64).float()
    expected = scatterbrain.dense(core.double(), q.double(), k.double(), v.double(), holes() | True)
    out = core.float()(q, k, v)
    assert_close(out[:, :, :50].double(), expected[:, :, :50], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [0.01, 6.0, 40.0])
def test_large_and_small_logits_equal_the_dense_oracle(scale: float) -> None:
    core = build(window=6)
    check(core, inputs(scale), holes())
    q, k, v = (x.requires_grad_() for x in inputs(scale))
    expected = core(q, k, v).detach()
    narrow = [x.detach().float().requires_grad_() for x in (q, k, v)]
    out = core.float()(*narrow)
    assert_close(out.double(), expected, rtol=5e-3, atol=5e-3)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), narrow))


def test_the_error_falls_with_the_features_and_with_the_window() -> None:
    q, k, v = qkv = inputs(0.3)
    exact = (q @ k.mT / math.sqrt(DIM)).softmax(-1) @ v

    def error(**parameters: Any) -> float:
        found = [build(seed, **parameters)(*qkv) for seed in range(10)]
        return sum(float((x - exact).square().mean()) for x in found) ** 0.5

    few, many = error(features=16, window=4), error(features=1024, window=4)
    assert math.log(many / few) / math.log(64) == pytest.approx(-0.5, abs=0.1)
    assert error(features=16, window=64) < 0.8 * few


def test_the_default_is_the_published_number_of_features() -> None:
    """int(32 ln 32) = 110 features are 55 random vectors and their negatives."""
    core = Scatterbrain(2, 32, 128)
    assert (core.features, core.window, core.directions.shape) == (110, 64, (55, 32))
    assert [Scatterbrain(1, dim, 8).features for dim in (1, 2, 3, 64)] == [2, 2, 2, 266]


def test_autocast_changes_nothing_inside() -> None:
    core, results = build(window=6).float(), []
    for enabled in (False, True):
        q, k, v = (x.float().requires_grad_() for x in inputs())
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            results.append(core(q, k, v, holes()))
    assert_close(results[1], results[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [{"window": 0}, {"window": 2.0}, {"window": True}, {"features": 0}, {"features": 7}, {"features": "8"}],
    ids=str,
)
def test_a_wrong_parameter_is_named_in_one_line(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=rf"^{name}=[^\n]* must be [^\n]*$"):
        Scatterbrain(HEADS, DIM, LENGTH, **wrong)
