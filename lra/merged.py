"""One row a cell: the table that was, and the runs that are to go into it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lra.ours import Row, place
from lra.verified import Verified

Cell = tuple[str, str, str, int]


class Merged(NamedTuple):
    """The rows of the new table, the runs whose predictions are to be written, and what there is to tell of both.

    told: (`taken`, `kept` or `broken`, row), in the order of the rows. refused: directories and reasons.
    """

    rows: list[Row]
    files: list[Verified]
    told: list[tuple[str, Row]]
    refused: list[tuple[Path, str]]
    notes: list[str]


def merge(runs: Sequence[Verified], old: Sequence[Row], broken: Mapping[Cell, str]) -> Merged:
    """The rows of `old` and `runs`, a run for each cell: the one that finished, or that came farther.

    Of two that came equally far, and are not the same result bit for bit, nothing says which is right: a row of the
    table stays, and the runs are refused. broken: what is wrong with the predictions of old rows, by cell.
    """
    merged = Merged([], [], [], [], [])
    rows = {row.cell: row for row in old}
    found: dict[Cell, list[Verified]] = defaultdict(list)
    for run in runs:
        if all(run.row.result_sha256 != other.row.result_sha256 for other in found[run.row.cell]):
            found[run.row.cell].append(run)
    for cell in rows.keys() | found.keys():
        _decide(merged, rows.get(cell), found[cell], broken.get(cell, ""))
    merged.rows.sort(key=place)
    merged.told.sort(key=lambda told: place(told[1]))
    merged.refused.sort()
    merged.notes.sort()
    return merged


def _decide(merged: Merged, old: Row | None, runs: Sequence[Verified], fault: str) -> None:
    """Add the row of one cell, and what there is to tell of its other runs."""
    same = next((run for run in runs if old and run.row.result_sha256 == old.result_sha256), None)
    others = [run for run in runs if run is not same]
    farthest = max(progress(row) for row in [*(run.row for run in others), *([old] if old else [])])
    first = [run for run in others if progress(run.row) == farthest]
    ties = [("the table", old)] if old and progress(old) == farthest else []
    ties += [(str(run.folder), run.row) for run in first]
    winner = first[0] if first and len(ties) == 1 else None
    for run in others:
        if run in first and run is not winner:
            where, row = next(tie for tie in ties if tie[1] is not run.row)
            merged.refused.append((run.folder, twice(run.row, where, row)))
        elif run is not winner:
            ahead, row = ties[0]
            behind = f"{run.row.status} at step {run.row.steps:,}, {ahead} {row.status} at step {row.steps:,}"
            merged.notes.append(f"left out {run.folder}: {behind}")
    taken = winner or (same if fault else None)
    if taken:
        row = taken.row._replace(date=old.date) if old and taken is same else taken.row
        merged.rows.append(row)
        merged.files.extend([taken] if taken.said else [])
        merged.told.append(("taken", row))
    elif old:
        merged.rows.append(old)
        merged.told.append(("broken" if fault else "kept", old))
        merged.notes.extend([f"broken {old.name}: {fault}"] if fault else [])


def twice(row: Row, where: str, other: Row) -> str:
    """Why a run is not taken where another one came as far."""
    return (
        f"a cell has one run, and {where} has another one of {row.name}: result {other.result_sha256[:12]} on"
        f" {other.device}, this is {row.result_sha256[:12]} on {row.device}; remove the one that is not to be it"
    )


def progress(row: Row) -> tuple[bool, int, bool]:
    """How far a run came: to the end, to which step, and whether that is where it ended rather than was stopped."""
    return row.status == "finished", row.steps, row.status != "interrupted"
