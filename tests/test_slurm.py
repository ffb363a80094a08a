"""A cell's job on a cluster: which signals lead to another start, without the cluster."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from submitit.core.utils import DelayedSubmission

from lra import slurm
from lra.files import write_text
from lra.slurm import Relay, Standing, fate

TERM, USR2 = {signal.SIGTERM}, {signal.SIGUSR2}


@pytest.mark.parametrize(
    ("seen", "standing", "expected"),
    [
        # Preempted: Slurm has queued the job again before it sends the signal.
        (TERM, Standing(3, False, "COMPLETING"), "queued"),
        (USR2 | TERM, Standing(3, False, "COMPLETING"), "queued"),
        # Preempted in a partition with a grace time, or close to the time limit.
        (TERM, Standing(2, True, "RUNNING"), "ours"),
        (USR2, Standing(2, False, "RUNNING"), "ours"),
        (USR2, None, "ours"),
        # Cancelled, or told to stop by somebody.
        (TERM, Standing(2, False, "COMPLETING"), "over"),
        (USR2 | TERM, Standing(2, False, "COMPLETING"), "over"),
        (TERM, Standing(2, True, "COMPLETING"), "over"),
        (TERM, Standing(2, False, "RUNNING"), "over"),
        (TERM, None, "over"),
    ],
)
def test_a_stopped_job_runs_again_unless_it_was_cancelled(
    seen: set[int], standing: Standing | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert fate(seen, standing) == expected


class Queued(SystemExit):
    """What submitit's answer to SIGUSR2 ends in where Slurm takes the job back."""


@pytest.fixture(name="cell")
def cell_maker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts processes that end with a code of their own when they get SIGTERM or SIGUSR2."""
    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGTERM, signal.SIGUSR2)}
    started: list[subprocess.Popen[str]] = []

    def start(code: int) -> subprocess.Popen[str]:
        told = f"lambda *_: sys.exit({code})"
        program = (
            f"import signal, sys; [signal.signal(s, {told}) for s in (signal.SIGTERM, signal.SIGUSR2)]; "
            "print('ready', flush=True); signal.pause()"
        )
        process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for signum, handler in before.items():
        signal.signal(signum, handler)
    for process in started:
        process.kill()
        process.communicate()


def wait(process: subprocess.Popen[str]) -> int:
    """Wait for a cell's process as its job does."""
    relay = Relay(process)
    code = process.wait()
    relay.settle(code)
    return code


def signal_soon(signum: int) -> None:
    """Send this process a signal while it waits."""
    threading.Timer(0.2, os.kill, (os.getpid(), signum)).start()


def test_a_job_that_slurm_has_queued_again_leaves_no_result(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "ask", lambda: Standing(1, False, "COMPLETING"))
    process = cell(143)
    signal_soon(signal.SIGTERM)
    with pytest.raises(SystemExit) as left:
        wait(process)
    assert left.value.code == 143


def test_a_job_that_was_cancelled_ends_with_the_code_of_its_run(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "ask", lambda: Standing(0, False, "COMPLETING"))
    process = cell(143)
    signal_soon(signal.SIGTERM)
    assert wait(process) == 143


@pytest.mark.parametrize("code", [0, 1])
def test_a_run_that_came_to_its_end_is_not_run_again(cell: Any, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    monkeypatch.setattr(slurm, "ask", lambda: pytest.fail("Slurm was asked"))
    process = cell(code)
    signal_soon(signal.SIGUSR2)
    assert wait(process) == code


def test_a_job_is_queued_again_only_when_its_run_has_ended(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "ask", lambda: Standing(0, False, "RUNNING"))
    process = cell(140)

    def answer_of_submitit(signum: int, frame: object) -> None:
        assert process.returncode == 140
        raise Queued(255)

    signal.signal(signal.SIGUSR2, answer_of_submitit)
    signal_soon(signal.SIGUSR2)
    with pytest.raises(Queued):
        wait(process)


def test_a_job_that_slurm_does_not_take_back_ends_with_the_code_of_its_run(
    cell: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def too_often(signum: int, frame: object) -> None:
        raise RuntimeError("timed-out too many times")

    monkeypatch.setattr(slurm, "ask", lambda: Standing(0, False, "RUNNING"))
    process = cell(140)
    signal.signal(signal.SIGUSR2, too_often)
    signal_soon(signal.SIGUSR2)
    assert wait(process) == 140
    assert "timed-out too many times" in capfd.readouterr().err


def fake_squeue(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """A program of that name, first on the PATH."""
    program = folder / "squeue"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_slurm_is_asked_for_this_job_of_an_array_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    fake_squeue(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/words; echo "2     N/A      COMPLETING  "')
    assert slurm.ask() == Standing(2, False, "COMPLETING")
    assert "--jobs=7_3" in (tmp_path / "words").read_text().split()


def test_slurm_is_asked_again_where_the_question_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr(slurm, "PAUSE", 0.0)
    seen = tmp_path / "seen"
    fake_squeue(
        tmp_path, monkeypatch, f'[ -e {seen} ] || {{ touch {seen}; kill $$; }}; echo "0 2026-11-22T10:00:00 RUNNING"'
    )
    assert slurm.ask() == Standing(0, True, "RUNNING")
    fake_squeue(tmp_path, monkeypatch, "echo slurm_load_jobs error >&2; exit 1")
    assert slurm.ask() is None


def test_the_cells_in_the_queue_are_those_of_the_jobs_that_were_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cell waits, one has left the queue; a job of another program and one of a removed sweep are in it too."""
    sheet = {"cwd": str(tmp_path), "cells": [{"path": "runs/a"}, {"path": "runs/b"}]}
    write_text(tmp_path / "sweep" / "cells.json", json.dumps(sheet))
    for job, folder, cell in (("5_0", "sweep", 0), ("5_1", "sweep", 1), ("4_0", "removed", 0)):
        words = [f"folder={tmp_path / folder}", f"cell={cell}"]
        file = tmp_path / ".submitit" / job / f"{job}_submitted.pkl"
        write_text(file, "")
        DelayedSubmission(print, words, "hydra.sweep.dir", cell).dump(file)
    fake_squeue(tmp_path, monkeypatch, f'echo "$@" > {tmp_path}/words; printf "5_1\n4_0\n6\n"')
    assert slurm.under_way(tmp_path) == {tmp_path / "runs" / "b": "5_1"}
    assert "--me" in (tmp_path / "words").read_text().split()


def test_without_slurm_or_without_jobs_nothing_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_squeue(tmp_path, monkeypatch, "echo no controller >&2; exit 1")
    assert slurm.under_way(tmp_path) == {}
    (tmp_path / ".submitit").mkdir()
    with pytest.raises(OSError, match="squeue does not say which cells are queued: no controller"):
        slurm.under_way(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert slurm.under_way(tmp_path) == {}
