"""What becomes of the cells of a sweep: a line as each begins and ends, and a table of all at the end."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lra.job import BUSY, LOOK, STOPPED
from lra.plan import (
    DIVERGED,
    FINISHED,
    INTERRUPTED,
    MISSING,
    OUT_OF_MEMORY,
    QUEUED,
    Planned,
    Standing,
    clock,
    many,
    print_whole,
    standing,
)
from lra.table import say

INTERRUPTS = tuple(128 + signum for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2))


class Reporter:
    """Prints a line as each cell begins and ends, from what the cells write into the sweep's folder."""

    def __init__(self, console: Console, folder: Path, queue: Sequence[Planned], jobs: int) -> None:
        self.console, self.folder, self.queue, self.jobs = console, folder, queue, jobs
        self.begun: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.follow, daemon=True)

    def __enter__(self) -> Reporter:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.thread.join()

    def follow(self) -> None:
        """Look until the sweep is over, and once more then."""
        while not self.over.wait(LOOK):
            self.look()
        self.look()

    def look(self) -> None:
        """Tell what is new."""
        try:
            names = {file.name for file in self.folder.iterdir()}
        except FileNotFoundError:
            # Taken away: the next cell that begins or ends says so.
            return
        for index in range(len(self.queue)):
            if f"{index}.begun" in names and index not in self.begun:
                self.begun[index] = read(self.folder / f"{index}.begun").get("began", time.time())
                ended = read(self.folder / f"{index}.ended") if f"{index}.ended" in names else {}
                if ended.get("outcome") not in (BUSY, STOPPED):
                    self.tell(f"begun  {self.queue[index].cell.name}{self.where(index)}")
            if f"{index}.ended" in names and index not in self.ended:
                ended = read(self.folder / f"{index}.ended")
                self.ended[index] = float(ended.get("seconds", 0.0))
                if ended.get("outcome") != STOPPED:
                    self.tell(f"{self.ending(index, ended.get('outcome'))}; {self.progress()}")

    def tell(self, line: str) -> None:
        say(self.console, f"{time.strftime('%H:%M:%S')}  {line}")

    def where(self, index: int) -> str:
        now = self.queue[index].standing
        return f", from step {now.step:,}" if now.step and now.status in (INTERRUPTED, OUT_OF_MEMORY) else ""

    def ending(self, index: int, outcome: Any) -> str:
        """What became of a cell."""
        cell = self.queue[index].cell
        now = standing(cell.path)
        status, reason = verdict(now, cell.path, outcome)
        took = clock(self.ended[index])
        if status == FINISHED:
            return f"done   {cell.name}, test {100 * now.result['test']['accuracy']:.1f}%, {took}"
        return f"{WORDS[status]:6} {cell.name}{f': {reason}' if reason else ''}"

    def progress(self) -> str:
        """How many cells have ended, and how long the others will take at the pace of those and of earlier runs."""
        took = [self.ended[i] for i in self.ended]
        mean = sum(took) / len(took)
        now, left = time.time(), []
        for index, one in enumerate(self.queue):
            if index not in self.ended:
                gone = now - self.begun[index] if index in self.begun else 0.0
                left.append(max((one.seconds or mean) - gone, 0.0))
        rest = f", about {clock(max(sum(left) / self.jobs, max(left)))} left" if left else ""
        return f"{len(self.ended)} of {len(self.queue)}{rest}"


# What a line says that a cell is.
WORDS = {
    FINISHED: "done",
    DIVERGED: "failed",
    OUT_OF_MEMORY: "failed",
    "failed": "failed",
    INTERRUPTED: "saved",
    BUSY: "busy",
    MISSING: "not run",
    QUEUED: "queued",
}


def read(file: Path) -> dict[str, Any]:
    """A file that a cell wrote, {} where it is not whole."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def verdict(now: Standing, path: Path, outcome: Any = None) -> tuple[str, str]:
    """The status of a cell, and the reason where it is not finished. outcome: what its `.ended` says, if it ran."""
    log = path / "log.txt"
    if now.status == FINISHED:
        return FINISHED, ""
    if now.status == BUSY or outcome == BUSY:
        return BUSY, f"process {now.pid or 'unknown'} trains it"
    if now.status == DIVERGED:
        return DIVERGED, f"diverged at step {now.step:,}, {log}"
    if now.status == OUT_OF_MEMORY:
        return OUT_OF_MEMORY, f"out of memory at step {now.step:,}, {log}"
    if isinstance(outcome, str) and outcome != STOPPED:
        return "failed", outcome
    if isinstance(outcome, int) and outcome not in INTERRUPTS:
        return "failed", f"{last_line(log, outcome)}, {log}"
    if now.status == INTERRUPTED:
        return INTERRUPTED, f"saved at step {now.step:,}" if now.step else "saved"
    return MISSING, ""


def last_line(log: Path, code: int) -> str:
    """What a process said before it ended."""
    if code > 128:
        return f"ended by {signal.Signals(code - 128).name}" + (
            ", as a system without memory does" if code - 128 == signal.SIGKILL else ""
        )
    try:
        lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    except OSError:
        lines = []
    errors = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line]
    return errors[-1].removeprefix("error: ") if errors else f"exit code {code}"


def outcomes(folder: Path, queue: Sequence[Planned]) -> dict[Path, Any]:
    """The exit codes of the cells that ran, by path."""
    return {one.cell.path: read(folder / f"{index}.ended").get("outcome") for index, one in enumerate(queue)}


def conclude(
    console: Console, plans: Sequence[Planned], failed: Mapping[Path, str], codes: Mapping[Path, Any], stopped: int
) -> int:
    """Print the table of all cells and what to do next; returns the exit code."""
    grid = Table(box=None, padding=(0, 1), pad_edge=False, header_style="underline")
    for name in ("cell", "status"):
        grid.add_column(name, no_wrap=True)
    for name in ("test %", "95% interval", "steps", "time"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("reason")
    tally: dict[str, int] = {}
    for one in plans:
        now = standing(one.cell.path)
        status, reason = verdict(now, one.cell.path, codes.get(one.cell.path))
        if one.standing.status == QUEUED and status != FINISHED:
            status, reason = QUEUED, f"job {one.standing.pid}"
        if one.cell.path in failed:
            status, reason = "failed", failed[one.cell.path]
        said = "failed" if WORDS[status] == "failed" else status
        tally[said] = tally.get(said, 0) + 1
        grid.add_row(*map(Text, (one.cell.name, said if said != MISSING else "not run", *figures(now), reason)))
    console.print()
    print_whole(console, grid)
    count = ", ".join(f"{number} {name if name != MISSING else 'not run'}" for name, number in tally.items())
    say(console, f"{many(len(plans), 'cell')}: {count}")
    if any(one.standing.status == QUEUED for one in plans):
        say(console, "queued: squeue --me shows them, the same command again their results")
    if stopped:
        say(console, f"stopped by {signal.Signals(stopped).name}; the same command goes on from what is saved")
        return 128 + stopped
    return 0 if tally.keys() <= {FINISHED} else 1


def figures(now: Standing) -> tuple[str, str, str, str]:
    """Test accuracy and interval in percent, steps and time of a run, as far as it has them."""
    steps = f"{now.step:,}" if now.step else "-"
    seconds = now.result.get("seconds", now.result.get("train_seconds"))
    took = clock(seconds) if isinstance(seconds, (int, float)) else "-"
    try:
        test = now.result["test"]
        low, high = test["ci95"]
        return f"{100 * test['accuracy']:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", steps, took
    except (KeyError, TypeError, ValueError):
        return "-", "-", steps, took
