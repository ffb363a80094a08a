"""Clearing padding: the compiled copy has the bits of torch's, in the layout that is read next, and builds nothing."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

from attention_zoo import ZOO
from attention_zoo.ops import kernels, padding
from attention_zoo.ops.padding import clear
from benchmarks.step import copies
from csrc.build import SOURCES
from lra.config import Model
from lra.model import Classifier, transformer

from . import forks

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
PADDED = torch.tensor([[0, 0, 0, 1, 1], [0, 1, 0, 0, 0]], dtype=torch.bool)[:, None, :, None]
# A masked forward and backward of an attention; with a second word, after its core was asked for its kernel.
PROGRAM = """
import sys
import torch
from attention_zoo import ZOO
from attention_zoo.ops import kernels

cpu = torch.device("cpu")
core = ZOO[sys.argv[1]](2, 8, 64)
asked = core.kernel(cpu) if sys.argv[2:] else None
ready = kernels.ready(cpu)
x = torch.randn(1, 2, 64, 8, requires_grad=True)
core(x, x, x, torch.arange(64)[None] < 50).sum().backward()
print(asked, ready, kernels.ready(cpu))
"""


@pytest.fixture(autouse=True)
def loaded() -> Iterator[None]:
    """The compiled copy, as where an attention has loaded it."""
    with kernels.use("cpu"):
        assert kernels.available()
        yield


def bits(x: Tensor, y: Tensor) -> None:
    """Equal to the last bit; NaN is NaN."""
    assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def strided(layout: str, dtype: torch.dtype) -> Tensor:
    """(B, H, N, D) = (2, 3, 5, 4) in one of several layouts."""
    x = torch.arange(120, dtype=torch.float32).to(dtype)
    return {
        "heads": lambda: x.view(2, 3, 5, 4),
        "tokens": lambda: x.view(2, 5, 3, 4).transpose(1, 2),
        "columns": lambda: x.view(2, 3, 4, 5).mT,
        "expanded": lambda: x[:20].view(1, 1, 5, 4).expand(2, 3, 5, 4),
        "part": lambda: torch.cat([x, x]).view(2, 5, 3, 8).transpose(1, 2)[..., 2:6],
    }[layout]()


@pytest.mark.parametrize("tokens_first", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("layout", ["heads", "tokens", "columns", "expanded", "part"])
def test_rows_of_padding_are_cleared_as_masked_fill_clears_them(
    layout: str, dtype: torch.dtype, tokens_first: bool
) -> None:
    x = strided(layout, dtype)
    # Written in place, where it can be: masked_fill would give a new layout.
    if layout != "expanded":
        x.masked_fill_(PADDED & (torch.arange(4) > 0), math.nan).masked_fill_(PADDED, math.inf)
    x.requires_grad_()
    upstream = strided("columns", dtype).masked_fill_(PADDED, math.nan)
    ours, theirs = clear(x, PADDED, tokens_first), x.masked_fill(PADDED, 0.0)
    bits(ours, theirs)
    (gradient,), (expected,) = (torch.autograd.grad(out, x, upstream) for out in (ours, theirs))
    bits(gradient, expected)
    assert (ours.transpose(1, 2) if tokens_first else ours).is_contiguous()
    assert (gradient if tokens_first else gradient.transpose(1, 2)).is_contiguous()


@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (1, 1, 1, 1), (2, 1, 5, 1), (1, 2, 700, 3)])
def test_every_size_is_cleared(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    padded = (torch.rand(shape[0], shape[2]) < 0.4)[:, None, :, None]
    for tokens_first in (False, True):
        bits(clear(x, padded, tokens_first), x.masked_fill(padded, 0.0))


# torch's own, the first time that it differentiates forwards.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("tokens_first", [False, True])
def test_clearing_can_be_differentiated_twice_forwards_and_over_a_batch(tokens_first: bool) -> None:
    x = strided("tokens", torch.float32)

    def cube(x: Tensor) -> Tensor:
        return (clear(x, PADDED, tokens_first) ** 3).sum()

    def plain(x: Tensor) -> Tensor:
        return (x.masked_fill(PADDED, 0.0) ** 3).sum()

    for transform in (
        lambda f: torch.func.grad(lambda x: torch.func.grad(f)(x).sum())(x),
        lambda f: torch.func.jvp(f, (x,), (x.cos(),))[1],
        lambda f: torch.func.vmap(f)(torch.stack([x, x.cos()])),
        lambda f: torch.func.vmap(torch.func.grad(f))(torch.stack([x, x.cos()])),
    ):
        assert_close(transform(cube), transform(plain))


def test_one_document_can_be_cleared_in_many_ways_at_once() -> None:
    x, ways = strided("tokens", torch.float32), torch.stack([PADDED, ~PADDED])
    bits(torch.func.vmap(lambda padded: clear(x, padded))(ways), torch.where(ways, 0.0, x))


# torch's own, while it traces.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torch_compile_sees_an_operator_of_torch() -> None:
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op.startswith("call"))
        return graph

    x = strided("tokens", torch.float32)
    compiled = torch.compile(lambda x: clear(x, PADDED) + 1, backend=backend, fullgraph=True)
    bits(compiled(x), x.masked_fill(PADDED, 0.0) + 1)
    assert any("where" in name for name in seen)


def test_tensors_without_memory_are_cleared_by_torch() -> None:
    with FakeTensorMode() as mode:
        fake = clear(mode.from_tensor(strided("tokens", torch.float32)), mode.from_tensor(PADDED))
    assert fake.shape == (2, 3, 5, 4)


@pytest.mark.parametrize(
    ("x", "padded", "complaint"),
    [
        (torch.ones(2, 3, 4), torch.ones(2, 4, dtype=torch.bool), "x must have shape (B, H, N, D), on the CPU"),
        (torch.ones(2, 3, 4, 5).mT, torch.ones(2, 5, dtype=torch.bool), "the rows of x must be dense"),
        (
            torch.ones(2, 3, 4, 5), torch.ones(2, 3, dtype=torch.bool),
            "padded must be a dense bool tensor of shape (2, 4) on the CPU",
        ),
        (torch.ones(2, 3, 4, 5), torch.ones(2, 4), "padded must be a dense bool tensor of shape (2, 4) on the CPU"),
    ],
)  # fmt: skip
def test_the_compiled_copy_reads_nothing_beyond_its_arrays(x: Tensor, padded: Tensor, complaint: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(complaint)):
        torch.ops.zoo.clear_rows_cpu(x, padded, False)


def test_where_the_setting_rules_the_library_out_torch_clears(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding._Clear, "apply", lambda *_: pytest.fail("the compiled copy ran"))
    x = strided("tokens", torch.float32)
    for word in ("reference", "cuda"):
        with kernels.use(word):
            assert not kernels.ready(CPU)
            bits(clear(x, PADDED), x.masked_fill(PADDED, 0.0))
    with kernels.use("auto"):
        assert kernels.ready(CPU)
        assert not kernels.ready(torch.device("meta"))


def test_a_library_that_failed_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kernels._LIBRARIES["cpu"], "why_not", "it is wrong")
    assert not kernels.ready(CPU)
    assert capsys.readouterr().err == ""


def test_the_probe_notices_a_wrong_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padding._Clear, "forward", lambda x, padded, tokens_first: x)
    with pytest.raises(ValueError, match="zoo::clear_rows"):
        padding._probe(CPU)
    padding._probe(torch.device("meta"))


def in_a_new_process(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return forks.run(["-c", PROGRAM, *words], ROOT, {**os.environ, **environment})


def test_softmax_with_a_mask_builds_and_loads_nothing() -> None:
    for environment in ({}, {"CXX": "/nowhere/c++"}):
        done = in_a_new_process("softmax", "asked", **environment)
        assert (done.stdout, done.stderr) == ("None False False\n", "")


def test_a_core_that_was_asked_for_its_kernel_clears_with_it_from_the_first_step_on() -> None:
    """As a run asks before it trains."""
    assert in_a_new_process("mra2", "asked").stdout == "cpu True True\n"
    assert in_a_new_process("mra2").stdout == "None False True\n"


def losses(name: str, word: str) -> list[float]:
    """Ten steps of a small model with dropout, on documents of 20 to 200 tokens."""
    torch.manual_seed(0)
    size = Model(layers=2, dim=32, ffn=64, head_dim=16, seq_len=256, dropout=0.1)
    model: Classifier = transformer(lambda: ZOO[name](2, 16, 256), size, vocab=16, classes=10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    draws = torch.Generator().manual_seed(3)
    found = []
    with kernels.use("auto"), copies(word):
        for _ in range(10):
            tokens = torch.randint(1, 16, (3, 200), generator=draws)
            lengths = torch.randint(20, 201, (3, 1), generator=draws)
            logits = model(tokens, torch.arange(200) < lengths)
            loss = F.cross_entropy(logits, torch.tensor([1, 5, 9]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
    return found


@pytest.mark.parametrize("name", ["softmax", "mra2", "linformer", "yoso"])
def test_training_has_the_same_bits_with_either_copies(name: str) -> None:
    assert losses(name, "ours") == losses(name, "torch")


def test_sanitizers_find_nothing(tmp_path: Path) -> None:
    compiler = os.environ.get("CXX") or next(name for name in ("c++", "g++", "clang++") if shutil.which(name))
    files = [str(SOURCES / "padding.cpp"), str(Path(__file__).parent / "padding_check.cpp")]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    program = str(tmp_path / "check")
    subprocess.run([*shlex.split(compiler), *flags, f"-I{SOURCES}", *files, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
