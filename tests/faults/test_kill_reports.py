"""A report that is killed while it is written leaves the old files or new ones, and the next one cleans up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import FULL, amount, draws
from tests.faults.injection import Operation
from tests.faults.kills import (
    DIFFERENT,
    HALF,
    REMNANTS,
    SIGNALS,
    again,
    assert_ended_well,
    at_operation,
    faults,
    files,
    note,
    operations,
)
from tests.results import write_run
from tests.runs import ROOT, environment

Undisturbed = tuple[Path, list[Operation]]
COMMANDS = ("lra.results", "lra.report")


def runs_in(folder: Path) -> Path:
    """A folder with the runs of two attentions, one of them with curves."""
    for attn in ("mra2", "softmax"):
        write_run(folder / "runs" / "mlpen" / "listops" / attn / "seed0", attn=attn)
    lines = [{"step": step, "split": "train", "loss": 2.0 / step, "accuracy": 0.3} for step in (10, 20)]
    metrics = folder / "runs" / "mlpen" / "listops" / "mra2" / "seed0" / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def words(command: str, folder: Path) -> list[str]:
    out = [f"out={folder / 'runs' / 'report' / 'curves.svg'}"] if command == "lra.report" else []
    return ["-m", command, f"runs={folder / 'runs'}", *out]


@pytest.fixture(scope="module", params=COMMANDS)
def undisturbed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Undisturbed]:
    folder = runs_in(tmp_path_factory.mktemp("undisturbed"))
    return request.param, (folder, operations(words(request.param, folder), folder))


def report(folder: Path) -> dict[str, str]:
    """The files of the report, without what differs from one folder and moment to the next."""
    found = {path.name: path.read_text() for path in (folder / "runs" / "report").glob("[!.]*")}
    if "index.html" in found:
        found["index.html"] = found["index.html"][-20:]
    return {name: text.replace(str(folder), "") for name, text in found.items()}


def look_and_give_again(command: str, folder: Path, undisturbed: Path, tally: Counter[str]) -> None:
    whole = report(undisturbed)
    half = [name for name, text in report(folder).items() if whole[name] != text]
    tally[HALF] += len(half)
    assert half == []
    again(words(command, folder), folder)
    differ = report(folder) != whole
    tally[DIFFERENT] += differ
    assert not differ
    remnants = files(folder) ^ files(undisturbed)
    tally[REMNANTS] += len(remnants)
    assert remnants == set()


@pytest.mark.parametrize("part", range(amount(1, 3)))
def test_a_report_killed_at_any_file_operation_is_made_anew(
    tmp_path: Path, undisturbed: tuple[str, Undisturbed], part: int, tally: Counter[str]
) -> None:
    command, (whole, done) = undisturbed
    draw = draws(command, part)
    for k, fault in enumerate(faults(draw, 6) if FULL else [draw.choice(list(SIGNALS))]):
        folder = runs_in(tmp_path / str(k))
        number = draw.randint(1, len(done))
        ended = at_operation(words(command, folder), folder, number, fault)
        assert ended, f"no operation {number}"
        note(tally, fault, f"python -m {command}")
        assert_ended_well(ended, fault)
        look_and_give_again(command, folder, whole, tally)


# What each command imports first of all that takes its time.
SLOW_IMPORTS = {"lra.train": "hydra", "lra.prepare": "numpy", "lra.results": "rich", "lra.report": "lra.cells"}


@pytest.mark.parametrize("command", SLOW_IMPORTS)
def test_a_signal_while_a_command_still_imports_is_one_line(tmp_path: Path, command: str, tally: Counter[str]) -> None:
    fault = draws(command, "imports").choice(("term", "int"))
    hang = (
        "import runpy, sys, time\n"
        "class Hang:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {SLOW_IMPORTS[command]!r}: print('importing', flush=True); time.sleep(60)\n"
        "sys.meta_path.insert(0, Hang())\n"
        f"runpy.run_module({command!r}, run_name='__main__', alter_sys=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", hang], cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "importing\n"
        os.kill(process.pid, SIGNALS[fault])
        complaint = process.communicate()[1]
    note(tally, fault, f"python -m {command}, its imports")
    assert (process.returncode, complaint) == (128 + SIGNALS[fault], f"stopped by {SIGNALS[fault].name}\n")


def test_a_report_killed_at_any_moment_is_made_anew(
    tmp_path: Path, undisturbed: tuple[str, Undisturbed], tally: Counter[str]
) -> None:
    command, (whole, _) = undisturbed
    for moment in range(amount(0, 3)):
        folder = runs_in(tmp_path / str(moment))
        process = subprocess.Popen(
            [sys.executable, *words(command, folder)], env=environment(), stdout=subprocess.DEVNULL
        )
        time.sleep(draws(command, "moment", moment).uniform(0, 3))
        process.send_signal(signal.SIGKILL)
        process.wait()
        note(tally, "kill", f"python -m {command}, at a moment")
        look_and_give_again(command, folder, whole, tally)
