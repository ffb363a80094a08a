"""What is read of a CUDA compiler's account of registers, and when it fails a change."""

from __future__ import annotations

from pathlib import Path

import pytest

from csrc import build, registers
from csrc.registers import Kernel, parsed, short

# As ptxas writes it: two kernels, the second with a function that was not put inline, for two architectures.
SAID = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_Z4halfILi16EEvPf' for 'sm_80'
ptxas info    : Function properties for _Z4halfILi16EEvPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 96 registers, used 1 barriers, 16384 bytes smem, 364 bytes cmem[0]
ptxas info    : Compile time = 2.133 ms
ptxas info    : Compiling entry function '_Z5wholev' for 'sm_90'
ptxas info    : Function properties for _Z5wholev
    48 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers, 48 bytes cumulative stack size, 1024+0 bytes smem
ptxas info    : Function properties for _Z5helpedf
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
KERNELS = [
    Kernel("_Z4halfILi16EEvPf", "sm_80", registers=96, shared=16384, stack=0, spilled=0),
    Kernel("_Z5wholev", "sm_90", registers=255, shared=1024, stack=48, spilled=20),
    Kernel("_Z5helpedf", "sm_90", registers=0, shared=0, stack=8, spilled=0),
]


def test_the_account_is_read() -> None:
    assert parsed(SAID) == KERNELS
    assert parsed("nothing of the kind\n    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads\n") == []


def test_spills_stack_frames_and_too_many_registers_are_faults() -> None:
    assert KERNELS[0].faults() == []
    assert KERNELS[0]._replace(registers=128).faults() == []
    assert KERNELS[1]._replace(name="whole").faults() == [
        "whole for sm_90 takes 255 registers, more than 128",
        "whole for sm_90 spills 20 bytes",
        "whole for sm_90 has a stack frame of 48 bytes",
    ]
    assert len(KERNELS[2].faults()) == 1


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("void (anonymous namespace)::forward<BFloat16, (int)64, (bool)1>(ZooForward)", "forward<BFloat16, 64, 1>"),
        ("void half<16>(float*)", "half<16>"),
        ("whole()", "whole"),
        ("_Z5wholev", "_Z5wholev"),
        ("void run<void (*)(int)>(void (*)(int), float)", "run<void (*)(int)>"),
    ],
)
def test_a_name_keeps_what_tells_kernels_apart(name: str, shown: str) -> None:
    assert short(name) == shown


def test_a_kernel_has_a_line_with_the_numbers_of_all_architectures() -> None:
    first = KERNELS[0]._replace(name="half<16>")
    rows = registers.table([first._replace(architecture="sm_90", registers=100), first]).splitlines()
    assert [row.split() for row in rows] == [
        ["sm_80/sm_90", "registers", "shared", "stack", "spilled"],
        ["half<16>", "96/100", "16384", "0", "0"],
    ]


def fake(folder: Path, said: str, code: int = 0) -> str:
    """An nvcc that says this of every source."""
    (folder / "said").write_text(said)
    path = folder / "nvcc"
    path.write_text(f'#!/bin/sh\ncat "{folder}/said" >&2\nexit {code}\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sources, and no compiler but what a test names."""
    for name in ("first", "second"):
        (tmp_path / f"{name}.cu").touch()
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    return tmp_path


def good() -> str:
    return "\n".join(SAID.splitlines()[:6])


def test_sound_kernels_are_shown_in_a_table(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NVCC", fake(folder, good()))
    assert registers.main(folder) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "first.cu"
    assert lines[1].split() == ["sm_80", "registers", "shared", "stack", "spilled"]
    assert lines[2].split()[-4:] == ["96", "16384", "0", "0"]
    assert lines[-1] == "2 kernels, at most 96 registers, 0 faults"


def test_a_fault_is_a_line_and_exit_code_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NVCC", fake(folder, SAID))
    assert registers.main(folder) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "6 kernels, at most 255 registers, 8 faults"
    assert len(said.err.splitlines()) == 8
    assert all(line.startswith("csrc.registers: ") for line in said.err.splitlines())


def test_a_compiler_that_tells_of_no_kernel_is_no_proof(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NVCC", fake(folder, ""))
    assert registers.main(folder) == 1
    assert capsys.readouterr().err == "csrc.registers: nvcc told of no kernel in first.cu, second.cu\n"


def test_a_source_that_does_not_compile_is_one_line_and_exit_code_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NVCC", fake(folder, "first.cu(3): error: no such thing\nmore\n", code=2))
    assert registers.main(folder) == 1
    assert capsys.readouterr().err == "csrc.registers: first.cu does not compile: first.cu(3): error: no such thing\n"


def test_without_nvcc_one_line_says_so_and_nothing_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(build, "CUDA_HOME", folder)
    assert registers.main(folder) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("CUDA kernels not compiled, no nvcc: ")
    assert len(said.out.splitlines()) == 1
