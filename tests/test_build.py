"""Compiling on first use: once, for exactly these sources, and with one line where it cannot be."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from csrc import build

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
