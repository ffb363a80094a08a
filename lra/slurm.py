"""Cells of a sweep as jobs of Slurm: what a job does when it is told to end, and which jobs are still to come.

SIGUSR2 comes some time before the time limit. SIGTERM comes where the job is preempted (Slurm has queued it again by
then, or in a partition with a grace time leaves that to the job) and where scancel ends it. Each goes to every process
of the job, some twice, and SIGKILL follows after the cluster's KillWait.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Set
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

# The exit codes of a run that came to its own end, whatever signal came meanwhile.
ENDED = (0, 1, 2)
# Seconds before Slurm is asked again, and how often it is asked.
PAUSE, TRIES = 1.0, 3


class Standing(NamedTuple):
    """What Slurm says of a job: how often it was started again, whether it is being preempted, its state."""

    restarts: int
    preempted: bool
    state: str


def in_slurm() -> bool:
    """Whether this process is a job that submitit started on Slurm."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


class Relay:
    """Hands SIGTERM and SIGUSR2 on to the process of a cell, and answers them once that has ended."""

    def __init__(self, process: subprocess.Popen[Any]) -> None:
        self.process = process
        self.seen: set[int] = set()
        # Submitit's answer to SIGUSR2: it asks Slurm to queue the job again, and leaves by SystemExit.
        self.queue_again = signal.getsignal(signal.SIGUSR2)
        for signum in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(signum, self.hand_on)

    def hand_on(self, signum: int, frame: FrameType | None) -> None:
        self.seen.add(signum)
        self.process.send_signal(signum)

    def settle(self, code: int) -> None:
        """Decide what becomes of the job of a process that ended with this code.

        Leaves by SystemExit where the job is to run again: submitit then writes no result, and whoever waits for the
        job goes on waiting.
        """
        if code in ENDED:
            return
        names = " and ".join(signal.Signals(signum).name for signum in sorted(self.seen))
        said = f"stopped by {names or 'no signal'}, exit code {code}"
        what = fate(self.seen, ask())
        if what == "ours" and callable(self.queue_again):
            try:
                self.queue_again(signal.SIGUSR2, None)
            except Exception as error:
                # Too many time limits, or the request was itself ended by the signal that it caused.
                print(f"{said}; Slurm was asked to run it again: {error}", file=sys.stderr, flush=True)
            what = fate(self.seen, ask())
        print(f"{said}: {'Slurm runs it again' if what == 'queued' else 'over'}", flush=True)
        if what == "queued":
            raise SystemExit(code)


def fate(seen: Set[int], now: Standing | None) -> str:
    """What becomes of a job that the signals of `seen` have stopped; None: Slurm does not answer.

    `queued`: it is queued again already. `ours`: it is for us to queue it again. `over`: it was cancelled.
    """
    if now is None:
        return "ours" if signal.SIGUSR2 in seen else "over"
    if now.restarts > int(os.environ.get("SLURM_RESTART_COUNT", 0)):
        return "queued"
    if now.state == "RUNNING" and (now.preempted or signal.SIGUSR2 in seen):
        return "ours"
    return "over"


def ask() -> Standing | None:
    """What Slurm says of this job, None where it does not answer."""
    # Not SLURM_JOB_ID: the last job of an array has the number of the whole.
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{index}" if array else os.environ["SLURM_JOB_ID"]
    columns = "RestartCnt:12,PreemptTime:24,State:24"
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job}", f"--Format={columns}"]
    for left in reversed(range(TRIES)):
        # squeue is a process of the job too, and a second SIGTERM may have ended it.
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
        if answer.returncode == 0:
            restarts, preempted, state = answer.stdout.split()
            return Standing(int(restarts), preempted != "N/A", state)
        if left:
            time.sleep(PAUSE)
    print(f"squeue does not answer: {answer.stderr.strip()}", file=sys.stderr, flush=True)
    return None


def under_way(sweeps: Path) -> dict[Path, str]:
    """The runs whose jobs are in Slurm's queue, waiting or running, with the number of the job.

    sweeps: the folder of the sweeps, which the submitted jobs are in too. Empty where there is no Slurm.
    """
    submitted = sweeps / ".submitit"
    if not submitted.is_dir() or not shutil.which("squeue"):
        return {}
    ask = ["squeue", "--noheader", "--array", "--me", "--format=%i"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise OSError(f"squeue does not say which cells are queued: {answer.stderr.strip()}")
    runs: dict[Path, str] = {}
    for job in answer.stdout.split():
        # Jobs of others, and of sweeps that were removed meanwhile.
        with contextlib.suppress(FileNotFoundError):
            runs[run_of(submitted / job / f"{job}_submitted.pkl")] = job
    return runs


def run_of(submitted: Path) -> Path:
    """The directory of the run that a submitted job of a sweep is for."""
    from submitit.core.utils import DelayedSubmission

    words = dict(word.split("=", 1) for word in DelayedSubmission.load(submitted).args[0])
    sheet = json.loads(Path(words["folder"], "cells.json").read_text(encoding="utf-8"))
    return Path(sheet["cwd"], sheet["cells"][int(words["cell"])]["path"])
