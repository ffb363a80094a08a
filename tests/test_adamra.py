"""AdaMRA: its parameters, what it compresses, and the choice of the resolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.adamra import AdaMRA
from lra.model import MultiHead

from .oracles.adamra import dense

BATCH, HEADS, DIM, SEQ_LEN = 3, 2, 6, 64


def inputs(length: int, heads: int = HEADS, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (BATCH, heads, length, DIM)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


def ragged(length: int) -> Tensor:
    """One example with holes, one without a real token, one that ends early."""
    generator = torch.Generator().manual_seed(length)
    mask = torch.rand(BATCH, length, generator=generator) < 0.5
    mask[1] = False
    mask[2] = torch.arange(length) < max(1, length // 2)
    return mask


def build(heads: int = HEADS, **parameters: Any) -> AdaMRA:
    """With filters that are no longer the mean."""
    torch.manual_seed(0)
    core = AdaMRA(heads, DIM, SEQ_LEN, **parameters).double()
    with torch.no_grad():
        for filters in core.filters:
            filters += 0.3 * torch.rand_like(filters)
    return core


@pytest.mark.parametrize("routing", ["soft", "hard"])
@pytest.mark.parametrize("feature_map", ["elu", "relu", "softmax"])
@pytest.mark.parametrize("compression", ["mean", "convolution"])
def test_every_setting_agrees_with_the_dense_oracle(compression: str, feature_map: str, routing: str) -> None:
    """Values, and the gradients of inputs and parameters."""
    rates = (3, 1, 8)
    core = build(heads=3, rates=rates, compression=compression, feature_map=feature_map, routing=routing)
    mask = ragged(21)
    wanted = [*(x.requires_grad_() for x in inputs(21, heads=3)), *core.parameters()]
    out = core(*wanted[:3], mask)
    expected = dense(core, *wanted[:3], mask).masked_fill(~mask[:, None, :, None], 0.0)  # type: ignore[call-arg]
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    assert_close(out, expected)
    assert_close(torch.autograd.grad(out, wanted, direction), torch.autograd.grad(expected, wanted, direction))


def test_the_default_rates_are_a_geometric_series_up_to_seq_len() -> None:
    assert AdaMRA(1, DIM, SEQ_LEN).rates == [1]
    assert AdaMRA(5, DIM, SEQ_LEN).rates == [1, 4, 16, 64, 64]


def test_a_hard_query_reads_one_memory_and_learns_as_the_mixture_does() -> None:
    core, mixture = build(routing="hard"), build(routing="soft")
    q = inputs(40)[0].requires_grad_()
    hard, soft = core.route(q), mixture.route(q)
    assert_close(hard, torch.nn.functional.one_hot(soft.argmax(-1), HEADS).double(), rtol=0, atol=0)
    assert hard.sum((0, 1, 2)).min() > 0
    wanted, direction = (q, core.router), torch.sin(torch.arange(hard.numel())).view_as(hard).double()
    found = torch.autograd.grad(hard, wanted, direction)
    assert_close(found, torch.autograd.grad(soft, (q, mixture.router), direction))


def test_the_choice_hangs_on_the_query() -> None:
    """A router that is sure of itself sends q to the first memory and -q to the second."""
    core = build(rates=(1, 64))
    q, k, v = inputs(64)
    with torch.no_grad():
        core.router.copy_(torch.tensor([[50.0], [-50.0]]).expand(-1, DIM))
    q = torch.full_like(q, 1.0)
    q[:, :, ::2] = -1.0
    out = core(q, k, v)
    mean = v[:, 1].mean(1)
    assert_close(out[:, :, ::2], mean[:, None, None].expand(-1, HEADS, 32, -1))
    assert (out[:, :, 1::2] - mean[:, None, None]).abs().min(2).values.max() > 1e-3


@pytest.mark.parametrize("compression", ["mean", "convolution"])
def test_every_parameter_learns(compression: str) -> None:
    torch.manual_seed(0)
    model = MultiHead(AdaMRA(HEADS, DIM, SEQ_LEN, compression=compression), dim=12)
    model(torch.randn(BATCH, 50, 12), torch.ones(BATCH, 50, dtype=torch.bool)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 1e-4 or name == "project.k.bias", name


def test_a_convolution_starts_as_the_mean() -> None:
    torch.manual_seed(0)
    mean = AdaMRA(HEADS, DIM, SEQ_LEN).double()
    convolution = AdaMRA(HEADS, DIM, SEQ_LEN, compression="convolution").double()
    convolution.router = mean.router
    assert_close(convolution(*inputs(50), ragged(50)), mean(*inputs(50), ragged(50)))
    assert mean.normalised
    assert not convolution.normalised


def test_a_group_of_padding_is_no_key() -> None:
    """Zeros have features: whole groups of them, and a half filled group, must not dilute the memory."""
    core = build(rates=(4, 16))
    q, k, v = inputs(64)
    mask = torch.arange(64).expand(BATCH, -1) < 6
    assert_close(core(q, k, v, mask)[:, :, :6], core(*(x[:, :, :6] for x in (q, k, v))))
    ones = core(q, k, torch.ones_like(v), mask)
    assert_close(ones, mask[:, None, :, None].expand_as(ones).double())


def test_a_compressed_token_counts_as_often_as_it_has_real_tokens() -> None:
    """Equal keys: every memory gives the mean over tokens, however they fall into groups."""
    core = build(rates=(1, 7))
    q, k, v = inputs(50)
    mask = ragged(50)[:1]
    out = core(q[:1], torch.ones_like(k[:1]), v[:1, :1].expand(-1, HEADS, -1, -1), mask)
    assert_close(out[0, :, mask[0]], v[0, 0, mask[0]].mean(0).expand(HEADS, int(mask.sum()), -1))


@pytest.mark.parametrize("feature_map", ["elu", "relu", "softmax"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_large_inputs_stay_finite(feature_map: str, sign: int) -> None:
    """At -1000 every feature of elu underflows: no weights at all, and no NaN."""
    core = build(feature_map=feature_map).float()
    qkv = [(sign * 1000 + x).float().requires_grad_() for x in inputs(40)]
    out = core(*qkv, ragged(40))
    assert out.isfinite().all()
    for gradient in torch.autograd.grad(out.sum(), [*qkv, *core.parameters()]):
        assert gradient.isfinite().all()


def test_autocast_changes_nothing_inside() -> None:
    core = build().float()
    qkv = [x.float() for x in inputs(40)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = core(*qkv, ragged(40))
    assert_close(out, core(*qkv, ragged(40)), rtol=0, atol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rates": (1, 2, 3)},
        {"rates": 4},
        {"rates": (1, 0)},
        {"rates": (1, 2.5)},
        {"compression": "max"},
        {"feature_map": "exp"},
        {"routing": "top2"},
    ],
    ids=str,
)
def test_a_wrong_parameter_is_named_in_one_line(wrong: dict[str, Any]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}=.*(must|is not)[^\n]*$"):
        AdaMRA(HEADS, DIM, SEQ_LEN, **wrong)
