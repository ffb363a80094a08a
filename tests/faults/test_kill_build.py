"""A build that is killed at any instant, with or without its compilers, spoils no later one."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.faults import FULL, amount, draws
from tests.faults.injection import Injection
from tests.faults.kills import HALF, SIGNALS, faults, heeds_signals, note, plain
from tests.runs import ROOT, environment
from tests.test_build import answer, script

PROGRAM = """
import sys; from pathlib import Path; from csrc import build
build.BUILDS = Path(sys.argv[1])
try: print(build.library("answer", (Path(sys.argv[2]),)))
except build.BuildError as error: sys.exit(f"error: {error}")
"""


def program(folder: Path) -> list[str]:
    """A process that builds folder/answer.cpp and prints where the library is."""
    (folder / "answer.cpp").write_text(answer(42))
    return ["-c", PROGRAM, str(folder / "build"), str(folder / "answer.cpp")]


def whole(folder: Path, tally: Counter[str]) -> None:
    """What stands under the name of a library is one; the same build again ends with one, and with no half of it."""
    for path in (folder / "build").glob("*/*.so"):
        tally[HALF] += 1
        assert ctypes.CDLL(str(path)).answer() == 42
        tally[HALF] -= 1
    done = plain(program(folder), folder, environment())
    assert (done.returncode, done.stderr) == (0, "")
    (built,) = (folder / "build").rglob("libanswer.so*")
    assert done.stdout == f"{built}\n"
    assert ctypes.CDLL(str(built)).answer() == 42


@pytest.mark.parametrize("part", range(amount(1, 4)))
def test_a_build_killed_at_any_file_operation_is_made_anew(tmp_path: Path, part: int, tally: Counter[str]) -> None:
    """Of Python, the compiler or the linker, whichever makes it."""
    draw = draws("build", part)
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    count = Injection(undisturbed / "build", tmp_path / "notes")
    assert plain(program(undisturbed), undisturbed, environment() | count.environ).returncode == 0
    for k, fault in enumerate(faults(draw, 6) if FULL else [draw.choice(list(SIGNALS))]):
        folder = tmp_path / str(k)
        folder.mkdir()
        attack = Injection(folder / "build", tmp_path / "notes", draw.randint(1, count.count()), fault)
        done = plain(program(folder), folder, environment() | attack.environ)
        note(tally, fault, "building a kernel")
        assert done.returncode != 0 or fault != "kill"
        whole(folder, tally)


def test_what_compilers_that_outlived_their_build_write_spoils_no_other(tmp_path: Path, tally: Counter[str]) -> None:
    """The first compiler writes half an object when its build is long killed and the next one, if any, links."""
    first, linking = tmp_path / "first", tmp_path / "linking"
    first.touch()
    compiler = shutil.which("c++") or "c++"
    text = f"""
case "$*" in
  *" -c "*) if rm {first} 2>/dev/null; then
      for word; do [ "$before" = -o ] && out=$word; before=$word; done
      for k in 1 2 3 4 5 6 7 8 9; do [ -e {linking} ] || sleep 0.2; done
      echo half > "$out"; exit 0
    fi;;
  *-shared*) touch {linking}; sleep 0.5;;
esac
exec {compiler} "$@" """
    slow = {"CXX": str(script(tmp_path / "slow", text))}
    command = [sys.executable, *program(tmp_path)]
    with subprocess.Popen(command, env=environment() | slow, cwd=ROOT) as process:
        while first.exists():
            assert process.poll() is None
        process.kill()
    note(tally, "kill", "building a kernel, of Python alone")
    done = subprocess.run(command, env=environment() | slow, cwd=ROOT, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ctypes.CDLL(done.stdout.strip()).answer() == 42


# A compiler for both languages that takes its time.
SLOW = """
case "$1" in --version|-dumpmachine) echo fake; exit 0;; esac
case "$*" in *--dryrun*) exit 0;; esac
for word; do [ "$before" = -o ] && out=$word; before=$word; done
echo half > "$out"; sleep 0.1; echo whole > "$out" """
ZOO = """
import runpy, sys; from pathlib import Path; from csrc import build
build.BUILDS = Path(sys.argv[1])
runpy.run_module("csrc.zoo", run_name="__main__")
"""


@pytest.mark.parametrize("part", range(amount(1, 4)))
def test_building_ahead_killed_at_any_moment_is_made_anew(tmp_path: Path, part: int, tally: Counter[str]) -> None:
    """`make kernels` alone, or with the whole group of its terminal."""
    draw = draws("building ahead", part)
    compiler = str(script(tmp_path / "slow", SLOW))
    environ = environment() | {"CXX": compiler, "NVCC": compiler}
    for k, fault in enumerate(faults(draw, 3) if FULL else [draw.choice(("term", "int"))]):
        command = [sys.executable, "-c", ZOO, str(tmp_path / str(k))]
        with subprocess.Popen(
            command, cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process:  # fmt: skip
            if fault != "kill":
                heeds_signals(process)
            time.sleep(draw.uniform(0, 1))
            with suppress(ProcessLookupError):
                (os.kill if draw.random() < 0.5 else os.killpg)(process.pid, SIGNALS[fault])
            complaint = process.communicate()[1]
        note(tally, fault, "building ahead")
        if process.returncode:
            assert process.returncode == (-signal.SIGKILL if fault == "kill" else 128 + SIGNALS[fault])
            said = [line for line in complaint.splitlines() if not line.startswith("kernel: compiling")]
            assert len(said) == (fault != "kill"), complaint
        done = plain(command[1:], ROOT, environ)
        assert done.returncode == 0, done.stderr
        libraries = list((tmp_path / str(k)).rglob("lib*"))
        assert {path.name for path in libraries} == {"libzoo.so", "libzoo_cuda.so"}
        halves = [path for path in libraries if path.read_text() != "whole\n"]
        tally[HALF] += len(halves)
        assert halves == []
