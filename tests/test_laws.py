"""The laws of the attention contract, over the whole registry: a new variant is held to them by being in it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo import ZOO, Attention
from lra.model import MultiHead

BATCH, HEADS, DIM, SEQ_LEN = 3, 2, 8, 100

# Parameters under which a variant approximates already at SEQ_LEN tokens; none where its defaults do.
SMALL: dict[str, dict[str, Any]] = {
    "mra2": {"block_size": 8, "blocks_per_row": 2},
    "mra2_s": {"block_size": 8, "blocks_per_row": 2},
}
# The same at 9 tokens.
TINY: dict[str, dict[str, Any]] = {
    "mra2": {"block_size": 2, "blocks_per_row": 1},
    "mra2_s": {"block_size": 2, "blocks_per_row": 1},
}
variants = pytest.mark.parametrize("name", ZOO)
lengths = pytest.mark.parametrize("length", [1, 17, 63, 100])


def build(name: str, seq_len: int = SEQ_LEN, heads: int = HEADS, dim: int = DIM, **parameters: Any) -> Attention:
    torch.manual_seed(0)
    return ZOO[name](heads, dim, seq_len, **(SMALL.get(name, {}) | parameters)).eval()


def inputs(length: int, dtype: torch.dtype = torch.float32, batch: int = BATCH, dim: int = DIM) -> list[Tensor]:
    """q, k, v (B, H, N, D) that want gradients."""
    generator = torch.Generator().manual_seed(length)
    shape = (batch, HEADS, length, dim)
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3)]


def ragged(length: int, batch: int = BATCH) -> Tensor:
    """(B, N): the first example ends early, the second has holes, the third is whole; all have a real token."""
    generator = torch.Generator().manual_seed(length)
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[0] = torch.arange(length) < max(1, 2 * length // 3)
    mask[1] = torch.rand(length, generator=generator) < 0.6
    mask[1, length // 2] = True
    return mask


class Result(NamedTuple):
    out: Tensor
    gradients: list[Tensor]

    def at(self, mask: Tensor) -> list[Tensor]:
        """Output and gradients at the real places of mask, as (B, N, H, D)[mask]."""
        return [x.transpose(1, 2)[:, : mask.shape[1]][mask] for x in (self.out, *self.gradients)]


def run(core: Callable[..., Tensor], qkv: list[Tensor], mask: Tensor | None = None) -> Result:
    """Forward and backward, with an upstream gradient that depends on a place alone and ignores padding."""
    qkv = [x.detach().clone().requires_grad_() for x in qkv]
    torch.manual_seed(1)
    out = core(*qkv, mask)
    batch, heads, length, dim = out.shape
    phase = torch.arange(batch)[:, None, None, None] + 1.3 * torch.arange(heads)[:, None, None]
    upstream = torch.sin(phase + 0.7 * torch.arange(length)[:, None] + 2.1 * torch.arange(dim)).to(out.dtype)
    if mask is not None:
        upstream = upstream * mask[:, None, :, None]
    return Result(out.detach(), list(torch.autograd.grad(out, qkv, upstream)))


@pytest.mark.parametrize("length", [1, 17, 63, 100, 1024])
@variants
def test_any_length_is_accepted_with_the_default_parameters(name: str, length: int) -> None:
    core = ZOO[name](HEADS, DIM, 1024).eval()
    for mask in (None, ragged(length)):
        result = run(core, inputs(length), mask)
        assert result.out.shape == (BATCH, HEADS, length, DIM)
        assert all(x.isfinite().all() for x in (result.out, *result.gradients))


@lengths
@variants
def test_real_places_get_an_output_and_padded_places_zero(name: str, length: int) -> None:
    mask = ragged(length)
    out = run(build(name), inputs(length), mask).out.transpose(1, 2)
    assert (out[mask].abs().sum(-1) > 0).all()
    assert_close(out[~mask], torch.zeros_like(out[~mask]), rtol=0, atol=0)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@lengths
@variants
def test_pad_content_never_leaks(name: str, length: int, junk: float) -> None:
    core, mask = build(name), ragged(length)
    clean = [x.detach() for x in inputs(length)]
    dirty = [x.masked_fill(~mask[:, None, :, None], junk) for x in clean]
    assert_close(run(core, dirty, mask).at(mask), run(core, clean, mask).at(mask), rtol=0, atol=0)


@lengths
@variants
def test_padded_places_get_no_gradient(name: str, length: int) -> None:
    mask = ragged(length)
    for gradient in run(build(name), inputs(length), mask).gradients:
        assert_close(gradient.transpose(1, 2)[~mask], torch.zeros(int((~mask).sum()), HEADS, DIM), rtol=0, atol=0)


@pytest.mark.parametrize("length", [1, 17, 63])
@variants
def test_more_padding_changes_nothing(name: str, length: int) -> None:
    core, mask = build(name), ragged(length)
    longer = [torch.nn.functional.pad(x.detach(), (0, 0, 0, SEQ_LEN - length), value=7.0) for x in inputs(length)]
    longer_mask = torch.nn.functional.pad(mask, (0, SEQ_LEN - length))
    short, padded = run(core, inputs(length), mask), run(core, longer, longer_mask)
    assert_close(padded.at(mask), short.at(mask))


@lengths
@variants
def test_a_full_mask_equals_no_mask(name: str, length: int) -> None:
    core, full = build(name), torch.ones(BATCH, length, dtype=torch.bool)
    assert_close(run(core, inputs(length), full), run(core, inputs(length)))


@lengths
@variants
def test_a_fully_masked_example_is_zero_and_hurts_no_other(name: str, length: int) -> None:
    core, mask = build(name), ragged(length)
    without = mask.clone()
    without[1] = False
    others = torch.tensor([0, 2])
    result, before = run(core, inputs(length), without), run(core, inputs(length), mask)
    for found, expected in zip((result.out, *result.gradients), (before.out, *before.gradients), strict=True):
        assert_close(found[1], torch.zeros_like(found[1]), rtol=0, atol=0)
        assert_close(found[others], expected[others])


@variants
def test_no_step_of_the_backward_is_nan(name: str) -> None:
    """Not even one that is masked later: people who hunt for a NaN with torch's anomaly mode would stop there."""
    mask = ragged(63)
    mask[1] = False
    with torch.autograd.set_detect_anomaly(True):
        result = run(build(name), inputs(63), mask)
    assert all(gradient.isfinite().all() for gradient in result.gradients)


@variants
def test_nan_inputs_give_nan_and_no_error(name: str) -> None:
    """A run that diverges is told by its loss."""
    mask = ragged(63)
    result = run(build(name), [torch.full_like(x, math.nan) for x in inputs(63)], mask)
    assert result.at(mask)[0].isnan().all()


@variants
def test_a_batch_without_a_real_token_is_zero(name: str) -> None:
    result = run(build(name), inputs(17), torch.zeros(BATCH, 17, dtype=torch.bool))
    for x in (result.out, *result.gradients):
        assert_close(x, torch.zeros_like(x), rtol=0, atol=0)


@lengths
@variants
def test_examples_are_independent_of_their_batch(name: str, length: int) -> None:
    core, mask = build(name), ragged(length)
    together = core(*inputs(length), mask)
    for b in range(BATCH):
        alone = core(*(x[b : b + 1] for x in inputs(length)), mask[b : b + 1])
        assert_close(alone[0], together[b])


@variants
def test_gradients_stay_within_their_example(name: str) -> None:
    qkv = inputs(63)
    gradients = torch.autograd.grad(build(name)(*qkv, ragged(63))[0].square().sum(), qkv)
    for gradient in gradients:
        assert_close(gradient[1:], torch.zeros_like(gradient[1:]), rtol=0, atol=0)


@variants
def test_inputs_are_not_mutated(name: str) -> None:
    qkv, mask = inputs(63), ragged(63)
    kept, kept_mask = [x.detach().clone() for x in qkv], mask.clone()
    build(name)(*qkv, mask).sum().backward()
    assert_close([x.detach() for x in qkv], kept, rtol=0, atol=0)
    assert torch.equal(mask, kept_mask)


@variants
def test_eval_is_deterministic(name: str) -> None:
    core = build(name)
    qkv, mask = inputs(100), ragged(100)
    first = core(*qkv, mask)
    torch.manual_seed(1234)
    second = core(*qkv, mask)
    assert_close(first, second, rtol=0, atol=0)
    assert_close(run(core, qkv, mask), run(core, qkv, mask), rtol=0, atol=0)


@variants
def test_strided_inputs_change_nothing(name: str) -> None:
    core = build(name)
    strided = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(63)]
    assert_close(run(core, strided, ragged(63)), run(core, inputs(63), ragged(63)))


@variants
def test_every_parameter_of_multi_head_learns(name: str) -> None:
    """Each parameter gets a gradient, but for the bias of the keys: softmax cancels what all its logits share."""
    core = build(name)
    torch.manual_seed(0)
    model = MultiHead(core, dim=12)
    model(torch.randn(BATCH, 63, 12), ragged(63)).square().sum().backward()
    for parameter, tensor in model.named_parameters():
        assert tensor.grad is not None, parameter
        assert tensor.grad.isfinite().all(), parameter
        assert tensor.grad.abs().max() > 1e-4 or parameter == "project.k.bias", parameter


@pytest.mark.parametrize("masked", [False, True])
@variants
def test_gradients_agree_with_finite_differences(name: str, masked: bool) -> None:
    core = build(name, seq_len=9, dim=3, **TINY.get(name, {})).double()
    qkv = [x[:2, :, :, :3].detach().requires_grad_() for x in inputs(9, torch.float64)]
    mask = ragged(9)[:2] if masked else None
    assert torch.autograd.gradcheck(lambda q, k, v: core(q, k, v, mask), qkv)


class Plain(Attention):
    """Softmax attention with every step in the inputs' own precision: the yardstick of rounding, and the limit."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        logits = q @ k.mT / math.sqrt(self.head_dim)
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, :], -math.inf)
        return logits.softmax(-1) @ v


def relative_error(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    return [float((x.double() - y).norm() / y.norm()) for x, y in zip(found, exact, strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@variants
def test_rounding_is_at_most_twice_that_of_plain_softmax(name: str, dtype: torch.dtype) -> None:
    core, mask = build(name), ragged(100)
    qkv = inputs(100, dtype)
    result = run(core, qkv, mask)
    assert {x.dtype for x in (result.out, *result.gradients)} == {dtype}
    errors = relative_error(result.at(mask), run(core.double(), [x.double() for x in qkv], mask).at(mask))
    plain = Plain(HEADS, DIM, SEQ_LEN)
    allowed = relative_error(run(plain, qkv, mask).at(mask), run(plain, [x.double() for x in qkv], mask).at(mask))
    for error, limit in zip(errors, allowed, strict=True):
        assert error <= 2 * limit


@variants
def test_a_state_dict_round_trip_changes_nothing(name: str) -> None:
    core = build(name)
    torch.manual_seed(99)
    other = ZOO[name](HEADS, DIM, SEQ_LEN, **SMALL.get(name, {})).eval()
    other.load_state_dict(core.state_dict(), strict=True)
    assert_close(other(*inputs(63), ragged(63)), core(*inputs(63), ragged(63)), rtol=0, atol=0)


@pytest.mark.parametrize("masked", [False, True])
@lengths
@pytest.mark.parametrize("name", [name for name in ZOO if ZOO[name].exact_limit(SEQ_LEN) is not None])
def test_the_exact_limit_is_softmax(name: str, length: int, masked: bool) -> None:
    core = build(name, **(ZOO[name].exact_limit(SEQ_LEN) or {}))
    qkv = inputs(length, torch.float64)
    mask = ragged(length) if masked else None
    places = torch.ones(BATCH, length, dtype=torch.bool) if mask is None else mask
    assert_close(run(core, qkv, mask).at(places), run(Plain(HEADS, DIM, SEQ_LEN), qkv, mask).at(places))


@pytest.mark.parametrize("name", [name for name in ZOO if name != "softmax"])
def test_the_variants_approximate_under_the_parameters_of_these_laws(name: str) -> None:
    """Otherwise the laws above would hold softmax to account under another name."""
    for length, parameters in ((100, {}), (9, TINY.get(name, {}))):
        exact = run(Plain(HEADS, DIM, SEQ_LEN), inputs(length)).out.double()
        found = run(build(name, seq_len=length, **parameters), inputs(length)).out
        assert relative_error([found], [exact])[0] > 1e-2


@variants
def test_a_compiled_core_gives_the_same(name: str) -> None:
    core, mask = build(name), ragged(63)
    torch.compiler.reset()
    compiled = torch.compile(core, backend="aot_eager", fullgraph=True)
    assert_close(run(compiled, inputs(63), mask), run(core, inputs(63), mask))
    assert_close(run(compiled, inputs(63)), run(core, inputs(63)))


@variants
def test_own_parameters_are_keyword_only_and_have_defaults(name: str) -> None:
    parameters = list(inspect.signature(ZOO[name]).parameters.values())
    assert [p.name for p in parameters[:3]] == ["heads", "head_dim", "seq_len"]
    for parameter in parameters[3:]:
        assert parameter.kind is parameter.KEYWORD_ONLY
        assert parameter.default is not parameter.empty
    with pytest.raises(TypeError, match="misspelt"):
        ZOO[name](HEADS, DIM, SEQ_LEN, misspelt=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "8"])
@pytest.mark.parametrize("position", [0, 1, 2])
@variants
def test_sizes_must_be_positive_integers(name: str, position: int, wrong: Any) -> None:
    sizes: list[Any] = [HEADS, DIM, SEQ_LEN]
    sizes[position] = wrong
    with pytest.raises(ValueError, match=r"^(heads|head_dim|seq_len)=[^\n]* must be an integer of at least 1$"):
        ZOO[name](*sizes)


def tensors(*shape: int) -> list[Tensor]:
    return [torch.zeros(shape) for _ in range(3)]


@pytest.mark.parametrize(
    ("qkv", "mask"),
    [
        (tensors(1, HEADS, SEQ_LEN + 1, DIM), None),
        (tensors(1, HEADS, 0, DIM), None),
        (tensors(1, HEADS + 1, 5, DIM), None),
        (tensors(1, HEADS, 5, DIM + 1), None),
        (tensors(HEADS, 5, DIM), None),
        ([torch.zeros(1, HEADS, n, DIM) for n in (5, 5, 4)], None),
        (tensors(1, HEADS, 5, DIM), torch.ones(1, 4, dtype=torch.bool)),
        (tensors(1, HEADS, 5, DIM), torch.ones(5, dtype=torch.bool)),
        (tensors(1, HEADS, 5, DIM), torch.ones(1, 5)),
    ],
)
@variants
def test_wrong_shapes_are_answered_in_one_line(name: str, qkv: list[Tensor], mask: Tensor | None) -> None:
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
        build(name)(*qkv, mask)


@pytest.mark.parametrize("wrong", [-0.1, 1.0, math.nan])
def test_softmax_refuses_a_dropout_that_is_no_probability(wrong: float) -> None:
    with pytest.raises(ValueError, match="^dropout="):
        ZOO["softmax"](HEADS, DIM, SEQ_LEN, dropout=wrong)  # type: ignore[call-arg]


def test_softmax_drops_probabilities_in_training_alone() -> None:
    core = build("softmax", dropout=0.5)
    exact = build("softmax")(*inputs(63))
    assert_close(core(*inputs(63)), exact, rtol=0, atol=0)
    core.train()
    torch.manual_seed(0)
    assert (core(*inputs(63)) - exact).abs().max() > 1e-2
