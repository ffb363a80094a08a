"""`python -m lra.sweep`: many runs by one command, each a process of its own; what is done is not done again."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from rich.console import Console

from lra.command import Parser
from lra.compose import WRONG_WORDS, composer, tell
from lra.cost import cheapest_first
from lra.data import folder as data_folder
from lra.files import write_text
from lra.grid import SWEEPS, cells, key_of, merged, preset
from lra.job import demand
from lra.launch import LOCAL, Untold, launch, settings
from lra.outcome import Reporter, conclude, outcomes
from lra.plan import BUSY, DIVERGED, FAILED, OUT_OF_MEMORY, Planned, Sizes, ask, beside, many, plan, show
from lra.run import Busy, Run
from lra.slurm import under_way
from lra.table import say
from lra.tasks import task
from lra.words import LONG, WordError, choose, one_line

ROOT = Path(__file__).resolve().parent.parent
# Where each sweep has a folder of its own.
SWEPT = Path("runs/.sweep")
PRESETS = ", ".join(sorted(file.stem for file in SWEEPS.glob("*.yaml")))
USAGE = f"""\
words: every word of lra.train; one with several values makes a cell of each combination with the others
  task=listops,text   attn=glob(mra*)   seed=range(0,4)   train.lr=choice(1e-4,3e-4)

keys:
  sweep=    words of conf/sweep/<name>.yaml, which the others override: {PRESETS}
  order=    seeds: the first seed of every cell before the second of any (default); cheapest: the cheapest cells first
  plan=     true: show what would be done and stop, as --plan does (default: false)
  retry=    which ends in failure are tried again: diverged, out_of_memory, none (default: out_of_memory). A run that
            diverged does the same again, but for other words: retry=diverged starts it over and keeps the old one aside
  threads=  threads of each cell (default: the cores shared among the cells at once; all of them without a launcher)
  hydra/launcher=  basic: one after the other (default); joblib: side by side on this machine; submitit_slurm: a cluster
  hydra.launcher.<key>=  a setting of the launcher, such as hydra.launcher.n_jobs=2 of joblib

The same command again runs what is missing, was interrupted or was killed; interrupted cells go on where they were.
exit codes: 0 all cells are finished; 1 some are not; 2 the words are wrong; 130 and 143 interrupted or terminated
with everything saved"""


@dataclass(frozen=True)
class Order:
    """The words of the command, sorted by whom they are for."""

    words: list[str]
    hydra: list[str]
    retry: tuple[str, ...]
    plan: bool
    threads: int | None
    cheapest: bool = False


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = Parser(
        "python -m lra.sweep", description="Many runs by one command.", epilog=USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("words", nargs="*", metavar="key=value", help="see below")
    parser.add_argument("--plan", action="store_true", help="show what would be done, and stop")
    given = parser.parse_intermixed_args(argv)
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, stop_before_anything)
    os.environ["HYDRA_FULL_ERROR"] = "1"
    console = Console(highlight=False)
    try:
        return sweep(ordered([*given.words, *(["plan=true"] if given.plan else [])]), console)
    except (ValueError, OSError, *WRONG_WORDS) as error:
        return tell(error)


def stop_before_anything(signum: int, frame: FrameType | None) -> NoReturn:
    print(f"stopped by {signal.Signals(signum).name} before any cell began", file=sys.stderr)
    raise SystemExit(128 + signum)


def ordered(given: Sequence[str]) -> Order:
    """The words of the command by whom they are for; a WordError where one of the sweep's own is wrong."""
    own = {"sweep": "", "order": "seeds", "plan": "false", "retry": OUT_OF_MEMORY, "threads": ""}
    words, hydra = [], []
    named = [word.removeprefix("sweep=") for word in given if word.startswith("sweep=")]
    below = preset(named[-1]) if named and named[-1] else []
    for word in (*below, *given):
        key, equals, value = word.partition("=")
        if key in own and equals:
            own[key] = value
        elif key == "hydra/launcher" or key_of(word).startswith("hydra.launcher."):
            hydra.append(word)
        elif key_of(word).startswith("hydra"):
            raise WordError(f"{word!r} is not for a sweep: it takes hydra/launcher= and hydra.launcher.<key>=")
        else:
            words.append(word)
    choose("plan", own["plan"], ("true", "false"))
    choose("order", own["order"], ("seeds", "cheapest"))
    retry = tuple(own["retry"].split(","))
    for name in retry:
        choose("retry", name, (*FAILED, "none"))
    if "none" in retry and len(retry) > 1:
        raise WordError(f"retry={own['retry']}: none stands alone")
    threads = own["threads"]
    if threads and not (threads.isascii() and threads.isdigit() and int(threads)):
        raise WordError(f"threads={threads} must be a whole number of at least 1")
    count = int(threads) if threads else None
    return Order(merged(words, ()), hydra, retry, own["plan"] == "true", count, own["order"] == "cheapest")


def sweep(order: Order, console: Console) -> int:
    """Plan, run and conclude; returns the exit code."""
    launcher, options = settings(order.hydra)
    with beside() as process:
        sizes = Sizes(process)
        with composer() as composing:
            grid, twice = cells(composing, order.words, sizes.want)
        plans = plan(grid, order.retry, process, sizes, under_way(SWEPT))
        if order.cheapest:
            plans = cheapest_first(plans)
        side = shares(launcher, options, order, sum(one.again for one in plans))
        say(console, f"{many(len(grid), 'cell')}{f', {twice} named again' if twice else ''}; {side.line}")
        show(console, plans, side.jobs)
        if order.plan:
            return 0
        console.print()
        failed = prepare([one for one in plans if one.again], process if launcher in LOCAL else None)
    again = [one for one in plans if one.again and one.cell.path not in failed]
    stopped, codes = 0, dict[Path, Any]()
    if again:
        put_aside(again)
        stopped, codes = run(again, launcher, [*order.hydra, *side.words], side, console)
    if stopped and launcher not in LOCAL:
        say(console, "the waiting is over, the jobs go on: squeue --me shows them, scancel ends them, saved")
        return 128 + stopped
    return conclude(console, plans, failed, codes, stopped)


@dataclass(frozen=True)
class Share:
    """How the cells share the machine: so many at once, with so many threads each (None: as torch likes).

    words: what the launcher is told of it. line: what the user is.
    """

    jobs: int
    threads: int | None
    pin: bool
    words: tuple[str, ...]
    line: str


def shares(launcher: str, options: Mapping[str, Any], order: Order, count: int) -> Share:
    """How `count` cells share the machine, or the cluster."""
    threads = order.threads
    given = f", {threads} {'thread' if threads == 1 else 'threads'} each" if threads else ""
    if launcher == "basic":
        return Share(1, threads, False, (), f"one after the other{given}")
    if launcher != "joblib":
        jobs = int(options.get("array_parallelism") or count or 1)
        return Share(jobs, threads, False, (), f"{launcher}, at most {jobs} at once{given}")
    cores = machine_cores()
    jobs = int(options["n_jobs"])
    if jobs == 0:
        raise WordError("hydra.launcher.n_jobs=0 must be at least 1, or -1 for as many as there are cores")
    jobs = jobs if jobs > 0 else max(cores + 1 + jobs, 1)
    if not any(key_of(word) == "hydra.launcher.n_jobs" for word in order.hydra):
        jobs = min(jobs, cores)
    jobs = max(min(jobs, count), 1)
    threads = threads or max(cores // jobs, 1)
    pin = jobs * threads <= cores and hasattr(os, "sched_setaffinity")
    line = f"{jobs} at once, {threads} of {cores} cores each"
    if not pin:
        line = f"{jobs} at once, {threads} {'thread' if threads == 1 else 'threads'} each on {cores} cores"
    return Share(jobs, threads, pin, (f"hydra.launcher.n_jobs={jobs}",), line)


def machine_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare(plans: Sequence[Planned], process: Executor | None) -> dict[Path, str]:
    """Make every data set that is missing and compile what is not compiled, each once.

    Returns the cells that cannot run for want of data, by path, with the line that says why. process: where kernels
    are compiled, None: not on this machine.
    """
    failed: dict[Path, str] = {}
    made: dict[tuple[str, ...], str] = {}
    kernels: set[str] = set()
    for one in plans:
        config = one.cell.run.config
        facts = task(config.task)
        if not (data_folder(config.data_dir, facts, one.cell.source) / "manifest.json").exists():
            words = (*facts.words(one.cell.source).split(), f"data_dir={config.data_dir}")
            if words not in made:
                made[words] = prepare_data(words)
            if made[words]:
                failed[one.cell.path] = made[words]
        if process and str((config.attn["name"], config.kernel)) not in kernels:
            kernels.add(str((config.attn["name"], config.kernel)))
            # What it says is for the cell to say again: it ends by it, or does without.
            process.submit(ask, "kernel", config).result()
    return failed


def prepare_data(words: Sequence[str]) -> str:
    """Run `python -m lra.prepare`; returns the line that it failed by, or nothing."""
    command = [sys.executable, "-m", "lra.prepare", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as preparing:
        try:
            _, said = preparing.communicate()
        except SystemExit:
            preparing.terminate()
            raise
    if preparing.returncode in (0, 130, 143):
        if preparing.returncode:
            raise SystemExit(preparing.returncode)
        print(said, end="", file=sys.stderr)
        return ""
    last = [line for line in said.splitlines() if line.strip()][-1:] or [f"exit code {preparing.returncode}"]
    return f"no data: {last[0].removeprefix('error: ')}"


def environment() -> dict[str, str]:
    """The environment of a process that imports these packages from where they are."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def put_aside(plans: Sequence[Planned]) -> None:
    """Start over where that is meant, once: a cell that is interrupted later goes on."""
    for one in plans:
        if one.cell.run.config.fresh or one.standing.status == DIVERGED:
            # Where another process has it, the cell will find out.
            with contextlib.suppress(Busy):
                Run(one.cell.path, {**one.cell.run.plain, "fresh": True}).close()


def run(
    plans: Sequence[Planned], launcher: str, words: Sequence[str], side: Share, console: Console
) -> tuple[int, dict[Path, Any]]:
    """Run the cells; returns the signal that stopped the sweep, or 0, and the exit codes of cells by path."""
    # What another process trains now may be free, or done, by then.
    queue = sorted(plans, key=lambda one: one.standing.status == BUSY)
    folder = SWEPT / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    sheet = {
        "pid": os.getpid(),
        "local": launcher in LOCAL,
        "cwd": os.getcwd(),
        "threads": side.threads,
        "pin": side.pin,
        "cells": [{"words": without_fresh(one.cell.words), "path": str(one.cell.path)} for one in queue],
    }
    write_text(folder / "cells.json", json.dumps(sheet, indent=1))
    os.environ["PYTHONPATH"] = environment()["PYTHONPATH"]
    stop = Stop(folder, launcher in LOCAL)
    with Reporter(console, folder, queue, side.jobs):
        try:
            launch(folder, range(len(queue)), words)
        except KeyboardInterrupt:
            print("ended at once: cells that still save do so by themselves", file=sys.stderr)
        except Untold as error:
            if not stop.signum:
                print(f"error: {one_line(str(error), LONG)}; the same command goes on", file=sys.stderr)
        except Exception as error:
            # A worker that is killed takes the launcher with it; what became of the cells is on disk.
            if not stop.signum:
                reason = (str(error) or type(error).__name__).strip().splitlines()[0]
                print(f"the launcher {launcher} ended early: {reason}", file=sys.stderr)
    return stop.signum, outcomes(folder, queue)


def without_fresh(words: Sequence[str]) -> list[str]:
    """The words of a cell whose old run has been put aside."""
    return [word for word in words if key_of(word) != "fresh"]


class Stop:
    """Answers SIGINT and SIGTERM: the cells under way save and end, no other begins. A second Ctrl-C ends at once.

    Jobs on a cluster go on: only the waiting for them ends.
    """

    def __init__(self, folder: Path, local: bool) -> None:
        self.folder, self.local, self.signum = folder, local, 0
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self.ask)

    def ask(self, signum: int, frame: FrameType | None) -> None:
        if self.signum:
            # SIGTERM may come twice for one stop, from make and from what started make.
            if signum == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self.signum = signum
        if not self.local:
            raise KeyboardInterrupt
        try:
            write_text(self.folder / "stop", str(signum), lambda: demand(self.folder))
        except OSError as error:
            # The cells save and end where the sweep is no more, too.
            print(f"stopping at once: the cells cannot be told ({error})", file=sys.stderr)
            raise KeyboardInterrupt from None
        print("stopping: the cells under way save and end; Ctrl-C now ends at once", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
