"""Which kernel runs, what happens without one, and what checkers of memory say of the compiled one."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from attention_zoo.mra2 import MRA2
from attention_zoo.ops import kernels
from attention_zoo.ops.block_sparse import block_sparse_attention
from csrc.build import SOURCES
from csrc.zoo import KERNEL_FILES

from . import forks

ROOT = Path(__file__).parent.parent


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
    return forks.run(["-c", PROGRAM, word], ROOT, {**os.environ, **environment})


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
