"""The CUDA kernels' own source, run on a CPU by tests/cuda_shim/: values, gradients, bits, memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.ops import block_choice, coarse
from attention_zoo.ops.block_sparse import reference, reference_backward
from attention_zoo.ops.precision import LN2
from tests import cuda_kernels
from tests.cuda_kernels import KernelFault

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
KEYS = "none", "some", "first", "all"


class Case(NamedTuple):
    """Heads whose pairs are none, some, those of the first key block and some, or all; with `masked` some tokens are
    padding, so is the last block of the first head and all of the second."""

    dtype: torch.dtype
    dim: int
    block_size: int
    heads: int
    length: int
    keys: str
    masked: bool
    prior: bool
    wide: bool
    spread: float
    seed: int


def _cases(dtype: torch.dtype) -> st.SearchStrategy[Case]:
    # A product takes the machine longer than the law gains by more of them.
    shapes = [(dim, size) for dim in (16, 32, 64, 128) for size in (16, 32, 64) if dim * size <= 4096]
    return st.sampled_from(shapes).flatmap(
        lambda shape: st.builds(
            Case,
            dtype=st.just(dtype),
            dim=st.just(shape[0]),
            block_size=st.just(shape[1]),
            heads=st.integers(1, 2),
            length=st.integers(1, 2 * shape[1] + 20),
            keys=st.sampled_from(KEYS),
            masked=st.booleans(),
            prior=st.booleans(),
            wide=st.booleans(),
            spread=st.sampled_from([0.1, 1.0, 4.0]),
            seed=st.integers(0, 2**20),
        )
    )


class Given(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor
    blocks: Tensor
    block_size: int
    mask: Tensor | None
    prior_logit: Tensor | None
    prior_value: Tensor | None

    def each(self, change: Callable[[Tensor], Tensor]) -> Given:
        """With every tensor changed."""
        changed: dict[str, Any] = {name: change(x) for name, x in self._asdict().items() if isinstance(x, Tensor)}
        return self._replace(**changed)

    def to(self, dtype: torch.dtype) -> Given:
        return self.each(lambda x: x.to(dtype) if x.is_floating_point() else x)


class Upstream(NamedTuple):
    out: Tensor
    lse: Tensor
    means: Tensor | None


def pairs(drawn: Tensor, room: int = 0) -> Tensor:
    """(G, K, K) bool as a list of pairs (G, P, 2), filled up with empty ones; `room` is the least P."""
    heads, count, _ = drawn.shape
    blocks = torch.tensor([count, 0]).repeat(heads, max(room, int(drawn.sum((1, 2)).max())), 1)
    for head in range(heads):
        chosen = drawn[head].nonzero()
        blocks[head, : len(chosen)] = chosen
    return blocks


def arguments(case: Case) -> tuple[Given, Upstream]:
    generator = torch.Generator().manual_seed(case.seed)
    # Of fewer than 64 queries the errors may vanish by luck.
    heads, length, dim = max(case.heads, -(-64 // case.length)), case.length, case.dim
    count = -(-length // case.block_size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    drawn = torch.rand(heads, count, count, generator=generator) < 0.5
    drawn &= torch.tensor(case.keys in ("some", "first"))
    drawn[:, :, 0] |= torch.tensor(case.keys == "first")
    drawn |= torch.tensor(case.keys == "all")
    # An empty list has no room at all, others may have empty pairs.
    blocks = pairs(drawn, 0 if case.keys in ("none", "all") else count + 3)
    mask = torch.rand(heads, length, generator=generator) < 0.7
    mask[0, (count - 1) * case.block_size :] = False
    mask[1:2] = False
    prior_logit = 2 * normal(heads, count)
    prior_logit[0, -1] = -math.inf
    given = Given(
        case.spread * normal(heads, length, dim),
        normal(heads, length, dim),
        normal(heads, length, dim),
        blocks if case.wide else blocks.int(),
        case.block_size,
        mask if case.masked else None,
        prior_logit if case.prior else None,
        normal(heads, count, dim) if case.prior else None,
    )
    q, k, v = (x.to(case.dtype) for x in given[:3])
    given = given._replace(q=q, k=k, v=v)
    upstream = normal(heads, length, dim).to(case.dtype), normal(heads, length)
    return given, Upstream(*upstream, normal(3, heads, count, dim) if case.prior else None)


def spread(means: Tensor, given: Given) -> Tensor:
    """What real tokens have of their blocks' means: (..., G, K, D) -> (..., G, N, D)."""
    tokens = means.repeat_interleave(given.block_size, -2)[..., : given.q.shape[1], :]
    return tokens if given.mask is None else tokens.masked_fill(~given.mask[:, :, None], 0.0)


def exact(given: Given, upstream: Upstream) -> list[Tensor]:
    """out, lse and the gradients, in float64."""
    wide = given.to(torch.float64)
    out, lse = reference(*wide)
    d_lse = upstream.lse.double().masked_fill(lse == -math.inf, 0.0)
    gradients = list(reference_backward(upstream.out.double(), d_lse, *wide[:3], out, lse, *wide[3:]))
    if upstream.means is not None:
        gradients[:3] = map(torch.add, gradients[:3], spread(upstream.means.double(), given))
    return [out, lse, *gradients]


def same_maths(given: Given, upstream: Upstream, base: float) -> list[Tensor]:
    """The same with float32 products of numbers of q's dtype, as tensor cores have them: the weights, and the gradients
    of the logits, are rounded to it before they are multiplied, the results at the end. The weights of a query are
    relative to 2^base of the largest one: any base is right, each is rounded in another way.
    """
    dtype, (q, k, v) = given.q.dtype, (x.float() for x in given[:3])
    heads, length, dim = q.shape
    count, block = -(-length // given.block_size), torch.arange(length) // given.block_size
    selected = torch.zeros(heads, count + 1, count, dtype=torch.bool)
    x, y = given.blocks.long().unbind(-1)
    selected[torch.arange(heads)[:, None], x, y] = True
    allowed = selected[:, block][:, :, block]  # (G, N, N)
    if given.mask is not None:
        allowed &= given.mask[:, :, None] & given.mask[:, None, :]

    def narrow(x: Tensor) -> Tensor:
        return x.to(dtype).float()

    logits = (q @ k.mT * (1 / math.sqrt(dim) / LN2)).masked_fill(~allowed, -math.inf)
    virtual, value = torch.full((heads, length, 1), -math.inf), torch.zeros(heads, length, dim)
    if given.prior_logit is not None and given.prior_value is not None:
        virtual, value = (given.prior_logit / LN2)[:, block, None], given.prior_value[:, block]
    if given.mask is not None:
        virtual = virtual.masked_fill(~given.mask[:, :, None], -math.inf)
    top = torch.maximum(logits.amax(-1, keepdim=True), virtual)
    top = top.masked_fill(top == -math.inf, 0.0) + base
    weights, share = (logits - top).exp2(), (virtual - top).exp2()
    total = weights.sum(-1, keepdim=True) + share
    out = narrow(torch.where(total > 0, (narrow(weights) @ v + share * value) / total, 0.0))
    lse = LN2 * (top + total.log2())

    alive = lse > -math.inf
    log2_total = (lse / LN2).masked_fill(~alive, math.inf)
    d_out = upstream.out.float().masked_fill(~alive, 0.0)
    shift = (d_out * out).sum(-1, keepdim=True) - upstream.lse[:, :, None]
    weights, share = (logits - log2_total).exp2(), (virtual - log2_total).exp2()
    d_logits = narrow(weights * (d_out @ v.mT - shift))
    scale = 1 / math.sqrt(dim)
    gradients = [d_logits @ k * scale, d_logits.mT @ q * scale, narrow(weights).mT @ d_out]
    if upstream.means is not None:
        gradients = list(map(torch.add, gradients, spread(upstream.means, given)))
    d_logit = share * ((d_out * value).sum(-1, keepdim=True) - shift)
    d_priors = []
    if given.prior_logit is not None:
        by_block = F.one_hot(block, count).float().mT.expand(heads, -1, -1)  # (G, K, N)
        d_priors = [(by_block @ d_logit).squeeze(-1), by_block @ (share * d_out)]
    else:
        d_priors = [torch.empty(0), torch.empty(0)]
    return [out, lse.squeeze(-1), *map(narrow, gradients), *d_priors]


def found(given: Given, upstream: Upstream) -> list[Tensor]:
    """The same by the kernels. What comes from above to queries without a key is NaN."""
    out, lse = cuda_kernels.forward(*given)
    d_out = upstream.out.masked_fill((lse == -math.inf)[:, :, None], math.nan)
    rest: tuple[Any, ...] = given[3:]
    back = cuda_kernels.Backwards(d_out, upstream.lse, *given[:3], out, lse, *rest)
    d_priors = [torch.empty(0) if x is None else x for x in back.prepare()]
    return [out, lse, *back.finish(upstream.means), *d_priors]


def errors(found: Sequence[Tensor], exact: Sequence[Tensor]) -> list[float]:
    """Root mean square errors."""
    distance = [torch.where(x.double() == y, 0.0, x.double() - y) for x, y in zip(found, exact, strict=True)]
    return [x.square().mean().sqrt().item() if x.numel() else 0.0 for x in distance]


def largest(exact: Sequence[Tensor]) -> float:
    return max(y[y.isfinite()].abs().amax().item() if y.isfinite().any() else 0.0 for y in exact)


NAMES = "out", "lse", "d_q", "d_k", "d_v", "d_prior_logit", "d_prior_value"


def by_luck(given: Given, upstream: Upstream, right: Sequence[Tensor]) -> float:
    """Four standard deviations of d_prior_logit, of which there are few numbers: it is a sum over the queries of a
    block of share * d_out . (prior_value - out), where out is rounded by up to half an ulp, evenly distributed.
    """
    if given.prior_logit is None or given.q.dtype == torch.float32:
        return 0.0
    block = torch.arange(given.q.shape[1]) // given.block_size
    out, lse = right[:2]
    share = torch.where(lse > -math.inf, (given.prior_logit.double()[:, block] - lse).exp(), 0.0)
    half_ulp = out.abs() * torch.finfo(given.q.dtype).eps / 2
    variance = (share[:, :, None] * upstream.out.double() * half_ulp).square().sum(-1) / 3  # (G, N)
    return 4 * (variance.sum() / given.prior_logit.numel()).sqrt().item()


def check_errors(case: Case) -> None:
    """At most twice the error of the same maths, of the worst of three bases, and float32's error of the numbers whose
    differences the results are."""
    given, upstream = arguments(case)
    right = exact(given, upstream)
    own = errors(found(given, upstream), right)
    bases = [errors(same_maths(given, upstream, base), right) for base in (0.0, 0.3, 0.6)]
    slack = max(1, case.spread) * (2 * largest(right) + 0.5) * torch.finfo(torch.float32).eps
    for name, error, *its in zip(NAMES, own, *bases, strict=True):
        most = 2 * max(its) + slack + (by_luck(given, upstream, right) if name == "d_prior_logit" else 0.0)
        assert error <= most, f"{name}: {error:.3g} against {max(its):.3g}, and {slack:.3g} for float32"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_error_is_at_most_twice_that_of_the_same_maths_in_that_dtype(dtype: torch.dtype) -> None:
    @settings(max_examples=12)
    @given(case=_cases(dtype))
    def check(case: Case) -> None:
        check_errors(case)

    check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("dim", "block_size"), [(16, 64), (32, 32), (64, 16), (128, 64)])
def test_the_error_is_small_with_every_tile(dim: int, block_size: int, dtype: torch.dtype) -> None:
    check_errors(Case(dtype, dim, block_size, 2, 2 * block_size + 7, "some", True, True, False, 1.0, dim))


class Row(NamedTuple):
    """What the coarse part gives: means, logs, virtual keys, and the gradients of the means."""

    means: Tensor
    logs: Tensor
    prior_logit: Tensor
    prior_value: Tensor
    d_means: Tensor


def coarse_exact(given: Given, d_logit: Tensor, d_value: Tensor, dtype: torch.dtype) -> Row:
    """By the formulas of ops/coarse.py, computed in `dtype`. A mean of nothing has no gradient."""
    q, k, v = (x.to(dtype) for x in given[:3])
    made = coarse._coarse(q, k, v, given.blocks, given.block_size, given.mask)
    means = torch.stack([made.q, made.k, made.v])
    counts = made.counts.to(dtype)
    scale = 1 / math.sqrt(q.shape[-1])
    d_weights = d_value.to(dtype) @ made.v.mT
    mean = (made.weights * d_weights).sum(-1, keepdim=True)
    d_logits = made.weights * (d_weights - mean + d_logit.to(dtype)[:, :, None])
    d_means = torch.stack(
        [d_logits @ made.k * scale, d_logits.mT @ made.q * scale, made.weights.mT @ d_value.to(dtype)]
    )
    d_means = torch.where(counts > 0, 1 / counts, 0.0)[:, :, None] * d_means
    return Row(means, counts.log2(), made.logit, made.weights @ made.v, d_means)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_coarse_part_errs_at_most_twice_as_much_as_the_reference_in_float32(dtype: torch.dtype) -> None:
    """All of it is float32, whatever the dtype of q, k and v."""

    @settings(max_examples=12)
    @given(case=_cases(dtype))
    @example(case=Case(dtype, 16, 16, 1, 16 * 70, "some", True, False, True, 1.0, 0))
    def check(case: Case) -> None:
        given, _ = arguments(case)
        run = cuda_kernels.Coarsely(*given[:5], given.mask)
        generator = torch.Generator().manual_seed(case.seed)
        means, logs = run.means()
        logit, value = run.forward()
        d_logit = torch.randn(logit.shape, generator=generator)
        d_value = torch.randn(value.shape, generator=generator)
        d_means = run.backward(d_logit, d_value)
        right = coarse_exact(given, d_logit, d_value, torch.float64)
        its = errors(coarse_exact(given, d_logit, d_value, torch.float32), right)
        own = errors([means, logs, logit, value, d_means], right)
        slack = max(1, case.spread) * (2 * largest(right) + 0.5) * torch.finfo(torch.float32).eps
        for name, error, theirs in zip(Row._fields, own, its, strict=True):
            assert error <= 2 * theirs + slack, f"{name}: {error:.3g} against {theirs:.3g}, and {slack:.3g} for luck"

    check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_logits_of_blocks_are_those_of_the_reference(dtype: torch.dtype) -> None:
    """Rounded from float64: only where that is all but a tie may they differ, and then in the last place."""

    @settings(max_examples=10)
    @given(case=_cases(dtype))
    @example(case=Case(dtype, 32, 16, 1, 16 * 70, "none", True, False, True, 1.0, 0))
    def check(case: Case) -> None:
        given, _ = arguments(case)
        logits = cuda_kernels.logits(given.q, given.k, given.block_size, given.mask)
        expected = block_choice.block_logits_reference(given.q, given.k, given.block_size, given.mask)
        assert_close(logits, expected, rtol=torch.finfo(torch.float32).eps, atol=1e-30)
        assert (logits != expected).float().mean() < 1e-3

    check()


@settings(max_examples=40)
@given(
    heads=st.integers(1, 3),
    count=st.integers(1, 40),
    levels=st.sampled_from([1, 3, 1000]),
    least=st.sampled_from([0.0, 0.3]),
    blocks_per_row=st.integers(0, 9),
    first_blocks=st.integers(0, 3),
    diagonal_blocks=st.integers(0, 5),
    fill=st.booleans(),
    seed=st.integers(0, 2**20),
)
@example(2, 150, 1000, 0.1, 8, 1, 3, True, 0)
@example(1, 150, 3, 0.1, 8, 0, 0, False, 0)
@example(2, 5, 3, 1.0, 8, 1, 3, True, 0)
def test_the_choice_is_that_of_the_reference(
    heads: int,
    count: int,
    levels: int,
    least: float,
    blocks_per_row: int,
    first_blocks: int,
    diagonal_blocks: int,
    fill: bool,
    seed: int,
) -> None:
    """Also among equal logits, of which few levels make many; `least` of the blocks hold no real token."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-levels, levels + 1, (heads, count, count), generator=generator) / 7.0
    real = torch.rand(heads, count, generator=generator) >= least
    most = min(blocks_per_row * count, count**2)
    budget = torch.randint(0, most + 2, (heads,), generator=generator)
    rest = most, first_blocks, diagonal_blocks, fill
    found = cuda_kernels.choose(logits, real, budget, *rest)
    assert_close(found, block_choice.choose_blocks_reference(logits, real, budget, *rest), rtol=0, atol=0)


def mra2(given: Given, d_out: Tensor) -> list[Tensor]:
    """The whole of it by the kernels, as a GPU has it: pairs, out and the gradients."""
    q, k, v, *_, mask, _, _ = given
    heads, length, _ = q.shape
    count = -(-length // given.block_size)
    real = torch.ones(heads, length, dtype=torch.bool) if mask is None else mask
    real = F.pad(real, (0, -length % given.block_size)).unflatten(1, (count, -1)).any(-1)
    budget, most = 2 * real.sum(-1), 2 * count
    logits = cuda_kernels.logits(q, k, given.block_size, mask)
    blocks = cuda_kernels.choose(logits, real, budget, most, 1, 0, True)
    means = cuda_kernels.Coarsely(q, k, v, blocks, given.block_size, mask)
    means.means()
    priors = means.forward()
    out, lse = cuda_kernels.forward(q, k, v, blocks, given.block_size, mask, *priors)
    d_out = d_out.masked_fill((lse == -math.inf)[:, :, None], math.nan)
    back = cuda_kernels.Backwards(d_out, None, q, k, v, out, lse, blocks, given.block_size, mask, *priors)
    d_means = means.backward(*back.prepare())
    return [blocks, out, lse, *back.finish(d_means)]


MRA2 = [
    Case(dtype, dim, block_size, 2, length, "none", masked, False, True, 1.0, dim)
    for dtype in DTYPES
    for dim, block_size, length, masked in ((16, 16, 150, True), (64, 32, 200, False))
]


@pytest.mark.parametrize("case", MRA2, ids=str)
def test_whole_mra2_errs_at_most_twice_as_much_as_the_same_maths(case: Case) -> None:
    """Its exact part: of the coarse part the same maths has float32's error alone."""
    given, upstream = arguments(case)
    blocks, *found = mra2(given, upstream.out)
    wide = given._replace(blocks=blocks).to(torch.float64)
    result = coarse.reference(*wide[:5], wide.mask)
    right = [*result[:2], *coarse.reference_backward(upstream.out.double(), *wide[:3], *result, *wide[3:5], wide.mask)]

    single = given._replace(blocks=blocks).to(torch.float32)
    logit, value = coarse.reference(*single[:5], single.mask)[2:]
    own = errors(found, right)
    its = []
    for base in (0.0, 0.3, 0.6):
        fine = given._replace(blocks=blocks, prior_logit=logit, prior_value=value)
        zero = torch.zeros_like(upstream.lse)
        *_, d_logit, d_value = same_maths(fine, Upstream(upstream.out, zero, None), base)
        d_means = coarse_exact(fine, d_logit, d_value, torch.float32).d_means
        its.append(errors(same_maths(fine, Upstream(upstream.out, zero, d_means), base)[:5], right))
    slack = (2 * largest(right) + 0.5) * torch.finfo(torch.float32).eps
    for name, error, *theirs in zip(NAMES[:5], own, *its, strict=True):
        assert error <= 2 * max(theirs) + slack, f"{name}: {error:.3g} against {max(theirs):.3g}"


@pytest.mark.parametrize("case", MRA2, ids=str)
def test_the_order_of_threads_and_blocks_changes_no_bit(case: Case) -> None:
    given, upstream = arguments(case)
    runs = []
    for seed in range(3):
        cuda_kernels.seed(seed)
        runs.append(mra2(given, upstream.out))
    cuda_kernels.seed(0)
    for run in runs[1:]:
        assert_close(run, runs[0], rtol=0, atol=0, equal_nan=True)


def test_more_than_65535_blocks_of_threads_are_as_good_as_few() -> None:
    """Heads without any pair, which take little time, and then a few with pairs."""
    few, heads = 5, 65_600
    some, _ = arguments(Case(torch.bfloat16, 16, 16, few, 2, "some", False, True, True, 1.0, 4))
    some = some.each(lambda x: x[:few].contiguous())
    given = some.each(lambda x: torch.cat([x.new_zeros(heads - few, *x.shape[1:]), x]))
    given.blocks[:-few] = torch.tensor([1, 0])
    found, expected = (cuda_kernels.forward(*each, watch=False) for each in (given, some))
    assert_close([x[-few:] for x in found], list(expected), rtol=0, atol=0)
    assert all(x[:-few].eq(0).all() for x in found)


@pytest.mark.parametrize(("dim", "block_size"), [(8, 16), (48, 16), (256, 32), (32, 8), (32, 128)])
def test_a_shape_without_a_kernel_is_refused(dim: int, block_size: int) -> None:
    x, blocks = torch.zeros(1, block_size, dim), torch.zeros(1, 1, 2, dtype=torch.int64)
    calls = (
        lambda: cuda_kernels.forward(x, x, x, blocks, block_size),
        lambda: cuda_kernels.logits(x, x, block_size, None),
        lambda: cuda_kernels.Coarsely(x, x, x, blocks, block_size, None).means(),
    )
    for call in calls:
        with pytest.raises(KernelFault, match="error 1:"):
            call()
