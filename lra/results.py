"""`python -m lra.results`: all runs beside the published numbers, in the terminal, as Markdown, CSV and curves."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console

from lra.cells import Cell, Published, Run, cells, collect, existing, read_published, select
from lra.command import command
from lra.files import write_text
from lra.intervals import student_interval, wilson
from lra.report import draw
from lra.table import comma_separated, markdown, notes, say, show, show_published, sources

__all__ = ["Cell", "Published", "Run", "cells", "collect", "compare", "main", "student_interval", "wilson"]

KEYS = {
    "runs": ("runs", "folder of the runs; the files go to <runs>/report"),
    "task": ("", "only these tasks, a list with commas"),
    "attn": ("", "only these attentions"),
    "protocol": ("", "only these protocols"),
}


def compare(options: dict[str, str]) -> int:
    """Read, print, write, with a value for each of KEYS; returns the exit code."""
    root = existing(options["runs"], KEYS["runs"][0])
    wanted = {key: value for key, value in options.items() if key != "runs" and value}
    every, problems = collect(root)
    runs, published = select(every, read_published(), wanted)

    console = Console(highlight=False)
    filters = " ".join(f"{key}={value}" for key, value in wanted.items())
    if not runs:
        say(console, f"no runs{' of ' + filters if filters else ''} in {root} yet: make lra task=listops attn=mra2")
        for problem in problems:
            say(console, problem)
        console.print()
        show_published(console, published)
        return 0

    table = cells(runs, published)
    report = root / "report"
    show(console, table)
    for line in (*notes(table), *sources(table), *problems):
        say(console, line)
    write_text(report / "compare.md", markdown(table, problems, filters))
    write_text(report / "compare.csv", comma_separated(table))
    for problem in draw(table, report / "curves.svg"):
        say(console, problem)
    say(console, f"written: {report / 'compare.md'}, {report / 'compare.csv'}, {report / 'curves.svg'}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("lra.results", "All runs beside the published numbers.", KEYS, compare, words)


if __name__ == "__main__":
    sys.exit(main())
