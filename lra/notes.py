"""What a reader must know before believing a table, a line for each thing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from lra.cells import OVER_BUDGET, Cell
from lra.folders import visible
from lra.outcomes import Run, spelled
from lra.published import LISTOPS_FLOORS, Published

_APART = "never averaged, not comparable"


def papers(table: Sequence[Cell]) -> list[tuple[str, str]]:
    """(source, url) of the published values named, in the order of their first use."""
    first = [cell.published for cell in table if cell.published]
    others = [value for cell in table for value in cell.elsewhere]
    return list(dict.fromkeys((value.source, value.url) for value in (*first, *others)))


def sources(table: Sequence[Cell]) -> list[str]:
    """The numbered list of papers that the `published` column points to."""
    return [f"[{i}] {source}, {url}" for i, (source, url) in enumerate(papers(table), start=1)]


def cited(value: Published, numbered: list[tuple[str, str]]) -> str:
    """The value with its mark and the number of its paper: `37.2? [1]`."""
    return f"{value.marked} [{numbered.index((value.source, value.url)) + 1}]"


def notes(table: Sequence[Cell]) -> list[str]:
    """Every line that `table` needs."""
    lines = []
    kinds = {cell.interval[2] for cell in table if cell.interval}
    if "wilson" in kinds:
        lines.append("Wilson: of one run over the items of the test set; the spread of seeds is not in it.")
    if "student" in kinds:
        lines.append(
            "t: Student's, of the mean over seeds; the sampling error of the test set they share is not in it."
        )
    if any(cell.floors for cell in table):
        floors = ", ".join(f"{name} {value}%" for name, value in LISTOPS_FLOORS.items())
        lines.append(f"listops: the test set has 2,000 items, +-2.1 points for one run; {floors}.")
    if any(cell.deviation and cell.published for cell in table):
        lines.append("deviation: the row does not follow the protocol's recipe, and its difference is no reproduction.")
    if any(cell.excess for cell in table):
        rule = "over 10% more parameters than softmax at the same protocol, against the benchmark's own rule"
        lines.append(f"{OVER_BUDGET}: {rule}.")
    lines += marks({cell.published.status for cell in table if cell.published})
    numbered = papers(table)
    others = dict.fromkeys(value for cell in table for value in cell.elsewhere)
    if others:
        named = (f"{value.protocol} {value.task} {value.attn} {cited(value, numbered)}" for value in others)
        lines.append(f"published elsewhere: {', '.join(named)}.")
    lines += _declared(table)
    lines += never_averaged(table)
    lines += [f"{cell_name(cell)}: {line}" for cell in table for line in cell_notes(cell)]
    devices = sorted({run.device for cell in table for run in cell.finished})
    if devices:
        compare = "" if len(devices) == 1 else "; rows of different devices do not compare"
        lines.append(f"tokens/s and peak MB: on {', '.join(devices)}{compare}.")
    return lines


def marks(statuses: Collection[str]) -> Iterator[str]:
    """What the marks at published values mean."""
    if "unverified" in statuses:
        yield "?: unverified; the published value could not be checked in its source."
    if "secondary" in statuses:
        yield "*: secondary; the published value was read in another work that quotes it."


def _declared(table: Sequence[Cell]) -> Iterator[str]:
    tasks: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for cell in table:
        if cell.declared:
            tasks[cell.protocol, cell.attn, ", ".join(spelled(cell.declared))].append(cell.task)
    for (protocol, attn, words), names in tasks.items():
        yield f"declared: {protocol}'s own set-up of {attn} has {words} ({', '.join(dict.fromkeys(names))})."
    silent = sum(run.declared is None for cell in table for run in cell.runs)
    if silent:
        yield f"declared: not told by {_runs(silent)} of an older version."


def never_averaged(table: Sequence[Cell]) -> Iterator[str]:
    """The lines that say which runs were kept apart, and why."""
    protocols = Counter[str]()
    places: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    columns: dict[tuple[str, str, str], dict[tuple[str, str], int]] = defaultdict(Counter)
    rivals: dict[tuple[str, str, str, str, str], list[Cell]] = defaultdict(list)
    for cell in table:
        protocols[cell.protocol] += len(cell.runs)
        places[cell.protocol, cell.task][cell.source] += len(cell.runs)
        columns[cell.protocol, cell.task, cell.source][cell.data_sha256, cell.split] += len(cell.runs)
        rivals[cell.protocol, cell.task, cell.source, cell.attn, cell.deviation].append(cell)
    if len(protocols) > 1:
        yield f"protocols {_counted(protocols)}: {_APART}."
    for (protocol, task), found in places.items():
        if len(found) > 1:
            yield f"sources of {protocol} {task}: {_counted(found)}: {_APART}."
    for (protocol, task, source), parts in columns.items():
        if len({data for data, _ in parts}) > 1:
            yield f"data: runs of {protocol} {task} ({source}) saw different data: {_APART}."
        if len({split for _, split in parts}) > 1:
            yield f"split: runs of {protocol} {task} ({source}) are of different splits: {_APART}."
    for found_cells in rivals.values():
        most = max(found_cells, key=lambda cell: (len(cell.runs), max(run.finished_at for run in cell.runs)))
        for cell in found_cells:
            if cell is not most:
                why = ", ".join(_unlike(cell, most))
                yield (
                    f"{_runs(len(cell.runs))} of {_place(cell)} stand{'s' * (len(cell.runs) == 1)} apart from"
                    f" {len(most.runs)}, never averaged: {why}."
                )


def _unlike(cell: Cell, most: Cell) -> Iterator[str]:
    if cell.data_sha256 != most.data_sha256:
        yield f"data sha {cell.data_sha256[:8]} (not {most.data_sha256[:8]})"
    if cell.split != most.split:
        yield f"split {cell.split or 'not recorded'} (not {most.split or 'not recorded'})"
    if cell.apart != most.apart:
        yield (cell.apart or f"not {most.apart}").replace(",", ", ")


def _runs(count: int) -> str:
    return f"{count} run" + "s" * (count != 1)


def _counted(found: Counter[str]) -> str:
    return ", ".join(f"{name} ({_runs(count)})" for name, count in found.items())


def _place(cell: Cell) -> str:
    return " ".join(filter(None, (cell.protocol, f"{cell.task_name}/{cell.attn}", cell.deviation)))


def cell_name(cell: Cell) -> str:
    """Protocol, task, attention and deviation in one line."""
    return " ".join(filter(None, (cell.protocol, cell.task_name, cell.attn, cell.words)))


def cell_notes(cell: Cell) -> Iterator[str]:
    """What its runs differ in beyond their seeds, which is no reason not to average them."""
    for run in cell.superseded:
        kept = next(other for other in cell.runs if other.seed == run.seed)
        yield f"seed {run.seed} twice; the newer counts ({_folder(kept)}), not {_folder(run)}."
    facts: dict[str, Callable[[Run], Any]] = {
        "steps": lambda run: run.steps,
        "kernel": lambda run: run.kernel or "of torch",
        "dtype": lambda run: run.dtype,
        "processes": lambda run: run.processes,
        "commit": lambda run: run.git_commit[:8] + "-dirty" * run.git_commit.endswith("-dirty") or "none",
    }
    for name, fact in facts.items():
        found = list(map(fact, cell.finished))
        if len(set(found)) > 1:
            yield f"its runs differ in {name} ({', '.join(map(str, found))})."
    if len({run.device for run in cell.runs}) > 1:
        yield "its runs differ in device; their speed and memory are not averaged."


def _folder(run: Run) -> str:
    return visible(str(run.path.parent))
