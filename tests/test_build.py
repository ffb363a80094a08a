"""Compiling on first use: once, for exactly these sources, and with one line where it cannot be."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from csrc import build, zoo

ROOT = Path(__file__).parent.parent


def answer(number: int) -> str:
    return f'extern "C" int answer() {{ return {number}; }}\n'


def asked(path: Path) -> int:
    return int(ctypes.CDLL(str(path)).answer())


def built(*sources: Path, flags: tuple[str, ...] = ()) -> Path:
    """What a new process would get."""
    build.library.cache_clear()
    return build.library("answer", sources, flags)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "BUILDS", tmp_path / "build")
    path = tmp_path / "answer.cpp"
    path.write_text(answer(42))
    return path


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_library_is_compiled_once(source: Path) -> None:
    first = built(source)
    written = first.stat().st_mtime_ns
    assert asked(first) == 42
    assert built(source) == first
    assert first.stat().st_mtime_ns == written


def test_only_a_build_is_announced(source: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for expected in ("compiling ...\n", ""):
        build.library.cache_clear()
        build.library("answer", (source,), notice="compiling ...")
        assert capfd.readouterr().err == expected


def test_another_source_is_another_library(source: Path) -> None:
    first = built(source)
    source.write_text(answer(43))
    second = built(source)
    assert (asked(first), asked(second)) == (42, 43)


def test_headers_flags_and_the_compiler_are_part_of_the_key(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = {built(source).parent, built(source, flags=("-DX",)).parent}
    source.with_name("answer.hpp").write_text("// nothing\n")
    folders.add(built(source).parent)
    other = script(source.with_name("other"), f'[ "$1" = --version ] && echo other || exec {build._compiler()[0]} "$@"')
    monkeypatch.setenv("CXX", str(other))
    folders.add(built(source).parent)
    assert len(folders) == 4


def test_several_sources_make_one_library(source: Path) -> None:
    source.write_text('int half(); extern "C" int answer() { return 2 * half(); }\n')
    half = source.with_name("half.cpp")
    half.write_text("int half() { return 22; }\n")
    assert asked(built(source, half)) == 44


def test_any_path_will_do(source: Path) -> None:
    folder = source.parent / "a $b:c 'd"
    folder.mkdir()
    assert asked(built(source.rename(folder / "an answer.cpp"))) == 42


def test_a_broken_source_gets_one_line_and_leaves_no_library(source: Path) -> None:
    source.write_text('extern "C" int answer() { return forty_two; }\n')
    with pytest.raises(build.BuildError, match="libanswer does not compile: .*answer.cpp:1.*forty_two.*log") as error:
        built(source)
    assert "\n" not in str(error.value)
    assert list(build.BUILDS.rglob("*.so*")) == []
    (log,) = build.BUILDS.rglob("log")
    assert "forty_two" in log.read_text()


def test_a_source_that_does_not_link_leaves_no_library(source: Path) -> None:
    with pytest.raises(build.BuildError, match="libanswer does not compile"):
        built(source, flags=("-Wl,--no-such-option",))
    assert list(build.BUILDS.rglob("*.so*")) == []


def test_a_build_that_was_killed_is_made_again(source: Path) -> None:
    library = built(source)
    library.rename(library.with_name(f"{library.name}.part")).write_bytes(b"half")
    assert asked(built(source)) == 42


def test_two_processes_at_once_compile_once(source: Path) -> None:
    log = source.with_name("compiled")
    log.touch()
    count = f'case "$*" in *" -c "*) echo >> {log}; sleep 0.5;; esac'
    compiler = script(source.with_name("slow"), f'{count}; exec {build._compiler()[0]} "$@"')
    program = (
        "import pathlib, sys; from csrc import build; build.BUILDS = pathlib.Path(sys.argv[1]); "
        "print(build.library('answer', (pathlib.Path(sys.argv[2]),)))"
    )
    command = [sys.executable, "-c", program, str(build.BUILDS), str(source)]
    environment = os.environ | {"CXX": str(compiler)}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) for _ in range(2)]
    paths = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(paths) == 1
    assert asked(Path(paths.pop())) == 42
    assert log.read_text() == "\n"


def test_without_a_compiler_it_says_what_was_looked_for(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(source.parent))
    with pytest.raises(build.BuildError, match=r"neither c\+\+, g\+\+, clang\+\+ is on the PATH; install"):
        built(source)


def test_a_compiler_that_was_named_is_never_replaced(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O1")
    with pytest.raises(build.BuildError, match=r"\$CXX is 'no-such-compiler'"):
        built(source)
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(build.BuildError, match="false is no C[+][+] compiler: it fails at --version"):
        built(source)


def test_without_ninja_it_says_how_to_get_it(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = script(source.with_name("compiler"), "echo version")
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("PATH", str(source.parent))
    monkeypatch.setattr(sys, "executable", str(source.with_name("python")))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(source.parent))
    with pytest.raises(build.BuildError, match="no ninja .* pip install ninja"):
        built(source)
    assert not build.BUILDS.exists()


# CUDA. A script stands in for nvcc: it drops the words that a C++ compiler does not know.

NVCC = """
case "$1" in --version) echo fake 1.0; exit 0;; esac
case "$*" in *--dryrun*) echo '#$ LIBRARIES=  "-L{runtime}"' >&2; exit 0;; esac
for word; do
  shift
  case "$word" in -Xcompiler=*|-gencode*|-Xptxas*) ;; *) set -- "$@" "$word";; esac
done
echo compiled >> {log}
exec {compiler} -fPIC -x c++ "$@"
"""


@pytest.fixture
def kernel(source: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A source in CUDA that calls the runtime, beside the fixture `source`, which calls it; and a fake nvcc."""
    runtime = source.with_name("a runtime")
    runtime.mkdir()
    (runtime / "runtime.cpp").write_text("int runtime() { return 40; }\n")
    compiler = build._compiler()[0]
    subprocess.run([compiler, "-fPIC", "-c", "runtime.cpp", "-o", "runtime.o"], cwd=runtime, check=True)
    subprocess.run(["ar", "rc", "libcudart_static.a", "runtime.o"], cwd=runtime, check=True)
    text = NVCC.format(runtime=runtime, log=source.with_name("compiled"), compiler=compiler)
    monkeypatch.setenv("NVCC", str(script(source.with_name("nvcc"), text)))
    source.write_text('int kernel(); extern "C" int answer() { return kernel() + 1; }\n')
    path = source.with_name("kernel.cu")
    path.write_text('#include "kernel.cuh"\nint runtime(); int kernel() { return runtime() + ONE; }\n')
    path.with_name("kernel.cuh").write_text("#define ONE 1\n")
    return path


def test_cuda_is_compiled_by_nvcc_and_linked_with_a_runtime_of_its_own(source: Path, kernel: Path) -> None:
    found = built(source, kernel)
    assert asked(found) == 42
    assert not hasattr(ctypes.CDLL(str(found)), "_Z7runtimev")
    assert hasattr(ctypes.CDLL(str(found)), "_Z6kernelv")
    assert source.with_name("compiled").read_text() == "compiled\n"


def test_headers_flags_and_the_version_of_nvcc_are_part_of_the_key(source: Path, kernel: Path) -> None:
    def folder(*cuda_flags: str) -> Path:
        build.library.cache_clear()
        return build.library("answer", (source, kernel), (), cuda_flags).parent

    folders = {folder(), folder("-DX")}
    kernel.with_name("kernel.cuh").write_text("#define ONE (1)\n")
    folders.add(folder())
    nvcc = source.with_name("nvcc")
    nvcc.write_text(nvcc.read_text().replace("fake 1.0", "fake 1.1"))
    folders.add(folder())
    assert len(folders) == 4
    assert folder() in folders


def test_a_library_without_cuda_asks_for_no_nvcc(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVCC", "no-such-nvcc")
    first = built(source)
    source.with_name("kernel.cuh").write_text("// nothing\n")
    assert (built(source), asked(first)) == (first, 42)


def test_what_has_been_built_is_found_and_nothing_is_built_for_it(source: Path, kernel: Path) -> None:
    assert build.existing("answer", (source, kernel)) is None
    assert not build.BUILDS.exists()
    assert built(source, kernel) == build.existing("answer", (source, kernel))


def test_the_first_complaint_of_nvcc_is_the_line(source: Path, kernel: Path) -> None:
    nvcc = source.with_name("nvcc")
    nvcc.write_text(nvcc.read_text().replace("exec ", "echo 'nvcc fatal   : Unsupported gpu'; exit 1; exec "))
    with pytest.raises(build.BuildError, match="^libanswer does not compile: nvcc fatal   : Unsupported gpu [(]all"):
        built(source, kernel)


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("NVCC", "no-such-nvcc -x", "no nvcc: $NVCC is 'no-such-nvcc', which is not a program on the PATH"),
        ("CUDA_HOME", "/nowhere", "no nvcc: $CUDA_HOME is '/nowhere', which has no bin/nvcc"),
    ],
)
def test_an_nvcc_that_was_named_is_never_replaced(
    variable: str, value: str, says: str, kernel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NVCC")
    monkeypatch.setenv(variable, value)
    with pytest.raises(build.BuildError) as error:
        built(kernel)
    assert str(error.value) == says
    assert not isinstance(error.value, build.NoCompiler)


def test_nvcc_is_looked_for_by_name_then_home_then_path_then_the_usual_place(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = {name: source.parent / name / "bin" for name in ("named", "home", "path", "usual")}
    for place in places.values():
        place.mkdir(parents=True)
        script(place / "nvcc", "exit 0")
    monkeypatch.setenv("NVCC", str(places["named"] / "nvcc"))
    monkeypatch.setenv("CUDA_HOME", str(places["home"].parent))
    monkeypatch.setenv("PATH", str(places["path"]))
    monkeypatch.setattr(build, "CUDA_HOME", places["usual"].parent)
    found = [build.nvcc()]
    for variable in ("NVCC", "CUDA_HOME", "PATH"):
        monkeypatch.delenv(variable)
        if variable == "PATH":
            monkeypatch.setenv("PATH", str(source.parent))
        found.append(build.nvcc())
    assert found == [(str(place / "nvcc"),) for place in places.values()]
    (places["usual"] / "nvcc").unlink()
    with pytest.raises(build.NoCompiler, match=r"^no nvcc: \$NVCC and \$CUDA_HOME name none, and there is none on"):
        build.nvcc()


# `make kernels`.


@pytest.mark.parametrize(
    ("error", "code", "out", "err"),
    [
        (None, 0, r"CPU kernels ready: cpu.so \(\d+\.\d s\)\nCUDA kernels ready: cuda.so \(\d+\.\d s\)\n", ""),
        (build.NoCompiler("no nvcc: x"), 0, r"CPU .*\nCUDA kernels not built, no nvcc: x\n", ""),
        (build.BuildError("does not compile"), 1, r"CPU .*\n", r"csrc.zoo: CUDA kernels: does not compile\n"),
    ],
    ids=["built", "no nvcc", "broken"],
)
def test_building_ahead_says_a_line_for_each_library(
    error: build.BuildError | None,
    code: int,
    out: str,
    err: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def cuda(*given: object) -> Path:
        assert given[2] == zoo.AHEAD
        if error is not None:
            raise error
        return Path("cuda.so")

    monkeypatch.setattr(zoo, "zoo_library", lambda *given: Path("cpu.so"))
    monkeypatch.setattr(zoo, "zoo_cuda_library", cuda)
    assert zoo.main() == code
    said = capsys.readouterr()
    assert re.fullmatch(out, said.out)
    assert re.fullmatch(err, said.err)


def test_building_ahead_fails_without_a_compiler_for_cpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert zoo.main() == 1
    assert [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()] == ["CPU kernels", "CUDA kernels"]


def test_the_ptx_of_the_newest_architecture_goes_along() -> None:
    assert zoo.architecture_flags({90, 80}) == (
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=[sm_90,compute_90]",
    )


def test_two_buildings_ahead_at_once_compile_each_source_once(source: Path) -> None:
    """With a script for both compilers, which writes down what it is asked."""
    log = source.with_name("asked")
    log.touch()
    text = f'''
case "$1" in --version|-dumpmachine) echo fake; exit 0;; esac
case "$*" in *--dryrun*) exit 0;; esac
for word; do
  case "$before" in -o) out=$word;; -c) in=$word;; esac
  before=$word
done
echo "$out" >> {log}
sleep 0.2
echo > "$out"'''
    compiler = script(source.with_name("both"), text)
    program = (
        "import pathlib, sys; from csrc import build, zoo; build.BUILDS = pathlib.Path(sys.argv[1]); "
        "sys.exit(zoo.main())"
    )
    command = [sys.executable, "-c", program, str(build.BUILDS)]
    environment = os.environ | {"CXX": str(compiler), "NVCC": str(compiler)}
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) for _ in range(2)]
    said = [process.communicate()[0].splitlines() for process in both]
    assert [process.returncode for process in both] == [0, 0]
    paths = [[line.split(": ")[1].split(" (")[0] for line in lines] for lines in said]
    assert paths[0] == paths[1]
    assert [Path(path).name for path in paths[0]] == ["libzoo.so", "libzoo_cuda.so"]
    written = log.read_text().splitlines()
    assert len(written) == len(zoo.FILES) + len(zoo.CUDA_KERNEL_FILES) + 1 + 2
