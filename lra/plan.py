"""What a sweep will do, before it does anything: what is there, what is missing, how large and how long."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from lra.budget import excess
from lra.cells import OVER_BUDGET
from lra.config import Config, identity
from lra.files import spare
from lra.folders import read_config, visible
from lra.grid import Cell
from lra.lock import holder
from lra.pace import Pace
from lra.run import some
from lra.seal import demand_result
from lra.table import say
from lra.words import WordError

FINISHED, DIVERGED, OUT_OF_MEMORY, INTERRUPTED = "finished", "diverged", "out_of_memory", "interrupted"
BUSY, MISSING = "busy", "missing"
# A job of an earlier sweep is to run it, or runs it.
QUEUED = "queued"
# What retry= may name: these ends are of the run itself, and would come again unless something is changed.
FAILED = (DIVERGED, OUT_OF_MEMORY)


class Standing(NamedTuple):
    """What became of a cell so far: one of the statuses above, at which step, and its result.json."""

    status: str
    step: int = 0
    result: Mapping[str, Any] = {}
    pid: str = ""


@dataclass(frozen=True)
class Planned:
    """A cell and what is known of it. `over` is `+502%` where it breaks the 10% rule, `seconds` what is left to do.

    cost: what is left beside the cheapest cell, where the cells are ordered by it.
    """

    cell: Cell
    standing: Standing
    again: bool
    over: str = ""
    seconds: float | None = None
    cost: float | None = None


def standing(path: Path) -> Standing:
    """What a run's directory says of the run."""
    result: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        told = json.loads((path / "result.json").read_text(encoding="utf-8"))
        if isinstance(told, dict):
            demand_result(told)
            result = told
    status = result.get("status") if isinstance(result, dict) else None
    if status not in (FINISHED, DIVERGED) and (pid := holder(path)):
        return Standing(BUSY, pid=pid)
    if status in (FINISHED, *FAILED, INTERRUPTED):
        steps = result.get("steps")
        return Standing(status, steps if isinstance(steps, int) else 0, result)
    last = path / "checkpoint" / "last.pt"
    return Standing(INTERRUPTED if last.exists() or spare(last).exists() else MISSING)


def refuse_strangers(cell: Cell) -> None:
    """WordError where the directory of a cell holds a run of another configuration, or one that cannot be read."""
    file = cell.path / "config.yaml"
    with contextlib.suppress(FileNotFoundError):
        try:
            theirs = identity(read_config(file))
        except ValueError:
            raise WordError(f"{cell.name}: {file} is not readable; fresh=true puts it aside") from None
        mine = identity(cell.run.plain)
        differ = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
        if differ:
            there = some([f"{visible(key)[:60]}={reprlib.repr(theirs.get(key)).strip(chr(39))}" for key in differ])
            raise WordError(f"{cell.name}: {cell.path} holds a run with {there}; fresh=true puts it aside")


@contextlib.contextmanager
def beside() -> Iterator[Executor]:
    """A process beside this one that has torch, for `ask`: this one stays small, and composes meanwhile."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=ask, initargs=("ready",)) as process:
        try:
            yield process
        except BaseException:
            process.shutdown(wait=False, cancel_futures=True)
            raise


def ask(question: str, *about: Any) -> Any:
    """Answer with a function of lra.forecast."""
    from lra import forecast

    return getattr(forecast, question)(*about)


class Sizes:
    """The parameters of the cells' models, counted in the process beside this one."""

    def __init__(self, process: Executor) -> None:
        self.process = process
        self.counts: dict[str, Future[int]] = {}

    def want(self, cell: Cell) -> None:
        """Have the models of a cell and of its rival counted."""
        for config in (cell.run.config, cell.rival):
            if (key := kind(config)) not in self.counts:
                self.counts[key] = self.process.submit(ask, "size", config)

    def over(self, cell: Cell) -> str:
        """By how much a cell breaks the benchmark's rule of parameters, empty where it does not.

        WordError naming the cell where its words cannot be a model.
        """
        try:
            return excess(*(self.counts[kind(config)].result() for config in (cell.run.config, cell.rival)))
        except ValueError as error:
            raise WordError(f"{cell.name}: {error}") from None


def plan(
    cells: Sequence[Cell], retry: Sequence[str], process: Executor, sizes: Sizes, jobs: Mapping[Path, str]
) -> list[Planned]:
    """What is known of every cell, in their order. WordError naming the cell where its words cannot be a model.

    sizes: wants them all. jobs: the runs that have a job on a cluster, with its number.
    """
    pace = Pace.read(Path("runs"))
    known = []
    for cell in cells:
        fresh = cell.run.config.fresh
        if not fresh:
            refuse_strangers(cell)
        now = Standing(MISSING) if fresh and not holder(cell.path) else standing(cell.path)
        if now.status != FINISHED and (job := jobs.get(cell.path.resolve())):
            now = Standing(QUEUED, pid=job)
        if now.status == INTERRUPTED and not now.step:
            now = now._replace(step=process.submit(ask, "step", cell.path / "checkpoint" / "last.pt").result())
        again = now.status in (MISSING, INTERRUPTED, BUSY) or (now.status in FAILED and now.status in retry)
        seconds = None
        if again:
            config, steps = cell.run.config, cell.run.config.train.steps
            choices, changed = cell.run.choices, cell.run.changed
            whole = pace.seconds(
                choices["protocol"], choices["task"], cell.source, choices["attn"], steps, config.device, changed
            )
            done = 0 if now.status == DIVERGED else min(now.step, steps)
            seconds = None if whole is None else whole * (1 - done / steps)
        known.append(Planned(cell, now, again, seconds=seconds))
    return [replace(one, over=sizes.over(one.cell)) for one in known]


def kind(config: Config) -> str:
    """What the size of a model depends on."""
    return json.dumps([asdict(config.model), config.attn, config.task], sort_keys=True, default=str)


def show(console: Console, plans: Sequence[Planned], jobs: int) -> None:
    """Print the plan: a row for each task and attention, and what it comes to."""
    grid = Table(box=None, padding=(0, 1), pad_edge=False, header_style="underline")
    priced = any(one.cost is not None for one in plans)
    for name, justify in COLUMNS.items():
        if name == "cost" and not priced:
            continue
        grid.add_column(name, justify=justify, no_wrap=name != "notes")
    rows: dict[tuple[str, str, str], list[Planned]] = {}
    for one in plans:
        choices = one.cell.run.choices
        rows.setdefault((choices["protocol"], one.cell.task_name, choices["attn"]), []).append(one)
    several = len({protocol for protocol, _, _ in rows}) > 1
    for (protocol, task, attn), members in rows.items():
        here = counts(members)
        more = next((one.over for one in members if one.over), "")
        grid.add_row(*map(Text, (
            f"{protocol} {task}" if several else task, attn + (OVER_BUDGET if more else ""), str(len(members)),
            *(str(here[name] or "-") for name in ("done", "failed", "to run")),
            *([cheapest(members)] if priced else []), spent(members), notes(members, more),
        )))  # fmt: skip
    print_whole(console, grid)
    total = counts(plans)
    rest = [one for one in plans if one.again]
    queued = f", {total['queued']} queued or running on the cluster" if total["queued"] else ""
    say(
        console,
        f"{many(len(plans), 'cell')}: {total['done']} done, {total['failed']} failed, {total['to run']} to run{queued}",
    )
    if rest:
        say(console, time_of(rest, jobs))
    if priced:
        say(console, COST)
    if any(one.over for one in plans):
        say(console, f"{OVER_BUDGET} over 10% more parameters than softmax, against the benchmark's own rule")


def print_whole(console: Console, grid: Table) -> None:
    """Print a table; without a terminal nothing is wrapped or cut, whatever its width."""
    if not console.is_terminal:
        needed = console.measure(grid, options=console.options.update(width=10_000)).maximum
        console.width = max(console.width, needed)
    console.print(grid)


COLUMNS: dict[str, JustifyMethod] = {
    "task": "left", "attention": "left", "cells": "right", "done": "right", "failed": "right", "to run": "right",
    "cost": "right", "time": "right", "notes": "left",
}  # fmt: skip
COST = (
    "cheapest cells first; cost: of a cell beside the cheapest, by earlier runs where there are any, otherwise by"
    " steps x documents x positions^2 x the attention's time beside softmax's (benchmarks/results/speed.csv)"
)


def cheapest(members: Sequence[Planned]) -> str:
    """The cost of the cheapest cell of a row."""
    return f"{min(one.cost or 0.0 for one in members):,.1f}"


def counts(plans: Sequence[Planned]) -> dict[str, int]:
    """How many cells are done, have failed and stay so, and are to be run, or are queued."""
    again = sum(one.again for one in plans)
    done = sum(one.standing.status == FINISHED for one in plans)
    queued = sum(one.standing.status == QUEUED for one in plans)
    return {"done": done, "failed": len(plans) - again - done - queued, "to run": again, "queued": queued}


def notes(members: Sequence[Planned], more: str) -> str:
    """What is to be known of the cells of a row that are not simply done or missing."""
    said = []
    for status, words in ((DIVERGED, "diverged"), (OUT_OF_MEMORY, "out of memory")):
        for again in (True, False):
            if count := sum(one.standing.status == status and one.again == again for one in members):
                said.append(f"{count} {words}{', again' if again else f' (retry={status} runs it again)'}")
    for one in members:
        if one.standing.status == INTERRUPTED:
            where = f"goes on from step {one.standing.step:,}" if one.standing.step else "begins again"
            said.append(f"seed {one.cell.run.config.seed} {where}")
        if one.standing.status == QUEUED:
            said.append(f"seed {one.cell.run.config.seed} is job {one.standing.pid}")
        if one.standing.status == BUSY:
            said.append(f"seed {one.cell.run.config.seed} is run by process {one.standing.pid}")
    shown = said[:4] + ([f"{len(said) - 4} more"] if len(said) > 4 else [])
    return "; ".join([*shown, *([f"{more} parameters"] if more else [])])


def spent(members: Sequence[Planned]) -> str:
    """The time that the cells of a row will take, one after the other."""
    left = [one.seconds for one in members if one.again]
    if not left:
        return "-"
    return clock(sum(filter(None, left))) if None not in left else "?"


def time_of(rest: Sequence[Planned], jobs: int) -> str:
    """How long the cells will take, as far as earlier runs tell."""
    known = [one.seconds for one in rest if one.seconds is not None]
    unknown = len(rest) - len(known)
    if not known:
        return "time: no earlier run to go by"
    at_least = max(sum(known) / jobs, max(known))
    side = f", {jobs} at once" if jobs > 1 else ""
    more = f"; {many(unknown, 'cell')} with no earlier run to go by" if unknown else ""
    return f"time: about {clock(at_least)} by earlier runs{side}{more}"


def many(count: int, name: str) -> str:
    """A count and its noun."""
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
