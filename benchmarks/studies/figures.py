"""`python -m benchmarks.studies.figures`: the figures of the studies and the tables beside the published numbers.

Everything is drawn from the CSV files that the studies wrote; nothing is measured.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from benchmarks.studies import beside, entropies, frontier, lengths, whiskers
from benchmarks.studies.found import Found, Line, find, folders_in, slug
from lra.command import command
from lra.words import WordError, choose

KEYS = {
    "folder": (
        "benchmarks/results/studies",
        "a machine's CSV files, or several such folders; figures stand beside their files",
    ),
    "format": ("svg", "svg or png"),
}
# What makes each file.
STUDIES = {
    "approximation": "approximation",
    "entropy": "entropy",
    "efficiency": "efficiency",
    "crossover": "efficiency",
}


def drawings(found: Found) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """The figures of a machine: the name of each, and what draws it into a file."""
    tables = found.tables
    drawn = []
    for rows in groups(tables.get("approximation", []), "n", "inputs", "dtype", "inputs_sha256"):
        drawn.append((f"approximation_{rows[0].whole('n')}_{_inputs(rows[0])}", rows, partial(frontier.draw, rows)))
    for named in groups(tables.get("entropy", []), "inputs", "dtype"):
        # One figure for all lengths, unless inputs of one name and length differ.
        same = len({row["n"] for row in named}) == len({(row["n"], row.get("inputs_sha256")) for row in named})
        for rows in [named] if same else groups(named, "inputs_sha256"):
            drawn.append((f"entropy_{_inputs(rows[0])}", rows, partial(entropies.draw, rows)))
    times = Counter(name for name, _, _ in drawn)
    for name, rows, draw in drawn:
        yield (f"{name}_{slug(rows[0].get('inputs_sha256', ''))}" if times[name] > 1 else name), draw
    for name, drawing in (("efficiency", lengths.draw), ("crossover", whiskers.draw)):
        if tables.get(name):
            yield name, partial(drawing, tables[name])


def groups(rows: Sequence[Line], *keys: str) -> list[list[Line]]:
    """The rows that have the same in all columns named, in the order of the first of each."""
    found: dict[tuple[str, ...], list[Line]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(key, "") for key in keys), []).append(row)
    return list(found.values())


def _inputs(row: Line) -> str:
    """Inputs, and the dtype where it is not the usual one, as part of a file's name."""
    dtype = row.get("dtype", "float32")
    return slug(row["inputs"]) + (f"_{slug(dtype)}" if dtype != "float32" else "")


def run(options: dict[str, str]) -> int:
    """Draw, with a value for each of KEYS; returns the exit code, 1 where something could not be drawn."""
    kind = choose("format", options["format"], ("svg", "png"))
    folder = Path(options["folder"])
    if not folder.is_dir() and options["folder"] != KEYS["folder"][0]:
        raise WordError(f"folder={folder} is not a folder")
    machines = [find(path) for path in folders_in(folder)]
    if not machines:
        raise WordError(f"folder={folder} has no results of a study; make bench study=approximation measures some")
    whole = True
    for machine in machines:
        for name, study in STUDIES.items():
            file = machine.folder / f"{name}.csv"
            if not (file.exists() and machine.tables.get(name, True)):
                print(f"no {'rows in' if file.exists() else 'file'} {file}: make bench study={study}")
        figures, problems = _sorted(machine)
        for problem in (*machine.problems, *problems):
            print(f"error: {' '.join(problem.split())}", file=sys.stderr)
        whole &= not machine.problems and not problems
        for name, draw in figures:
            whole &= _drawn(machine.folder / f"{name}.{kind}", draw)
    whole &= beside.write(machines, folder)
    return 0 if whole else 1


def _sorted(machine: Found) -> tuple[list[tuple[str, Callable[[Path], None]]], list[str]]:
    """The drawings of a machine, and a line for each file that cannot be sorted into figures."""
    figures: list[tuple[str, Callable[[Path], None]]] = []
    problems = []
    for name, rows in machine.tables.items():
        try:
            figures += drawings(machine._replace(tables={name: rows}))
        except ValueError as error:
            problems.append(str(error))
    return figures, problems


def _drawn(file: Path, draw: Callable[[Path], None]) -> bool:
    """Draw one figure, and say so; False, with a line, where it cannot be."""
    try:
        draw(file)
    except (ValueError, ArithmeticError, OSError) as error:
        print(f"error: {file} is not drawn: {' '.join(str(error).split())}", file=sys.stderr)
        return False
    print(f"written: {file}")
    return True


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    summary = "The figures of the studies, and their numbers beside the published ones, from the CSV files."
    return command("benchmarks.studies.figures", summary, KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
