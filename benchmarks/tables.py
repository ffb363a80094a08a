"""`python -m benchmarks.tables`: the tables of docs/speed.md from the CSV files of benchmarks/speed.py."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from lra.command import command
from lra.files import write_text

RESULTS = Path(__file__).resolve().parent / "results"
BEGIN, END = "<!-- {}: make bench name=tables -->\n", "<!-- end of {} -->"
KEYS = {"page": ("docs/speed.md", "the page whose tables are written anew, between their marks")}

Row = dict[str, str]


def read(file: Path) -> list[Row]:
    """The lines of a CSV file."""
    with file.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def about(rows: Sequence[Row]) -> str:
    """Where and with what the rows were measured."""
    first = rows[0]
    shape = f"(B, H, D) = ({first['batch']}, {first['heads']}, {first['head_dim']})"
    return f"{first['device']}; torch {first['torch']}, {first['dtype']}, {shape}, commit `{first['commit'][:12]}`\n\n"


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *lines))


def cores(rows: Sequence[Row]) -> str:
    """Each attention: its step at every length, how it grows at the end, its memory."""
    lengths = sorted({int(row["n"]) for row in rows})
    lines = []
    for name in dict.fromkeys(row["attn"] for row in rows):
        mine = {int(row["n"]): row for row in rows if row["attn"] == name}
        steps = [f"{float(mine[n]['step_ms']):.0f} ms, x {float(mine[n]['step_ratio']):.2f}" for n in lengths]
        last = mine[lengths[-1]]
        lines.append([f"`{name}`", *steps, f"x {float(last['step_growth']):.2f}", f"{float(last['peak_mb']):.0f} MiB"])
    head = ["attention", *(f"N = {n:,}" for n in lengths), f"{lengths[-2]:,} to {lengths[-1]:,}", "peak, longest"]
    return about(rows) + grid(head, lines)


def peers(rows: Sequence[Row]) -> str:
    """Each public implementation: its step and its memory as a multiple of ours."""
    lengths = sorted({int(row["n"]) for row in rows})
    ours = {(row["attn"], row["n"]): row for row in rows if row["implementation"] == "zoo layer"}
    lines = []
    for name, package in dict.fromkeys((row["attn"], row["implementation"]) for row in rows):
        if package == "zoo layer":
            continue
        theirs = [row for row in rows if (row["attn"], row["implementation"]) == (name, package)]
        memory = [float(row["peak_mb"]) / float(ours[name, row["n"]]["peak_mb"]) for row in theirs]
        lines.append([f"`{name}`", package, *(f"{float(row['step_ratio']):.2f}" for row in theirs)])
        lines[-1] += [f"{share:.2f}" for share in memory]
    head = ["attention", "package", *(f"time, {n:,}" for n in lengths), *(f"memory, {n:,}" for n in lengths)]
    return about(rows) + grid(head, lines)


TABLES = {"speed": cores, "peers": peers}


def written(page: str) -> str:
    """The page with its tables made from the CSV files; ValueError where a mark is missing."""
    for name, table in TABLES.items():
        begin, end = BEGIN.format(name), END.format(name)
        before, found, rest = page.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the page has no lines {begin.strip()} and {end}")
        page = f"{before}{begin}{table(read(RESULTS / f'{name}.csv'))}{end}{after}"
    return page


def run(options: dict[str, str]) -> int:
    """Write the page."""
    file = Path(options["page"])
    write_text(file, written(file.read_text()))
    print(f"written: {file}")
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("benchmarks.tables", "The tables of docs/speed.md from the measured CSV files.", KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
