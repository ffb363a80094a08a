"""H-Transformer-1D: what is known to go wrong in hierarchical attention, one test each."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.h_transformer_1d import HTransformer1D
from attention_zoo.ops.hierarchical import hierarchical_attention

from .oracles import masked_attention, per_head
from .oracles.h_transformer_1d import dense

BATCH, HEADS, DIM = 3, 2, 6


def inputs(length: int, batch: int = BATCH) -> list[Tensor]:
    generator = torch.Generator().manual_seed(length)
    shape = (batch, HEADS, length, DIM)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]


def ragged(length: int) -> Tensor:
    """One example with holes, some of them whole blocks, one without a real token, one that ends early."""
    generator = torch.Generator().manual_seed(length)
    mask = torch.rand(BATCH, length, generator=generator) < 0.7
    mask[0, length // 4 : length // 2] = False
    mask[1] = False
    mask[2] = torch.arange(length) < max(1, length // 2)
    return mask


def check(core: HTransformer1D, qkv: list[Tensor], mask: Tensor) -> None:
    """Values and gradients of all inputs equal the oracle's."""
    out = core(*qkv, mask)
    expected = dense(core, *qkv, mask).masked_fill(~mask[:, None, :, None], 0.0)  # type: ignore[call-arg]
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(9), dtype=out.dtype)
    assert_close(out, expected)
    assert_close(torch.autograd.grad(out, qkv, direction), torch.autograd.grad(expected, qkv, direction))


@pytest.mark.parametrize("length", [5, 24, 61, 97])
@pytest.mark.parametrize("block_size", [2, 6, 16])
def test_any_even_block_size_agrees_with_the_dense_oracle(block_size: int, length: int) -> None:
    check(HTransformer1D(HEADS, DIM, 100, block_size=block_size), inputs(length), ragged(length))


@pytest.mark.parametrize("length", [64, 100, 1024])
def test_every_token_attends_every_token(length: int) -> None:
    """Also across the middle of the sequence, from the first token to the last."""
    q, k, v = inputs(length)
    out = HTransformer1D(HEADS, DIM, length)(q, k, v)
    for token in (0, length // 2 - 1, length // 2, length - 1):
        (weights,) = torch.autograd.grad(out[..., token, 0].sum(), v, retain_graph=True)
        assert (weights[..., 0] > 0).all()
        assert_close(weights[..., 0].sum(-1), torch.ones(BATCH, HEADS, dtype=torch.float64))


@pytest.mark.parametrize("length", [256, 4096])
def test_values_that_are_all_one_stay_one(length: int) -> None:
    q, k, v = inputs(length, batch=1)
    out = HTransformer1D(HEADS, DIM, length)(q, k, torch.ones_like(v))
    assert_close(out, torch.ones_like(v), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift", [-50.0, 50.0])
@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_levels_are_weighed_against_one_common_maximum(level: int, shift: float) -> None:
    """The logits of the first token's level are shifted, and no other's: queries and keys share one more direction."""
    q, k, v = (x.detach() for x in inputs(97))
    reach = (0, 8, 16, 32, 64)
    q[..., 0], k[..., 0] = math.sqrt(DIM), 0.0
    k[:, :, reach[level] : reach[level + 1], 0] = shift
    check(HTransformer1D(HEADS, DIM, 97, block_size=4), [x.requires_grad_() for x in (q, k, v)], ragged(97))


def test_without_a_preference_every_real_token_weighs_the_same() -> None:
    """A half filled group weighs as many tokens as it has; a masked block weighs nothing."""
    q, k, v = inputs(97)
    mask = ragged(97)
    out = HTransformer1D(HEADS, DIM, 97, block_size=4)(torch.zeros_like(q), k, v, mask)
    for b in (0, 2):
        mean = v[b][:, mask[b]].mean(1, keepdim=True)
        assert_close(out[b][:, mask[b]], mean.expand(-1, int(mask[b].sum()), -1))


def test_very_negative_logits_beside_padding_do_not_underflow() -> None:
    """All real logits are near -1000; padded keys and empty groups would score 0, but take part in no maximum."""
    q, k, v = (x.detach() for x in inputs(97))
    q, k = 20.0 + q, -20.0 + k
    check(HTransformer1D(HEADS, DIM, 97, block_size=4), [x.requires_grad_() for x in (q, k, v)], ragged(97))


def softmax(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    def one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return masked_attention(q, k, v, mask.expand(len(mask), -1))

    return per_head(one, mask, q, k, v).masked_fill(~mask[:, None, :, None], 0.0)


def test_it_is_softmax_where_groups_are_of_equal_tokens() -> None:
    """At 97 tokens in blocks of 4 the largest groups have 16 tokens."""
    q, k, v = inputs(97)
    q, k = (x[:, :, ::16].repeat_interleave(16, 2)[:, :, :97] for x in (q, k))
    mask = ragged(97)
    assert_close(HTransformer1D(HEADS, DIM, 97, block_size=4)(q, k, v, mask), softmax(q, k, v, mask))


@pytest.mark.parametrize("length", [1, 31, 32])
def test_two_blocks_are_softmax(length: int) -> None:
    q, k, v = inputs(length)
    mask = ragged(length)
    assert_close(HTransformer1D(HEADS, DIM, 100)(q, k, v, mask), softmax(q, k, v, mask))


def test_the_error_falls_as_the_blocks_grow() -> None:
    q, k, v = (x.detach() for x in inputs(97))
    mask = ragged(97)
    exact = softmax(q, k, v, mask)
    outs = [HTransformer1D(HEADS, DIM, 97, block_size=size)(q, k, v, mask) for size in (2, 8, 24, 50)]
    errors = [float((out - exact).norm() / exact.norm()) for out in outs]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] < 1e-12


def test_a_large_batch_is_its_examples() -> None:
    """It is computed in parts."""
    q, k, v = (x.detach().float().requires_grad_() for x in inputs(2048))
    mask = ragged(2048)
    core = HTransformer1D(HEADS, DIM, 2048)
    together = core(q, k, v, mask)
    alone = torch.cat([core(*(x[b : b + 1] for x in (q, k, v)), mask[b : b + 1]) for b in range(BATCH)])
    assert_close(together, alone)
    wanted = (q, k, v)
    assert_close(torch.autograd.grad(together.sum(), wanted), torch.autograd.grad(alone.sum(), wanted))


def test_autocast_changes_nothing_inside() -> None:
    qkv = [x.detach().float().requires_grad_() for x in inputs(61)]
    core = HTransformer1D(HEADS, DIM, 61, block_size=4)
    expected = core(*qkv, ragged(61))
    gradients = torch.autograd.grad(expected.square().sum(), qkv)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = core(*qkv, ragged(61))
        found = torch.autograd.grad(out.square().sum(), qkv)
    assert_close((out, *found), (expected, *gradients), rtol=0, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_the_operator_is_registered_as_torch_wants_it(masked: bool) -> None:
    q, k, v = (x.float().detach().requires_grad_() for x in inputs(33))
    mask = ragged(33) if masked else None
    torch.library.opcheck(torch.ops.zoo.hierarchical_attention.default, (q, k, v, mask, 4))
    assert hierarchical_attention(q, k, v, mask, 4).shape == (BATCH, HEADS, 33, DIM)


@pytest.mark.parametrize("wrong", [0, 1, 7, 2.0, True, "16"])
def test_a_wrong_block_size_is_named_in_one_line(wrong: Any) -> None:
    with pytest.raises(ValueError, match=r"^block_size=[^\n]* must be [^\n]*$"):
        HTransformer1D(HEADS, DIM, 100, block_size=wrong)
