"""The laws of the attention contract, over the whole registry: a new variant is held to them by being in it."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo import ZOO, Attention, Convolved, Tiled
from lra.model import MultiHead

from .oracles import oracle, small, tiny

BATCH, HEADS, DIM, SEQ_LEN = 3, 2, 8, 100

# The wrappers keep the laws too, around any core: a name such as "mra2+tiled" is the core with the wrapper around it.
WRAPPED = ("softmax+convolved", "softmax+tiled", "mra2+tiled")
NAMES = (*ZOO, *WRAPPED)

variants = pytest.mark.parametrize("name", NAMES)
lengths = pytest.mark.parametrize("length", [1, 17, 63, 100])


def make(name: str, heads: int, dim: int, seq_len: int, **parameters: Any) -> Attention:
    """The variant, or the wrapped core, with the given parameters of the variant."""
    core, _, wrapper = name.partition("+")
    attention = ZOO[core](heads, dim, seq_len, **parameters)
    if wrapper == "convolved":
        return Convolved(attention, taps=5)
    if wrapper == "tiled":
        side = max(n for n in range(1, seq_len + 1) if seq_len % n == 0 and n * n <= seq_len)
        return Tiled(attention, grid=(side, seq_len // side), tile=(side, 1))
    return attention


def build(name: str, seq_len: int = SEQ_LEN, heads: int = HEADS, dim: int = DIM, **parameters: Any) -> Attention:
    torch.manual_seed(0)
    return make(name, heads, dim, seq_len, **(small(name.partition("+")[0]) | parameters)).eval()


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
    gradients = torch.autograd.grad(out, qkv, upstream, allow_unused=True, materialize_grads=True)
    return Result(out.detach(), list(gradients))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("length", [1, 17, 63, 100, 1024])
@variants
def test_any_length_and_dtype_is_accepted_with_the_default_parameters(
    name: str, length: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    core = make(name, HEADS, DIM, 1024).eval()
    for mask in (None, ragged(length)):
        result = run(core, inputs(length, dtype), mask)
        assert result.out.shape == (BATCH, HEADS, length, DIM)
        for x in (result.out, *result.gradients):
            assert x.dtype == dtype
            assert x.isfinite().all()


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
    loss = build(name)(*qkv, ragged(63))[0].square().sum()
    gradients = torch.autograd.grad(loss, qkv, allow_unused=True, materialize_grads=True)
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


def agrees_with_finite_differences(out: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether autograd finds the slopes of `out` at x (1, H, N, D), for three sums that weigh its every number.

    All the steps away from x are one batch of examples. What is wrong of a gradient is in all three sums.
    """
    step = 1e-6
    steps = step * torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape[1:])
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(3, *x.shape[1:], generator=generator, dtype=x.dtype).flatten(1)
    with torch.no_grad():
        differences = (out(x + steps) - out(x - steps)).flatten(1) @ weights.mT / (2 * step)
    x = x.detach().requires_grad_()
    (sums,) = out(x).flatten(1) @ weights.mT
    slopes = [torch.autograd.grad(value, x, retain_graph=True)[0].flatten() for value in sums]
    wrong = (torch.stack(slopes, 1) - differences).abs()
    return bool((wrong <= 1e-6 + 1e-5 * differences.abs()).all())


@pytest.mark.parametrize("masked", [False, True])
@variants
def test_gradients_agree_with_finite_differences(name: str, masked: bool) -> None:
    core = build(name, seq_len=9, dim=3, **tiny(name.partition("+")[0])).double()
    q, k, v = (x[:1, :, :, :3].detach() for x in inputs(9, torch.float64))
    mask = ragged(9)[:1] & ragged(9)[1:2] if masked else None

    def out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch = max(len(q), len(k), len(v))
        each = (x.expand(batch, *x.shape[1:]) for x in (q, k, v))
        return core(*each, None if mask is None else mask.expand(batch, -1))

    assert agrees_with_finite_differences(lambda v: out(q, k, v), v)
    of_choices = [(lambda q: out(q, k, v), q)]
    if "k" in core.reads:
        of_choices.append((lambda k: out(q, k, v), k))
    assert all(agrees_with_finite_differences(*each) for each in of_choices) != core.surrogate_gradient
    for function, x in of_choices:
        x = x.clone().requires_grad_()
        (slopes,) = torch.autograd.grad(function(x).square().sum(), x)
        assert slopes.abs().max() > 0


@variants
def test_keys_that_a_variant_does_not_read_change_nothing(name: str) -> None:
    core = build(name)
    assert core.reads in ("qkv", "qv")
    q, k, v = inputs(63)
    result, other = run(core, [q, k, v], ragged(63)), run(core, [q, k + 1.0 + k.square(), v], ragged(63))
    if "k" in core.reads:
        assert (result.out - other.out).abs().max() > 1e-3
    else:
        assert_close(other, result, rtol=0, atol=0)
        assert_close(result.gradients[1], torch.zeros_like(k), rtol=0, atol=0)


@variants
def test_weights_sum_to_one_if_and_only_if_the_variant_says_so(name: str) -> None:
    q, k, v = inputs(63)
    for mask in (torch.ones(BATCH, 63, dtype=torch.bool), ragged(63)):
        out = build(name)(q, k, torch.ones_like(v), mask)
        ones = mask[:, None, :, None].expand_as(out).float()
        assert ((out - ones).abs().max() < 1e-5) == build(name).normalised


@variants
def test_training_draws_at_random_if_and_only_if_the_variant_says_so(name: str) -> None:
    core = build(name).train()
    torch.manual_seed(0)
    first = core(*inputs(63), ragged(63))
    assert ((core(*inputs(63), ragged(63)) - first).abs().max() > 0) == core.resamples
    torch.manual_seed(0)
    assert_close(core(*inputs(63), ragged(63)), first, rtol=0, atol=0)


class Plain(Attention):
    """Softmax attention with every step in the inputs' own precision: the yardstick of rounding, and the limit."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        logits = q @ k.mT / math.sqrt(self.head_dim)
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, :], -math.inf)
        return logits.softmax(-1) @ v


def relative_error(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Of each tensor; 0 where both are 0, as the gradient of keys that are not read."""
    pairs = zip(found, exact, strict=True)
    return [float((x.double() - y).norm() / y.norm().clamp(min=1e-300)) for x, y in pairs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@variants
def test_rounding_is_at_most_twice_that_of_the_same_mathematics(name: str, dtype: torch.dtype) -> None:
    """The yardsticks: plain softmax in the dtype, and in float32 also the variant's own oracle."""
    core, mask = build(name), ragged(100)
    qkv = inputs(100, dtype)
    result = run(core, qkv, mask)
    assert {x.dtype for x in (result.out, *result.gradients)} == {dtype}
    yardsticks: list[Callable[..., Tensor]] = [Plain(HEADS, DIM, SEQ_LEN)]
    dense = getattr(oracle(name), "dense", None)
    if dense is not None and dtype == torch.float32:
        yardsticks.append(lambda q, k, v, mask: dense(copy.deepcopy(core).to(q.dtype), q, k, v, mask))
    wide = [x.double() for x in qkv]
    allowed = [relative_error(run(f, qkv, mask).at(mask), run(f, wide, mask).at(mask)) for f in yardsticks]
    errors = relative_error(result.at(mask), run(copy.deepcopy(core).double(), wide, mask).at(mask))
    for error, limits in zip(errors, zip(*allowed, strict=True), strict=True):
        assert error <= 2 * max(limits)


@variants
def test_a_state_dict_round_trip_changes_nothing(name: str) -> None:
    core = build(name)
    torch.manual_seed(99)
    other = make(name, HEADS, DIM, SEQ_LEN, **small(name.partition("+")[0])).eval()
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
    assert_close(run(core.double(), qkv, mask).at(places), run(Plain(HEADS, DIM, SEQ_LEN), qkv, mask).at(places))


@pytest.mark.parametrize("name", ZOO)
def test_a_variant_without_an_exact_limit_says_so(name: str) -> None:
    assert ("No exact limit" in (ZOO[name].__doc__ or "")) == (ZOO[name].exact_limit(SEQ_LEN) is None)


@pytest.mark.parametrize("name", [name for name in ZOO if name != "softmax"])
def test_the_variants_approximate_under_the_parameters_of_these_laws(name: str) -> None:
    """Otherwise the laws above would hold softmax to account under another name."""
    for length, parameters in ((100, {}), (9, tiny(name))):
        exact = run(Plain(HEADS, DIM, SEQ_LEN), inputs(length)).out.double()
        found = run(build(name, seq_len=length, **parameters), inputs(length)).out
        assert relative_error([found], [exact])[0] > 1e-2


@pytest.mark.parametrize(("backend", "masked"), [("aot_eager", True), ("eager", False)])
@variants
def test_a_compiled_core_gives_the_same(name: str, backend: str, masked: bool) -> None:
    # Each iteration is the same graph once more.
    few = {"iterations": 2} if name in ("nystromformer", "soft") else {}
    core, mask = build(name, **few), ragged(63) if masked else None
    torch.compiler.reset()
    compiled = torch.compile(core, backend=backend, fullgraph=True)
    assert_close(run(compiled, inputs(63), mask), run(core, inputs(63), mask))


@pytest.mark.parametrize("name", ZOO)
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
@pytest.mark.parametrize("name", ZOO)
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
