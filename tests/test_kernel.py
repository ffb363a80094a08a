"""The compiled CPU kernels against the references: values, gradients, bits, memory, and what happens without them."""

from __future__ import annotations

import csv
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.mra2 import MRA2
from attention_zoo.ops import block_choice, kernels
from attention_zoo.ops.block_sparse import block_sparse_attention
from benchmarks.kernel import main as benchmark
from csrc.build import SOURCES, library
from csrc.zoo import KERNEL_FILES

ROOT = Path(__file__).parent.parent
LEVELS = ("portable", "avx2", "avx512")


@pytest.fixture(scope="module", autouse=True)
def _compiled_or_error() -> Iterator[None]:
    with kernels.use("cpu"):
        assert kernels.available()
        yield


def runs_here(level: str) -> bool:
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return {"portable": True, "avx2": " avx2 " in flags and " fma " in flags, "avx512": " avx512dq " in flags}[level]


HERE = [level for level in LEVELS if runs_here(level)]


class Case(NamedTuple):
    heads: int
    length: int
    dim: int
    block_size: int
    density: float
    masked: bool
    prior: bool
    spread: float
    seed: int


cases = st.builds(
    Case,
    heads=st.integers(1, 3),
    length=st.integers(1, 150),
    dim=st.sampled_from([1, 5, 16, 20, 32, 64, 128]),
    block_size=st.sampled_from([1, 7, 8, 16, 32, 33, 64, 100]),
    density=st.sampled_from([0.0, 0.3, 1.0]),
    masked=st.booleans(),
    prior=st.booleans(),
    spread=st.sampled_from([0.1, 1.0, 8.0]),
    seed=st.integers(0, 2**20),
)


def arguments(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Random heads and pairs. Of two heads and more, the second is masked altogether where `masked`."""
    generator = torch.Generator().manual_seed(case.seed)
    count = -(-case.length // case.block_size)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    drawn = torch.rand(case.heads, count, count, generator=generator) < case.density
    blocks = torch.tensor([count, 0]).repeat(case.heads, int(drawn.sum((1, 2)).max()) + 1, 1)
    for head in range(case.heads):
        pairs = drawn[head].nonzero()
        blocks[head, : len(pairs)] = pairs
    mask = torch.rand(case.heads, case.length, generator=generator) < 0.7
    mask[1:2] = False
    prior_logit = normal(case.heads, count)
    prior_logit[0, -1] = -math.inf
    qkv = [normal(case.heads, case.length, case.dim) for _ in range(3)]
    return {
        "q": (case.spread * qkv[0].float()).to(dtype),
        "k": qkv[1],
        "v": qkv[2],
        "blocks": blocks,
        "block_size": case.block_size,
        "mask": mask if case.masked else None,
        "prior_logit": prior_logit if case.prior else None,
        "prior_value": normal(case.heads, count, case.dim) if case.prior else None,
    }


def results(word: str, arguments: dict[str, Any], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """out, lse and all gradients by the kernel `word` names, with q, k, v and the priors in `dtype`."""
    exact: dict[str, Any] = {
        name: x.to(dtype).requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in arguments.items()
    }
    generator = torch.Generator().manual_seed(3)
    with kernels.use(word):
        out, lse = block_sparse_attention(**exact)
        upstream, upstream_lse = (torch.randn(x.shape, generator=generator) for x in (out, lse))
        upstream_lse = upstream_lse.masked_fill(lse == -math.inf, 0.0)
        learns = [x for x in exact.values() if isinstance(x, Tensor) and x.requires_grad]
        gradients = torch.autograd.grad([out, lse], learns, [upstream.to(out.dtype), upstream_lse.to(lse.dtype)])
    return [out.detach(), lse.detach(), *gradients]


def error(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    """Root mean square errors."""
    distance = [torch.where(x.double() == y, 0.0, x.double() - y) for x, y in zip(found, exact, strict=True)]
    return [x.square().mean().sqrt().item() if x.numel() else 0.0 for x in distance]


def largest(exact: list[Tensor]) -> float:
    """The largest finite number of all results: gradients are differences of numbers of its size."""
    return max(y[y.isfinite()].abs().amax().item() if y.isfinite().any() else 0.0 for y in exact)


@settings(max_examples=60)
@given(case=cases)
@example(case=Case(2, 512, 32, 32, 0.5, False, True, 1.0, 0))
@example(case=Case(2, 200, 64, 64, 0.5, True, True, 1.0, 1))
def test_the_error_is_at_most_twice_that_of_the_reference_in_float32(case: Case) -> None:
    """Beyond that a little of the numbers whose differences the gradients are, multiplied by the queries:
    where there are few numbers, the errors of either may vanish by luck.
    """
    given = arguments(case)
    exact = results("auto", given, torch.float64)
    ours, theirs = error(results("cpu", given), exact), error(results("reference", given), exact)
    size = max(1, case.spread) * (2 * largest(exact) + 0.5)
    for own, its in zip(ours, theirs, strict=True):
        assert own <= 2 * its + size * torch.finfo(torch.float32).eps


@settings(max_examples=25)
@given(case=cases)
def test_every_instruction_set_gives_the_same(case: Case) -> None:
    given = arguments(case._replace(spread=min(case.spread, 1.0)))
    exact = results("auto", given, torch.float64)
    found = {}
    for level in HERE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ZOO_ISA", level)
            found[level] = results("cpu", given)
    for level, values in found.items():
        for x, y in zip(values, exact, strict=True):
            assert_close(x.double(), y, rtol=1e-4, atol=2e-5, msg=f"{level} is off")


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block_size", [8, 16, 32, 64, 100])
def test_heads_and_rows_give_the_same_bits_and_so_does_any_number_of_threads(
    block_size: int, masked: bool, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = arguments(Case(3, 300, 32, block_size, 0.5, masked, True, 1.0, 5))
    monkeypatch.setenv("ZOO_ISA", level)
    threads, runs = torch.get_num_threads(), []
    try:
        for way in ("heads", "rows"):
            for number in (1, 2, 3):
                torch.set_num_threads(number)
                monkeypatch.setenv("ZOO_BACKWARD", way)
                runs.append(results("cpu", given))
    finally:
        torch.set_num_threads(threads)
    for run in runs[1:]:
        assert_close(run, runs[0], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dim", [5, 32])
def test_half_precision_is_computed_in_float32_and_rounded_once(dtype: torch.dtype, dim: int) -> None:
    given = arguments(Case(2, 70, dim, 16, 0.5, True, True, 1.0, 7), dtype)
    found = results("cpu", given, dtype)
    widened: dict[str, Any] = {
        name: x.float() if isinstance(x, Tensor) and x.is_floating_point() else x for name, x in given.items()
    }
    out, lse = block_sparse_attention(**widened)
    assert [x.dtype for x in found] == [dtype, torch.float32, *[dtype] * 5]
    assert_close(found[0], out.to(dtype), rtol=0, atol=0)
    assert_close(found[1], lse, rtol=0, atol=0)


@pytest.mark.parametrize("level", HERE)
def test_powers_of_two_are_within_one_and_a_half_ulp_and_vanish_without_denormals(level: str) -> None:
    import ctypes

    compiled = ctypes.CDLL(str(_plain()))
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


def _plain(*flags: str) -> Path:
    """The kernels without the binding."""
    return library("kernels", tuple(SOURCES / f"{name}.cpp" for name in KERNEL_FILES), flags)


def test_memory_that_nobody_filled_is_never_read() -> None:
    """With poisoned memory, fresh tensors hold NaN."""
    given = arguments(Case(3, 77, 20, 16, 0.3, True, True, 1.0, 11))
    clean = results("cpu", given)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        poisoned = results("cpu", given)
    finally:
        torch.use_deterministic_algorithms(False)
    assert_close(poisoned, clean, rtol=0, atol=0)


def test_gradients_of_queries_without_keys_are_dropped_whatever_they_hold() -> None:
    given = arguments(Case(2, 40, 16, 8, 0.0, False, False, 1.0, 2))
    q = given["q"].requires_grad_()
    out, _ = block_sparse_attention(**given)
    (gradient,) = torch.autograd.grad(out, q, torch.full_like(out, math.nan))
    assert_close(gradient, torch.zeros_like(q))


@pytest.mark.parametrize("blocks", [[[1, 0], [0, 0]], [[0, 3]], [[0, -1]], [[4, 0]], [[3, 0], [1, 1]]], ids=str)
def test_pairs_that_are_out_of_order_or_range_raise_in_one_line(blocks: list[list[int]]) -> None:
    x = torch.zeros(1, 24, 16)
    with pytest.raises(RuntimeError, match=r"blocks\[0, \d\] is no pair of blocks below 3"):
        block_sparse_attention(x, x, x, torch.tensor([blocks]), 8)


# The choice of pairs.


@settings(max_examples=80)
@given(
    count=st.integers(1, 40),
    seed=st.integers(0, 2**20),
    share=st.floats(0, 1),
    kind=st.sampled_from(["normal", "few values", "constant", "nan"]),
    forced=st.tuples(st.integers(0, 3), st.integers(0, 4)),
    fill=st.booleans(),
)
def test_the_choice_is_that_of_the_reference(
    count: int, seed: int, share: float, kind: str, forced: tuple[int, int], fill: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, count, count, generator=generator)
    logits = {"normal": logits, "few values": logits.round(), "constant": 0 * logits + 0.3, "nan": logits * math.nan}[
        kind
    ]
    real = torch.rand(3, count, generator=generator) < 0.3 + share
    real[1] = real[1] & (seed % 2 == 0)
    most = int(share * count**2)
    budget = torch.randint(0, count**2 + 2, (3,), generator=generator)
    given = logits, real, budget, most, *forced, fill
    with kernels.use("cpu"):
        found = torch.ops.zoo.choose_blocks(*given)
    assert_close(found, block_choice.choose_blocks_reference(*given), rtol=0, atol=0)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("length", "block_size", "dim"), [(100, 8, 5), (1024, 32, 32), (63, 16, 64)])
def test_logits_of_block_means_are_the_references_but_for_the_rounding_of_float64(
    length: int, block_size: int, dim: int, masked: bool
) -> None:
    given = arguments(Case(3, length, dim, block_size, 0.0, masked, False, 1.0, 1))
    q, k, mask = given["q"], given["k"], given["mask"]
    found = torch.ops.zoo.block_logits(q, k, block_size, mask)
    expected = block_choice.block_logits_reference(q, k, block_size, mask)
    assert_close(found, expected, rtol=torch.finfo(torch.float32).eps, atol=1e-14)
    assert (found == expected).double().mean() > 0.999


# MRA-2 as a whole.


def whole(word: str, case: Case, dtype: torch.dtype) -> list[Tensor]:
    given = arguments(case)
    q, k, v = (given[name].to(dtype).requires_grad_() for name in "qkv")
    upstream = torch.randn(q.shape, generator=torch.Generator().manual_seed(4)).to(dtype)
    with kernels.use(word):
        out, *_ = torch.ops.zoo.coarse_attention(q, k, v, given["blocks"], case.block_size, given["mask"])
        return [out.detach(), *torch.autograd.grad(out, [q, k, v], upstream)]


@settings(max_examples=40)
@given(case=cases)
@example(case=Case(2, 1024, 32, 32, 0.25, False, False, 1.0, 0))
def test_the_coarse_part_is_as_exact_as_the_reference_in_float32(case: Case) -> None:
    exact = whole("auto", case, torch.float64)
    ours, theirs = (
        error(whole("cpu", case, torch.float32), exact),
        error(whole("reference", case, torch.float32), exact),
    )
    size = max(1, case.spread) * (2 * largest(exact) + 0.5)
    for own, its in zip(ours, theirs, strict=True):
        assert own <= 2 * its + size * torch.finfo(torch.float32).eps


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
    given = arguments(Case(2, 33, 5, 8, 0.4, masked, False, 1.0, 6), dtype)
    q, k, v = (given[name].requires_grad_() for name in "qkv")
    logits = torch.randn(2, 5, 5, generator=torch.Generator().manual_seed(0))
    budget = torch.tensor([4, 9])
    with kernels.use("auto"):
        checks = [
            torch.library.opcheck(torch.ops.zoo.coarse_attention.default, (q, k, v, given["blocks"], 8, given["mask"])),
            torch.library.opcheck(torch.ops.zoo.block_logits.default, (q.detach(), k.detach(), 8, given["mask"])),
            torch.library.opcheck(
                torch.ops.zoo.choose_blocks.default, (logits, torch.ones(2, 5, dtype=torch.bool), budget, 8, 1, 0, True)
            ),
        ]
    assert {value for check in checks for value in check.values()} == {"SUCCESS"}


def test_a_second_derivative_of_the_coarse_operator_raises() -> None:
    given = arguments(Case(1, 20, 16, 8, 0.4, False, False, 1.0, 6))
    q = given["q"].requires_grad_()
    out = torch.ops.zoo.coarse_attention(q, given["k"], given["v"], given["blocks"], 8, None)[0]
    (first,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotImplementedError, match="first derivatives only"):
        first.sum().backward()


# Which kernel runs.


def test_the_word_decides_and_is_put_back() -> None:
    cpu = torch.device("cpu")
    core = MRA2(2, 16, 64)
    with kernels.use("reference"):
        assert core.kernel(cpu) == "reference"
        with kernels.use("auto"):
            assert core.kernel(cpu) == "cpu"
        assert core.kernel(cpu) == "reference"
    with pytest.raises(ValueError, match="^kernel='gpu' is not one of auto, reference, cpu, cuda$"), kernels.use("gpu"):
        pass


def test_what_the_kernel_does_not_compute_is_an_error_where_it_was_asked_for() -> None:
    x = torch.zeros(1, 8, 16, dtype=torch.float64)
    pairs = torch.zeros(1, 1, 2, dtype=torch.int64)
    with (
        kernels.use("cpu"),
        pytest.raises(kernels.KernelError, match="^kernel=cpu computes float32.*not torch.float64$"),
    ):
        block_sparse_attention(x, x, x, pairs, 8)
    with kernels.use("cpu"), pytest.raises(kernels.KernelError, match="^kernel=cpu runs on a CPU, not on cuda$"):
        kernels.name(torch.device("cuda"))


PROGRAM = """
import sys, torch
from attention_zoo import ZOO
from attention_zoo.ops import kernels
x = torch.randn(1, 2, 64, 16)
with kernels.use(sys.argv[1]):
    core = ZOO["mra2"](2, 16, 64)
    try:
        print(core.kernel(torch.device("cpu")), core(x, x, x).isfinite().all().item())
    except kernels.KernelError as error:
        print("KernelError", error)
"""


def in_a_new_process(word: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, word],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )


@pytest.mark.parametrize("word", ["auto", "cpu", "reference"])
def test_without_a_compiler_the_reference_runs_and_one_line_says_why(word: str) -> None:
    done = in_a_new_process(word, CXX="/nowhere/c++")
    assert done.returncode == 0
    why = "no C++ compiler: $CXX is '/nowhere/c++', which is not a program on the PATH"
    said = {"auto": "reference True", "cpu": f"KernelError kernel=cpu: {why}", "reference": "reference True"}[word]
    assert done.stdout == f"{said}\n"
    assert done.stderr == (f"kernel: the PyTorch reference runs, {why}\n" if word == "auto" else "")


def test_a_kernel_that_fails_its_probe_does_not_run() -> None:
    """An instruction set that there is not: every call of the library fails."""
    done = in_a_new_process("auto", ZOO_ISA="mmx")
    assert done.stdout == "reference True\n"
    assert re.fullmatch(
        r"kernel: the PyTorch reference runs, [^\n]*ZOO_ISA=mmx is not one of portable, avx2, avx512\n", done.stderr
    )


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    """Addresses and undefined behaviour, over the shapes of kernel_check.cpp, with every instruction set."""
    compiler = os.environ.get("CXX") or next(name for name in ("c++", "g++", "clang++") if shutil.which(name))
    files = [SOURCES / f"{name}.cpp" for name in KERNEL_FILES] + [Path(__file__).parent / "kernel_check.cpp"]
    flags = ["-std=c++17", "-O0", "-Wno-psabi", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    objects = [tmp_path / f"{file.stem}.o" for file in files]
    jobs = [
        subprocess.Popen([*shlex.split(compiler), *flags, f"-I{SOURCES}", "-c", str(file), "-o", str(target)])
        for file, target in zip(files, objects, strict=True)
    ]
    assert [job.wait() for job in jobs] == [0] * len(jobs)
    program = tmp_path / "check"
    subprocess.run([*shlex.split(compiler), *flags, *map(str, objects), "-o", str(program)], check=True)
    done = subprocess.run([str(program)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("checked ")


def test_the_benchmark_measures_and_writes(tmp_path: Path) -> None:
    with kernels.use("auto"):
        assert benchmark([f"out={tmp_path / 'kernel.csv'}", "lengths=64", "repeats=1", "threads=1"]) == 0
    (row,) = csv.DictReader((tmp_path / "kernel.csv").read_text().splitlines())
    assert (row["n"], row["kernel"]) == ("64", "cpu")
    assert min(float(row[key]) for key in ("mra2_ms", "sdpa_ratio", "reference_ratio", "block_share")) > 0
