"""The compiled CPU kernels: values and gradients against float64, bits, memory, and inputs of every kind."""

from __future__ import annotations

import ctypes
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from torch import Tensor
from torch.testing import assert_close
from torch.utils.data import DataLoader, Dataset

from attention_zoo.mra2 import MRA2
from attention_zoo.ops import kernels
from attention_zoo.ops.block_sparse import block_sparse_attention
from csrc.zoo import zoo_library

from .kernel_cases import HERE, LEVELS, NAMES, Case, arguments, cases, results, upstream, whole, without_priors
from .oracles import rounding
from .oracles.rounding import Rounded, by_blocks, selected

POISON = "fill_uninitialized_memory"


@pytest.fixture(scope="module", autouse=True)
def _compiled_or_error() -> Iterator[None]:
    with kernels.use("cpu"):
        assert kernels.available()
        yield


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


# Errors.


class Errors:
    """The law of errors, in two parts.

    No number may be further from float64 than float32 can take it: the bounds of oracles/rounding.py, which follow from
    the formulas and from how often the same maths rounds. That holds for every case, without luck or tuning.

    And a kernel may be within these worst cases and still be careless. Its errors, each divided by its bound, are
    compared with the reference's in float32, as root mean squares a and b over a case. Rounding errors are luck: over
    few numbers either may vanish. So it is the mean over all cases of a^2 / (a^2 + b^2) that counts: 1/2 for a kernel
    that is as exact, and 4/5 where a = 2 b. Above 4/5 it is worse than twice the error of the same maths.
    """

    def __init__(self) -> None:
        self.shares: dict[str, list[float]] = {}

    def add(self, names: tuple[str, ...], ours: list[Tensor], theirs: list[Tensor], bounds: list[Rounded]) -> None:
        for name, own, its, bound in zip(names, ours, theirs, bounds, strict=False):
            mine, other = (_over(x, bound) for x in (own, its))
            assert mine.numel() == 0 or mine.max() <= 1, f"{name} is {mine.max():.3g} times as far off as it may be"
            a, b = mine.square().sum().item(), other.square().sum().item()
            if a + b > 0:
                self.shares.setdefault(name, []).append(a / (a + b))

    def check(self) -> None:
        for name, shares in self.shares.items():
            share = sum(shares) / len(shares)
            assert share <= 0.8, f"{name} is worse than twice the reference's error: {share:.3f}"


def _over(found: Tensor, bound: Rounded) -> Tensor:
    """The errors as shares of their bounds; 0 where both are -inf."""
    return torch.where(found.double() == bound.value, 0.0, (found.double() - bound.value).abs() / bound.error)


def test_the_error_is_at_most_twice_that_of_the_same_maths_in_float32() -> None:
    errors = Errors()

    @settings(max_examples=60)
    @given(case=cases)
    @example(case=Case(2, 512, 32, 32, 0.5, False, True, 1.0, 0))
    @example(case=Case(2, 200, 64, 64, 0.5, True, True, 1.0, 1))
    def one(case: Case) -> None:
        given = arguments(case)
        ours, theirs = results("cpu", given), results("reference", given)
        d_out, d_lse = upstream(ours[0], ours[1])
        errors.add(NAMES, ours, theirs, rounding.block_sparse(**given, d_out=d_out, d_lse=d_lse))

    one()
    errors.check()


def test_so_is_that_of_the_coarse_part() -> None:
    errors = Errors()

    @settings(max_examples=50)
    @given(case=cases)
    @example(case=Case(2, 1024, 32, 32, 0.25, False, False, 1.0, 0))
    def one(case: Case) -> None:
        given = arguments(case._replace(prior=False))
        ours, theirs = whole("cpu", given), whole("reference", given)
        d_out, _ = upstream(ours[0], ours[0][..., 0])
        bounds = rounding.coarse(**without_priors(given), d_out=d_out)
        errors.add(("out", "d_q", "d_k", "d_v"), ours, theirs, bounds)

    one()
    errors.check()


@settings(max_examples=25)
@given(case=cases)
def test_the_float64_that_errors_are_measured_from_is_the_references(case: Case) -> None:
    """Two derivations of the same maths: one in operators on blocks, one with every pair of tokens."""
    given = arguments(case)
    expected = results("auto", given, torch.float64)
    d_out, d_lse = upstream(*(x.float() for x in expected[:2]))
    found = [x.value for x in rounding.block_sparse(**given, d_out=d_out, d_lse=d_lse)]
    assert_close(found, expected, rtol=1e-9, atol=1e-10)


@settings(max_examples=25)
@given(case=cases)
@example(case=Case(2, 129, 16, 32, 1.0, False, True, 1.0, 0))
def test_every_instruction_set_is_as_exact_whichever_way_it_goes_back(case: Case) -> None:
    """By whole heads, or d_q by rows and d_k and d_v by columns: the same bits."""
    given = arguments(case)
    theirs = results("reference", given)
    d_out, d_lse = upstream(theirs[0], theirs[1])
    bounds = rounding.block_sparse(**given, d_out=d_out, d_lse=d_lse)
    for level in HERE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ZOO_ISA", level)
            patch.setenv("ZOO_BACKWARD", "heads")
            ours = results("cpu", given)
            Errors().add(NAMES, ours, theirs, bounds)
            patch.setenv("ZOO_BACKWARD", "rows")
            assert_close(results("cpu", given), ours, rtol=0, atol=0)


@pytest.mark.parametrize("level", HERE)
def test_powers_of_two_are_within_one_and_a_half_ulp_and_vanish_without_denormals(level: str) -> None:
    compiled = ctypes.CDLL(str(zoo_library(Path(torch.__file__).parent, torch.__version__)))
    x = torch.cat([torch.linspace(-126, 0, 200_001), torch.linspace(-1, 1, 200_001), torch.linspace(0, 127, 9999)])
    ends = torch.tensor([0.0, -0.0, -126.0, -126.001, -127.5, -150.0, -1e30, -math.inf, math.nan, 1.0, -1.0])
    for numbers in (x, ends):
        found = torch.empty_like(numbers)
        pointers = (ctypes.c_void_p(t.data_ptr()) for t in (numbers, found))
        compiled.zoo_exp2(*pointers, LEVELS.index(level), ctypes.c_int64(len(numbers)))
        exact = torch.where(numbers < -126, 0.0, numbers.double().exp2())
        ulp = torch.where(exact > 0, torch.frexp(exact).exponent.double().sub(24).exp2(), 1.0)
        assert ((found - exact).abs() / ulp)[~exact.isnan()].max() <= 1.5
        assert_close(found.isnan(), exact.isnan())
    assert_close(found[:2], torch.ones(2), rtol=0, atol=0)
    assert_close(found[3:8], torch.zeros(5), rtol=0, atol=0)


@pytest.mark.parametrize("size", [1e4, 1e-4, 1e-20, 1e-40])
def test_huge_and_tiny_logits_neither_overflow_nor_vanish(size: float) -> None:
    """Logits of 1e4 make a softmax of one key; below 1e-20 all keys weigh the same, and products are denormal."""
    given = arguments(Case(2, 60, 16, 16, 0.5, True, True, 1.0, 9))
    given |= {"q": size * given["q"], "k": given["k"].sign()}
    ours, theirs = results("cpu", given), results("reference", given)
    d_out, d_lse = upstream(*ours[:2])
    Errors().add(NAMES, ours, theirs, rounding.block_sparse(**given, d_out=d_out, d_lse=d_lse))


# Bits.


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block_size", [8, 16, 32, 64, 100])
def test_heads_and_rows_give_the_same_bits_and_so_does_any_number_of_threads(
    block_size: int, masked: bool, level: str, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    given = arguments(Case(3, 300, 32, block_size, 0.5, masked, True, 1.0, 5))
    monkeypatch.setenv("ZOO_ISA", level)
    runs = []
    for way in ("heads", "rows"):
        for number in (1, 2, 3, 4):
            torch.set_num_threads(number)
            monkeypatch.setenv("ZOO_BACKWARD", way)
            runs.append([*results("cpu", given), *whole("cpu", given)])
    for run in runs[1:]:
        assert_close(run, runs[0], rtol=0, atol=0)


def test_memory_that_nobody_filled_is_never_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """With poisoned memory, fresh tensors hold NaN, and the largest number where they are integers."""
    given = arguments(Case(3, 77, 20, 16, 0.3, True, True, 1.0, 11))
    real = torch.tensor([[True] * 4 + [False], [False] * 5, [True] * 5])

    def everything() -> list[Tensor]:
        logits = torch.ops.zoo.block_logits(given["q"], given["k"], 16, given["mask"])
        budget = torch.tensor([3, 25, 0])
        choices = [torch.ops.zoo.choose_blocks(logits, real, budget, 20, 1, 1, fill) for fill in (False, True)]
        return [*results("cpu", given), *whole("cpu", given), logits, *choices]

    runs = []
    for way in ("heads", "rows"):
        monkeypatch.setenv("ZOO_BACKWARD", way)
        clean = everything()
        torch.use_deterministic_algorithms(True)
        monkeypatch.setattr(torch.utils.deterministic, POISON, True)
        try:
            runs += [clean, everything()]
        finally:
            torch.use_deterministic_algorithms(False)
    for run in runs[1:]:
        assert_close(run, runs[0], rtol=0, atol=0)


def test_threads_of_python_at_once_disturb_nothing(threads: None) -> None:
    torch.set_num_threads(2)
    given = arguments(Case(3, 200, 32, 16, 0.5, True, True, 1.0, 5))
    expected = whole("cpu", given)
    found: list[list[Tensor]] = [[] for _ in range(4)]

    def work(i: int) -> None:
        found[i] = [x for _ in range(5) for x in whole("cpu", given)]

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(found))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for each in found:
        assert_close(each, 5 * expected, rtol=0, atol=0)


class Batches(Dataset[list[Tensor]]):
    """Two batches that a worker process computes with the kernel."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.given = given

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> list[Tensor]:
        return [x.clone() for x in whole("cpu", self.given)]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_workers_that_were_forked_after_the_kernel_ran_compute_the_same(threads: None) -> None:
    """The parent's thread pool does not live on in them."""
    torch.set_num_threads(2)
    given = arguments(Case(3, 100, 16, 16, 0.5, True, False, 1.0, 5))
    expected = whole("cpu", given)
    for found in DataLoader(Batches(given), batch_size=None, num_workers=2, multiprocessing_context="fork"):
        assert_close(list(found), expected, rtol=0, atol=0)


# Inputs of every kind.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [5, 32])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype, dim: int) -> None:
    """Forward and backward of both operators, and the logits of the choice."""
    given = arguments(Case(2, 70, dim, 16, 0.5, True, True, 1.0, 7), dtype)
    widened = {name: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in given.items()}
    attention, attention_backward, coarse, coarse_backward = (
        getattr(torch.ops.zoo, f"{name}_attention{suffix}")
        for name in ("block_sparse", "coarse")
        for suffix in ("", "_backward")
    )
    pairs, priors = (given["blocks"], 16, given["mask"]), (given["prior_logit"], given["prior_value"])
    wide = widened["prior_logit"], widened["prior_value"]
    halves, floats = ([source[name] for name in "qkv"] for source in (given, widened))

    out, lse = attention(*halves, *pairs, *priors)
    d_out, d_lse = upstream(out, lse)
    expected = attention(*floats, *pairs, *wide)
    assert_close([out, lse], [expected[0].to(dtype), expected[1]], rtol=0, atol=0)
    found = attention_backward(d_out, d_lse, *halves, out, lse, *pairs, *priors)
    exact = attention_backward(d_out.float(), d_lse, *floats, out.float(), lse, *pairs, *wide)
    assert_close(list(found), [x.to(dtype) for x in exact], rtol=0, atol=0)

    out, *keys = coarse(*halves, *pairs)
    expected = coarse(*floats, *pairs)
    assert_close([out, *keys], [expected[0].to(dtype), *expected[1:]], rtol=0, atol=0)
    found = coarse_backward(d_out, *halves, out, *keys, *pairs)
    exact = coarse_backward(d_out.float(), *floats, out.float(), *keys, *pairs)
    assert_close(list(found), [x.to(dtype) for x in exact], rtol=0, atol=0)

    logits = (torch.ops.zoo.block_logits(*x[:2], 16, given["mask"]) for x in (halves, floats))
    assert_close(*logits, rtol=0, atol=0)


def test_strides_and_the_type_of_the_pairs_change_nothing() -> None:
    given = arguments(Case(3, 50, 16, 8, 0.5, True, True, 1.0, 3))
    strided = {
        name: x.mT.contiguous().mT if isinstance(x, Tensor) and x.dim() > 1 and name != "blocks" else x
        for name, x in given.items()
    }
    twice = given["blocks"].repeat_interleave(2, 1)[:, ::2]
    for blocks in (given["blocks"].int(), given["blocks"].to(torch.uint8), twice):
        assert_close(results("cpu", strided | {"blocks": blocks}), results("cpu", given), rtol=0, atol=0)
        assert_close(whole("cpu", strided | {"blocks": blocks}), whole("cpu", given), rtol=0, atol=0)
    q, k, mask = (strided[name] for name in ("q", "k", "mask"))
    expected = torch.ops.zoo.block_logits(given["q"], given["k"], 8, given["mask"])
    assert_close(torch.ops.zoo.block_logits(q, k, 8, mask), expected, rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(0, 8, 1), (2, 0, 0), (2, 8, 0), (0, 0, 0), (2, 3, 1)], ids=str)
def test_nothing_at_all_is_computed_as_the_reference_does(shape: tuple[int, int, int]) -> None:
    heads, length, pairs = shape
    given = arguments(Case(max(heads, 1), max(length, 1), 16, 8, 0.0, True, True, 1.0, 3))
    count = -(-length // 8)
    given = {
        name: x[:heads, : (count if name.startswith("prior") else length)] if isinstance(x, Tensor) else x
        for name, x in given.items()
    } | {"blocks": torch.zeros(heads, pairs, 2, dtype=torch.int64)}
    assert_close(results("cpu", given), results("reference", given))
    assert_close(whole("cpu", given), whole("reference", given))
    assert torch.ops.zoo.block_logits(given["q"], given["k"], 8, None).shape == (heads, count, count)


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3e38])
@pytest.mark.parametrize("name", ["q", "k", "v", "prior_logit", "prior_value"])
def test_a_bad_number_reaches_what_depends_on_it_and_nothing_else(
    name: str, bad: float, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A diverged run is seen: NaN in, NaN out. Where nothing depends on the number, every bit stays."""
    monkeypatch.setenv("ZOO_ISA", level)
    case = Case(2, 45, 16, 8, 0.4, False, True, 1.0, 4)
    given = arguments(case)
    given["prior_logit"][0, -1] = 0.5
    chosen = by_blocks(by_blocks(selected(given["blocks"], 6), 45, 8).mT, 45, 8).mT  # (G, N, N): query, key
    clean = results("cpu", given)
    changed = given[name].clone()
    row = 17 if name in "qkv" else 2
    changed[0, row] = bad
    out, lse, d_q, d_k, d_v, d_logit, d_value = found = results("cpu", given | {name: changed})

    token, block = torch.arange(45), torch.arange(45) // 8
    # Queries whose weights depend on it, and keys that such a query reads.
    queries = {"q": token == row, "k": chosen[0, :, row], "v": chosen[0, :, row]}.get(name, block == row)
    keys = chosen[0][queries].any(0)
    if math.isnan(bad):
        touched = [queries, queries if name not in ("v", "prior_value") else torch.zeros(45, dtype=torch.bool)]
        assert_close(out[0].isnan().any(-1), touched[0])
        assert_close(lse[0].isnan(), touched[1])
        assert_close(d_q[0].isnan().any(-1), queries)
        assert_close(d_k[0].isnan().any(-1), keys)
        assert_close(d_v[0].isnan().any(-1), keys if name not in ("v", "prior_value") else torch.zeros_like(keys))
    for x, y, free in zip(found[:5], clean[:5], [~queries, ~queries, ~queries, ~keys, ~keys], strict=True):
        assert_close(x[0][free], y[0][free], rtol=0, atol=0)
    blocks = torch.tensor([bool(queries[block == x].any()) for x in range(6)])
    for x, y in ((d_logit, clean[5]), (d_value, clean[6])):
        assert_close(x[0][~blocks], y[0][~blocks], rtol=0, atol=0)
    assert_close([x[1] for x in found], [x[1] for x in clean], rtol=0, atol=0)


def test_gradients_of_queries_without_keys_are_dropped_whatever_they_hold() -> None:
    given = arguments(Case(2, 40, 16, 8, 0.0, False, False, 1.0, 2))
    q = given["q"].requires_grad_()
    out, _ = block_sparse_attention(**given)
    (gradient,) = torch.autograd.grad(out, q, torch.full_like(out, math.nan))
    assert_close(gradient, torch.zeros_like(q))


WRONG = [[[1, 0], [0, 0]], [[0, 3]], [[0, -1]], [[4, 0]], [[3, 0], [1, 1]], [[0, 2**32]], [[0, 1], [0, 2], [0, 1]]]


@pytest.mark.parametrize("blocks", WRONG, ids=str)
def test_pairs_that_are_twice_there_or_out_of_order_or_range_raise_in_one_line(blocks: list[list[int]]) -> None:
    x = torch.zeros(2, 24, 16)
    given = torch.stack([torch.tensor([[0, 1]] + [[3, 0]] * (len(blocks) - 1)), torch.tensor(blocks)])
    law = r"blocks\[1, \d\] is no pair of blocks below 3, not sorted by query block, or there twice"
    with pytest.raises(RuntimeError, match=law):
        block_sparse_attention(x, x, x, given, 8)
    with pytest.raises(RuntimeError, match=law):
        torch.ops.zoo.coarse_attention(x, x, x, given, 8, None)


def test_key_blocks_of_a_row_may_come_in_any_order() -> None:
    given = arguments(Case(1, 64, 16, 8, 1.0, False, False, 1.0, 2))
    turned = given | {"blocks": given["blocks"][:, :-1].view(1, 8, 8, 2).flip(2).reshape(1, 64, 2)}
    assert_close(results("cpu", turned), results("cpu", given))


X, PAIRS = torch.zeros(2, 24, 16), torch.zeros(2, 1, 2, dtype=torch.int64)
FLAGS = torch.ones(2, 24, dtype=torch.bool)


@pytest.mark.parametrize(
    ("complaint", "given"),
    [
        (r"q must have shape \(G, N, D\)", (X[0], X, X, PAIRS, 8, None)),
        (r"k must be .* of shape \(2, 24, 16\)", (X, X[:, :8], X, PAIRS, 8, None)),
        (r"v must be .* of shape \(2, 24, 16\)", (X, X, X[:1], PAIRS, 8, None)),
        (r"blocks must have shape \(2, P, 2\)", (X, X, X, PAIRS[:1], 8, None)),
        (r"mask must be .* bool .* of shape \(2, 24\)", (X, X, X, PAIRS, 8, FLAGS[:, :5])),
        (r"mask must be .* bool .* of shape \(2, 24\)", (X, X, X, PAIRS, 8, FLAGS.int())),
        ("block_size=0 must be at least 1", (X, X, X, PAIRS, 0, None)),
    ],
    ids=str,
)
def test_wrong_arrays_raise_and_are_not_read(complaint: str, given: tuple[Any, ...]) -> None:
    with pytest.raises(RuntimeError, match=complaint):
        torch.ops.zoo.coarse_attention(*given)
    with pytest.raises(RuntimeError, match=complaint):
        torch.ops.zoo.block_sparse_attention(*given, None, None)


# What torch does with the operators.


@pytest.mark.parametrize("masked", [False, True])
def test_finite_differences_agree_with_the_coarse_reference(masked: bool) -> None:
    given = arguments(Case(2, 13, 3, 4, 0.4, masked, False, 1.0, 6), torch.float64)
    q, k, v = (given[name].requires_grad_() for name in "qkv")

    def out(*qkv: Tensor) -> Tensor:
        return torch.ops.zoo.coarse_attention(*qkv, given["blocks"], 4, given["mask"])[0]

    with kernels.use("auto"):
        assert torch.autograd.gradcheck(out, (q, k, v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("masked", [False, True])
def test_torch_accepts_the_operators(masked: bool, dtype: torch.dtype) -> None:
    """Schema, autograd registration, fake tensors and ahead-of-time dispatch; float32 runs the compiled ones."""
    given = arguments(Case(2, 33, 5, 8, 0.4, masked, True, 1.0, 6), dtype)
    qkv = [given[name].requires_grad_() for name in "qkv"]
    plain, pairs = [x.detach() for x in qkv], (given["blocks"], 8, given["mask"])
    priors = [given[name].requires_grad_() for name in ("prior_logit", "prior_value")]
    zoo, check = torch.ops.zoo, torch.library.opcheck
    logits = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0))
    choice = logits, torch.ones(2, 5, dtype=torch.bool), torch.tensor([4, 9]), 8, 1, 0, True
    with kernels.use("auto"):
        assert kernels.compiled(*plain) == (dtype == torch.float32)
        out, lse = (x.detach() for x in zoo.block_sparse_attention(*plain, *pairs, *priors))
        backward = (*upstream(out, lse), *plain, out, lse, *pairs, *(x.detach() for x in priors))
        coarse = [x.detach() for x in zoo.coarse_attention(*plain, *pairs)]
        checks = [
            check(zoo.block_sparse_attention.default, (*qkv, *pairs, *priors)),
            check(zoo.block_sparse_attention_backward.default, backward),
            check(zoo.coarse_attention.default, (*qkv, *pairs)),
            check(zoo.coarse_attention_backward.default, (torch.ones_like(out), *plain, *coarse, *pairs)),
            check(zoo.block_logits.default, (*plain[:2], 8, given["mask"])),
            check(zoo.choose_blocks.default, choice),
        ]
    assert {value for results in checks for value in results.values()} == {"SUCCESS"}


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_traced_core_computes_the_same_bits(dynamic: bool) -> None:
    core = MRA2(2, 16, 100, block_size=8, blocks_per_row=3)
    generator = torch.Generator().manual_seed(1)
    qkv = [torch.randn(2, 2, 61, 16, generator=generator).requires_grad_() for _ in range(3)]
    mask = torch.rand(2, 61, generator=generator) < 0.7
    torch.compiler.reset()
    traced = torch.compile(core, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    plain, found = core(*qkv, mask), traced(*qkv, mask)
    direction = torch.randn(plain.shape, generator=generator)
    assert_close(found, plain, rtol=0, atol=0)
    gradients = (torch.autograd.grad(out, qkv, direction) for out in (found, plain))
    assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_functional_transforms_loop_or_raise() -> None:
    given = arguments(Case(2, 24, 16, 8, 0.5, False, False, 1.0, 1))

    def out(q: Tensor) -> Tensor:
        return torch.ops.zoo.coarse_attention(q, given["k"], given["v"], given["blocks"], 8, None)[0]

    several = torch.stack([given["q"], 2 * given["q"]])
    assert_close(torch.func.vmap(out)(several), torch.stack([out(q) for q in several]), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="setup_context"):
        torch.func.grad(lambda q: out(q).sum())(given["q"])


def test_a_second_derivative_of_the_coarse_operator_raises() -> None:
    given = arguments(Case(1, 20, 16, 8, 0.4, False, False, 1.0, 6))
    q = given["q"].requires_grad_()
    out = torch.ops.zoo.coarse_attention(q, given["k"], given["v"], given["blocks"], 8, None)[0]
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        first.sum().backward()
