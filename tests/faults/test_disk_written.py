"""A disk that fails under what is written about runs: tables and pictures, sweeps, studies, benchmarks, kernels."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.faults import amount, draws
from tests.faults.injection import Injection
from tests.faults.nursery import Nursery, nursery
from tests.faults.test_disk_run import SAYS, said_in_one_line
from tests.results import write_run

pytestmark = pytest.mark.usefixtures("with_injector")

# Stands in for the work of a study: what is measured is no matter here, how its rows are kept is.
STUDY = """
import sys
from pathlib import Path
from typing import NamedTuple
from benchmarks.studies.ledger import Ledger, Stamp, alone
from lra.command import command

class Row(NamedTuple):
    attn: str
    value: float
    device: str

def work(options):
    folder = Path(options["out"])
    machine = Stamp("a machine", 1, "", "", "", "3", "2", "0", "")
    with alone(folder):
        ledger = Ledger(folder / "study.csv", Row, ("attn",), machine)
        for attn in ("mra2", "softmax", "yoso"):
            if not ledger.has(attn=attn):
                ledger.add([Row(attn, 0.5, machine.device)])
    return 0

sys.exit(command("study", "A study.", {"out": ("", "the folder")}, work, sys.argv[1:]))
"""
BUILD = """
import os, sys
from pathlib import Path
from csrc import build
build.BUILDS = Path(sys.argv[1]) / "build"
try:
    print(build.library("answer", (Path(sys.argv[1]) / "answer.cpp",)))
except (build.BuildError, OSError) as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(1)
"""


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, with_injector: None) -> Iterator[Nursery]:
    folder = tmp_path_factory.mktemp("disk") / "nursery"
    modules = (
        "lra.outcomes",
        "lra.page",
        "lra.table",
        "lra.crossover",
        "matplotlib.figure",
        "benchmarks.studies.ledger",
    )
    with nursery(folder, *modules, "matplotlib.backends.backend_svg", "lra.command", "lra.underway") as processes:
        yield processes


def some_runs(runs: Path) -> Path:
    for seed in range(2):
        write_run(runs / "mlpen" / "listops" / "mra2" / f"seed{seed}", seed=seed)
    return runs


def files(folder: Path) -> dict[str, bytes]:
    """The files below a folder that a reader would take for whole."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".part")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def attacked(
    commands: Nursery,
    tally: Counter[str],
    what: str,
    arguments: Sequence[str],
    folder: Path,
    written: Path,
    faults: Sequence[str] = ("full", "once", "quota", "broken", "readonly"),
    whole: Mapping[str, bytes] | None = None,
) -> Iterator[tuple[str, CompletedProcess[str]]]:
    """Let every operation, or some, of a command fail that writes below `written`; yields what failed.

    After each the same command again must end as the undisturbed one did.
    """  # fmt: skip
    count = Injection(written, folder / "notes")
    done = commands.run(arguments, folder, count.environ)
    assert (done.returncode, done.stderr) == (0, "")
    undisturbed, operations = files(written), count.operations()
    for fault in faults[: amount(1, len(faults))]:
        numbers = range(1, len(operations) + 1)
        for at in sorted(draws(what, fault).sample(numbers, min(len(numbers), amount(1, 20)))):
            for kept in (True, False)[amount(1, 0) :]:
                if not kept:
                    shutil.rmtree(written)
                injection = Injection(written, folder / "notes", at, fault)
                done = commands.run(arguments, folder, injection.environ)
                tally[f"disk: {fault}, operations of {what}"] += 1
                for name, content in files(written).items():
                    assert same(content, undisturbed[name]), f"{name} after {operations[at - 1]}"
                if done.returncode:
                    line = said_in_one_line(done, SAYS[fault], str(written))
                    assert ".part" not in line
                    yield fault, done
                else:
                    assert not done.stderr
                again = commands.run(arguments, folder)
                assert (again.returncode, again.stderr) == (0, ""), operations[at - 1]
                assert files(written).keys() == undisturbed.keys()
                assert all(same(content, undisturbed[name]) for name, content in files(written).items())


def same(content: bytes, other: bytes) -> bool:
    """Whether both are the same whole file; the page says when it was made."""
    return content == other or (len(content) == len(other) and content.endswith(b"</html>\n"))


def test_a_table_whose_report_cannot_be_written_is_told_all_the_same(
    commands: Nursery, tmp_path: Path, tally: Counter[str]
) -> None:
    runs = some_runs(tmp_path / "runs")
    arguments = ["-m", "lra.results", f"runs={runs}"]
    for _, done in attacked(commands, tally, "compare", arguments, tmp_path, runs / "report"):
        assert "37.2" in done.stdout
        assert done.stderr.startswith("error: all is told above, but the report cannot be written: ")


def test_a_picture_that_cannot_be_written_is_one_line(commands: Nursery, tmp_path: Path, tally: Counter[str]) -> None:
    runs = some_runs(tmp_path / "runs")
    arguments = ["-m", "lra.report", f"runs={runs}", f"out={runs / 'report' / 'curves.svg'}"]
    faults = ("full", "readonly", "broken")
    assert list(attacked(commands, tally, "report", arguments, tmp_path, runs / "report", faults))


def test_the_rows_of_a_study_are_whole_after_each_unit_and_go_on(
    commands: Nursery, tmp_path: Path, tally: Counter[str]
) -> None:
    folder = tmp_path / "study"
    arguments = ["-c", STUDY, f"out={folder}"]
    count = Injection(folder, tmp_path / "notes")
    assert commands.run(arguments, tmp_path, count.environ).returncode == 0
    whole, operations = files(folder), count.operations()
    for fault in ("full", "once", "quota", "broken")[: amount(1, 4)]:
        for at in range(1, len(operations) + 1, amount(5, 1)):
            shutil.rmtree(folder)
            done = commands.run(arguments, tmp_path, Injection(folder, tmp_path / "notes", at, fault).environ)
            tally[f"disk: {fault}, operations of a study"] += 1
            if done.returncode:
                said_in_one_line(done, SAYS[fault], str(folder))
            for content in files(folder).values():
                assert whole["study.csv"].startswith(content)
                assert content.endswith(b"\n")
            again = commands.run(arguments, tmp_path)
            assert (again.returncode, again.stderr) == (0, "")
            assert files(folder) == whole
    shutil.rmtree(folder)
    folder.mkdir()
    done = commands.run(arguments, tmp_path, Injection(folder, tmp_path / "notes", 1, "readonly").environ)
    said_in_one_line(done, str(folder))


def test_a_kernel_without_room_is_one_line_and_compiles_when_there_is(
    commands: Nursery, tmp_path: Path, tally: Counter[str]
) -> None:
    (tmp_path / "answer.cpp").write_text('extern "C" int answer() { return 42; }\n')
    builds = tmp_path / "build"
    arguments = ["-c", BUILD, str(tmp_path)]
    count = Injection(builds, tmp_path / "notes")
    assert commands.run(arguments, tmp_path, count.environ).returncode == 0
    operations = count.operations()
    for fault in ("full", "broken", "readonly", "once", "quota")[: amount(1, 5)]:
        for at in sorted(
            draws("build", fault).sample(range(1, len(operations) + 1), amount(1, min(12, len(operations))))
        ):
            shutil.rmtree(builds, ignore_errors=True)
            done = commands.run(arguments, tmp_path, Injection(builds, tmp_path / "notes", at, fault).environ)
            tally[f"disk: {fault}, operations of a kernel's build"] += 1
            if done.returncode:
                said_in_one_line(done, str(builds))
            else:
                assert not done.stderr
            again = commands.run(arguments, tmp_path)
            assert (again.returncode, again.stderr) == (0, ""), operations[at - 1]
            assert list(builds.glob("answer-*/libanswer.so")), operations[at - 1]


def test_the_folder_of_the_report_taken_away_is_made_again(commands: Nursery, tmp_path: Path) -> None:
    """A report is all there is to it: nothing is lost where somebody removes it meanwhile."""
    runs = some_runs(tmp_path / "runs")
    arguments = ["-m", "lra.results", f"runs={runs}"]
    for at in range(1, amount(3, 16)):
        injection = Injection(runs / "report", tmp_path / "notes", at, "gone")
        done = commands.run(arguments, tmp_path, injection.environ)
        if done.returncode:
            said_in_one_line(done, "No such file or directory", str(runs / "report"))
        again = commands.run(arguments, tmp_path)
        assert (again.returncode, again.stderr) == (0, "")
        assert files(runs / "report").keys() == {"compare.md", "compare.csv", "index.html"}
