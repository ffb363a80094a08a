"""Which kernel runs, and the way from the operators to the kernels of a GPU, which run here on a CPU (cuda_shim/)."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.base import Attention
from attention_zoo.bigbird import BigBird
from attention_zoo.mra import MRA
from attention_zoo.mra2 import MRA2
from attention_zoo.mra2_s import MRA2S
from attention_zoo.ops import block_choice, block_sparse_cpu, kernels, on_cuda
from attention_zoo.ops import coarse as coarse_operator
from csrc.build import SOURCES, library
from csrc.zoo import CUDA_KERNEL_FILES, binding_flags

from . import cuda_kernels
from .gpu import __main__ as gpu_tests
from .gpu import all_kernels
from .gpu.cases import (
    Case,
    Results,
    as_exact_as_the_dense,
    block_sparse,
    coarse,
    dense_block_sparse,
    dense_coarse,
    example,
)

ROOT = Path(__file__).parent.parent
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
DTYPES = pytest.mark.parametrize("dtype", kernels.DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))

# The way to the kernels of a GPU.


@pytest.fixture(scope="module")
def operators() -> Any:
    """The operators of csrc/binding_cuda.cpp, with the kernels' own source, on a CPU."""
    parts = [cuda_kernels.kernels(f"{name}.cu")._name for name in CUDA_KERNEL_FILES]
    torch_at = Path(torch.__file__).parent
    flags = (f"-I{cuda_kernels.SHIM}", *binding_flags(torch_at, torch.__version__), f"-Wl,{','.join(parts)}")
    torch.ops.load_library(str(library("zoo_on_shim", (SOURCES / "binding_cuda.cpp",), flags)))
    return torch.ops.zoo_on_shim


@pytest.fixture
def on_shim(operators: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The operators on a CPU go where those on a GPU go."""
    monkeypatch.setattr(on_cuda, "operators", operators)
    monkeypatch.setattr(kernels, "stream", lambda x: 0)
    monkeypatch.setattr(block_sparse_cpu, "forward", on_cuda.forward)
    monkeypatch.setattr(block_sparse_cpu, "backward", on_cuda.backward)
    monkeypatch.setattr(coarse_operator, "_compiled", on_cuda.coarse_forward)
    monkeypatch.setattr(coarse_operator, "_compiled_backward", on_cuda.coarse_backward)
    monkeypatch.setattr(block_choice, "_compiled_logits", on_cuda.block_logits)
    monkeypatch.setattr(block_choice, "_compiled_choice", on_cuda.choose_blocks)
    with kernels.use("cpu"):
        assert kernels.available(CPU)
        yield


CASES = [
    Case(2, 37, 5, 16),
    Case(3, 45, 20, 16, prior=False),
    Case(2, 70, 16, 32, masked=False),
    Case(1, 100, 32, 32, masked=False, prior=False),
    Case(2, 65, 100, 64),
    Case(2, 40, 32, 16, density=0.0),
]


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("on_shim")
def test_block_sparse_attention_of_a_gpu_is_as_exact_as_dense_attention(case: Case, dtype: torch.dtype) -> None:
    as_exact_as_the_dense(block_sparse, dense_block_sparse, example(case, CPU, dtype), "cpu")


@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.usefixtures("on_shim")
def test_coarse_attention_of_a_gpu_is_as_exact_as_dense_attention(case: Case, dtype: torch.dtype) -> None:
    as_exact_as_the_dense(coarse, dense_coarse, example(case, CPU, dtype), "cpu")


@pytest.mark.usefixtures("on_shim")
def test_the_probes_of_a_gpu_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every probe as on a GPU: for all dtypes, with what on_cuda.py computes."""
    monkeypatch.setattr(kernels, "trials", lambda device: _trials_of_a_gpu())
    for check in kernels._probes:
        check(CPU)
    assert len(kernels._probes) == 5


_trials = kernels.trials


def _trials_of_a_gpu() -> list[tuple[torch.dtype, float]]:
    return _trials(GPU)


@pytest.mark.usefixtures("on_shim")
@pytest.mark.parametrize("operator", ["block_sparse_attention", "coarse_attention", "block_logits", "choose_blocks"])
def test_a_probe_notices_what_is_wrong(operator: str, operators: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*given: Any) -> Any:
                found = getattr(operators, name)(*given)
                if not name.startswith(operator):
                    return found
                first, *others = found if isinstance(found, tuple) else (found,)
                return (first + 1, *others) if others else first + 1

            return call

    monkeypatch.setattr(on_cuda, "operators", Wrong())

    def probe() -> None:
        for check in kernels._probes:
            check(CPU)

    with pytest.raises(ValueError, match=operator):
        probe()


@pytest.mark.usefixtures("on_shim")
def test_addresses_that_are_no_multiple_of_16_are_copied_and_their_values_kept() -> None:
    given = example(Case(2, 40, 16, 16), CPU, torch.bfloat16)

    def shifted(x: Tensor) -> Tensor:
        return torch.empty(x.numel() + 1, dtype=x.dtype)[1:].view(x.shape).copy_(x)

    assert shifted(given.q).data_ptr() % 16
    for run in (block_sparse, coarse):
        assert_close(run(given.moved(shifted)), run(given), rtol=0, atol=0)


def q_k_v(**changed: Any) -> dict[str, Any]:
    x = torch.zeros(2, 40, 16)
    given = {"q": x, "k": x, "v": x, "blocks": torch.zeros(2, 1, 2, dtype=torch.int64), "block_size": 16, "scale": 1.0}
    return {**given, "mask": None, "prior_logit": None, "prior_value": None, "stream": 0, **changed}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"block_size": 8}, "the block size must be 16, 32 or 64, not 8"),
        ({"q": torch.zeros(2, 40, 24)}, "D must be 16, 32, 64 or 128, not 24"),
        ({"q": torch.zeros(2, 40, 16, dtype=torch.float64)}, "q must be float32, bfloat16 or float16"),
        ({"k": torch.zeros(2, 40, 16, dtype=torch.float16)}, "k must be of type Float, not Half"),
        ({"v": torch.zeros(2, 39, 16)}, "v has the wrong shape"),
        ({"v": torch.zeros(2, 16, 40).mT}, "v must be dense and aligned to 16 bytes"),
        ({"blocks": torch.zeros(2, 1, 2)}, "blocks must be of type Int, not Float"),
        ({"blocks": torch.zeros(1, 1, 2, dtype=torch.int32)}, "blocks has the wrong shape"),
        ({"mask": torch.ones(2, 40)}, "mask must be of type Bool, not Float"),
        ({"mask": torch.ones(2, 41, dtype=torch.bool)}, "mask has the wrong shape"),
        ({"prior_logit": torch.zeros(2, 2)}, "prior_logit has the wrong shape"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_wrong_argument_is_named_before_anything_is_launched(
    changed: dict[str, Any], says: str, operators: Any
) -> None:
    with pytest.raises(RuntimeError, match=re.escape(says)):
        operators.block_sparse_attention_cuda(*q_k_v(**changed).values())


def test_an_error_of_a_launch_raises_with_its_name(operators: Any) -> None:
    logits, real, budget = torch.zeros(1, 3, 3), torch.ones(1, 3, dtype=torch.bool), torch.ones(1, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="CUDA: "):
        operators.choose_blocks_cuda(logits, real, budget, 3, -1, 0, False, 0)


# torch.compile.


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("kind", [MRA2, MRA2S])
@pytest.mark.parametrize("masked", [False, True])
def test_torch_compile_takes_a_core_as_one_graph(kind: type[MRA2 | MRA2S], masked: bool, backend: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    core = kind(2, 16, 100, block_size=16, blocks_per_row=3)
    compiled = torch.compile(core, fullgraph=True, backend=backend)
    mask = torch.rand(2, 100) < 0.8 if masked else None
    q, k, v = (torch.randn(2, 100, 2, 16).transpose(1, 2).requires_grad_() for _ in range(3))
    results = []
    for run in (compiled, core):
        out = run(q, k, v, mask)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), [q, k, v])])
    assert_close(results[0], results[1], rtol=0, atol=0)


# The words.


@pytest.mark.parametrize(
    ("word", "device", "says"),
    [
        ("cuda", CPU, "kernel=cuda runs on a GPU, not on cpu"),
        ("cpu", GPU, "kernel=cpu runs on a CPU, not on cuda:0"),
        ("cuda", torch.device("meta"), "kernel=cuda runs on a GPU, not on meta"),
    ],
)
def test_a_kernel_is_for_one_kind_of_device(word: str, device: torch.device, says: str) -> None:
    with kernels.use(word), pytest.raises(kernels.KernelError) as caught:
        MRA2(2, 16, 64).kernel(device)
    assert str(caught.value) == says


@pytest.mark.parametrize(
    ("core", "says"),
    [
        (MRA2(2, 16, 64, block_size=8), "blocks of 16, 32, 64 tokens, not 8"),
        (MRA2S(2, 144, 64), "heads of at most 128 dimensions, not 144"),
        (BigBird(2, 16, 64, block_size=48), "blocks of 16, 32, 64 tokens, not 48"),
        (MRA(2, 16, 64), "blocks of 16, 32, 64 tokens, not 8"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, Attention) else None,
)
def test_what_the_kernel_of_a_gpu_does_not_compute_is_an_error_or_one_line(
    core: Attention, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels, "_told", set())
    with kernels.use("cuda"), pytest.raises(kernels.KernelError) as caught:
        core.kernel(GPU)
    assert str(caught.value) == f"kernel=cuda computes {says}"
    with kernels.use("auto"):
        assert [core.kernel(GPU), core.kernel(GPU)] == ["reference"] * 2
    assert capsys.readouterr().err == f"kernel: the PyTorch reference runs, the compiled one computes {says}\n"
    with kernels.use("reference"):
        assert core.kernel(GPU) == "reference"
    assert capsys.readouterr().err == ""


def test_a_dtype_that_the_kernel_of_a_gpu_does_not_compute_is_named() -> None:
    with kernels.use("cuda"):
        for dtypes, says in (
            ({torch.float64}, "float32, bfloat16 and float16, not torch.float64"),
            ({torch.float16, torch.float32}, "q, k and v of one dtype, not torch.float16 and torch.float32"),
        ):
            with pytest.raises(kernels.KernelError, match=f"^kernel=cuda computes {says}$"):
                kernels._serves(GPU, dtypes, 16, 16)


def test_without_a_gpu_the_reference_runs_there_and_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setitem(kernels._LIBRARIES, "cuda", kernels._Library("GPU", kernels._load_for_cuda))
    monkeypatch.setattr(kernels, "_told", set())
    core = MRA2(2, 16, 64)
    with kernels.use("auto"):
        assert [core.kernel(GPU), core.kernel(GPU)] == ["reference"] * 2
    assert capsys.readouterr().err == "kernel: the PyTorch reference runs, this torch finds no CUDA device\n"
    with (
        kernels.use("cuda"),
        pytest.raises(kernels.KernelError, match="^kernel=cuda: this torch finds no CUDA device$"),
    ):
        core.kernel(GPU)


@pytest.mark.parametrize(
    ("capabilities", "found"),
    [([(7, 5)], "sm_75"), ([(8, 6), (9, 0), (7, 0)], {86, 90}), ([(12, 0)], {120})],
    ids=str,
)
def test_the_library_is_built_for_the_gpus_that_are_there(
    capabilities: list[tuple[int, int]], found: set[int] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[int]] = []

    def build(torch_at: Path, version: str, architectures: set[int]) -> Path:
        asked.append(architectures)
        return Path("library.so")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda at: capabilities[at if isinstance(at, int) else 0])
    monkeypatch.setattr("csrc.zoo.zoo_cuda_library", build)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: None)
    kernels._capability.cache_clear()
    try:
        if isinstance(found, str):
            with pytest.raises(ValueError, match=f"needs a GPU of sm_80 or newer, not {found}"):
                kernels._load_for_cuda(GPU)
        else:
            kernels._load_for_cuda(GPU)
            assert asked == [found]
    finally:
        kernels._capability.cache_clear()


def test_threads_that_ask_at_once_wait_for_one_load(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[int] = []

    def load(device: torch.device) -> None:
        time.sleep(0.2)
        loads.append(threading.get_ident())

    probed: list[bool] = []
    monkeypatch.setitem(kernels._LIBRARIES, "cpu", kernels._Library("CPU", load))
    # What a probe asks itself is answered by the reference.
    monkeypatch.setattr(kernels, "_probes", [lambda device: probed.append(kernels.compiled(torch.zeros(1)))])
    answers: list[bool] = []
    with kernels.use("cpu"):
        threads = [threading.Thread(target=lambda: answers.append(kernels.compiled(torch.zeros(1)))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert (len(loads), probed, answers) == (1, [False], [True] * 4)


def test_one_library_failing_leaves_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(device: torch.device) -> None:
        raise RuntimeError("no\nlast line")

    monkeypatch.setitem(kernels._LIBRARIES, "cuda", kernels._Library("GPU", fail))
    monkeypatch.setattr(kernels, "_told", set())
    with kernels.use("auto"):
        assert (kernels.name(GPU), kernels.name(CPU)) == ("reference", "cpu")
    with kernels.use("cuda"), pytest.raises(kernels.KernelError, match="^kernel=cuda: no$"):
        kernels.name(GPU)


# The tests that need a GPU.


def test_without_a_gpu_its_tests_say_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_tests.main([]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"tests.gpu: torch {torch.__version__} finds no GPU\n")


def test_the_tests_that_need_a_gpu_can_be_collected() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=", "--collect-only"]
    done = subprocess.run([*command, "tests/gpu"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
    assert re.search(r"(\d{3,}) tests collected", done.stdout)


def test_what_the_sanitizer_watches_runs_every_combination(capsys: pytest.CaptureFixture[str]) -> None:
    with kernels.use("auto"):
        assert all_kernels.main(CPU) == 0
    assert capsys.readouterr().out == "ran 36 combinations of dtype, dimension and block size on cpu\n"


def test_the_judges_of_the_gpu_tests_agree_with_the_references_in_float64() -> None:
    given = example(Case(3, 45, 20, 16), CPU, torch.float64)
    for run, dense in ((block_sparse, dense_block_sparse), (coarse, dense_coarse)):
        with kernels.use("reference"):
            found: Results = run(given)
        assert_close(found, dense(given))
