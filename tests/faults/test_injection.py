"""The attacks do what they say: an attack that never happened would prove nothing."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests import forks
from tests.faults.injection import Injection
from tests.runs import environment

pytestmark = pytest.mark.usefixtures("with_injector")

# Ten writes, with what else belongs to a file. Jobs in the background of a shell ignore SIGINT, and so would this one.
PROGRAM = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
folder = sys.argv[1]
os.mkdir(f"{folder}/inner")
with open(f"{folder}/inner/new", "wb", buffering=0) as file:
    for k in range(10):
        file.write(b"0123456789")
    os.fsync(file.fileno())
os.rename(f"{folder}/inner/new", f"{folder}/whole")
os.unlink(f"{folder}/whole")
print("done")
"""
NAMES = ["mkdir", "open", *["write"] * 10, "sync", "rename", "unlink"]


def attacked(tmp_path: Path, at: int, fault: str = "kill") -> tuple[int, str, Path, Injection]:
    """Run the program with an injection; exit code, what it said, its folder."""
    under = tmp_path / "under"
    under.mkdir()
    injection = Injection(under, tmp_path / "notes", at, fault)
    done = forks.run(["-c", PROGRAM, str(under)], tmp_path, environment() | injection.environ)
    return done.returncode, done.stdout + done.stderr, under, injection


def test_every_operation_below_the_folder_is_counted_and_no_other(tmp_path: Path) -> None:
    code, said, under, injection = attacked(tmp_path, 0)
    assert (code, said) == (0, "done\n")
    assert [operation.name for operation in injection.operations()] == NAMES
    assert injection.count() == len(NAMES)
    assert injection.operations()[-2].path == under.resolve() / "whole"


@pytest.mark.parametrize("at", [1, 2, 3, 8, 13, 14, 15])
def test_a_kill_comes_instead_of_its_operation_and_tears_a_write(tmp_path: Path, at: int) -> None:
    code, said, under, injection = attacked(tmp_path, at)
    assert (code, said, injection.count()) == (-signal.SIGKILL, "", at)
    size = {path.name: path.stat().st_size for path in under.rglob("*") if path.is_file()}
    writes = NAMES[: at - 1].count("write")
    torn = 5 if NAMES[at - 1] == "write" else 0
    name = "whole" if "rename" in NAMES[: at - 1] else "new"
    assert size == ({name: 10 * writes + torn} if at > 2 else {})


@pytest.mark.parametrize(("fault", "signum"), [("term", signal.SIGTERM), ("usr2", signal.SIGUSR2)])
def test_a_signal_comes_at_its_operation(tmp_path: Path, fault: str, signum: int) -> None:
    code, _, _, injection = attacked(tmp_path, 5, fault)
    assert (code, injection.count()) == (-signum, 5)


@pytest.mark.parametrize(
    ("fault", "says"), [("full", "No space left"), ("once", "No space left"), ("broken", "Input/output error")]
)
def test_an_error_is_the_one_of_its_name(tmp_path: Path, fault: str, says: str) -> None:
    code, said, under, _ = attacked(tmp_path, 5, fault)
    assert code == 1
    assert said.splitlines()[-1].startswith("OSError")
    assert says in said
    assert (under / "inner" / "new").stat().st_size == 25


def test_an_interrupt_is_pythons_own(tmp_path: Path) -> None:
    code, said, _, _ = attacked(tmp_path, 5, "int")
    assert code in (1, 130, -signal.SIGINT)
    assert "KeyboardInterrupt" in said


def test_a_process_without_an_injection_is_left_alone(tmp_path: Path) -> None:
    done = forks.run(["-c", PROGRAM, str(tmp_path)], tmp_path, environment())
    assert (done.returncode, done.stdout) == (0, "done\n")


def test_an_unknown_fault_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="fault='fire' is not one of kill, term"):
        Injection(tmp_path, tmp_path / "notes", 1, "fire")
