"""What stands in the folders of machines: the CSV files of the studies, checked as they are read."""

from __future__ import annotations

import csv
import math
import re
import reprlib
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

MACHINE = ("device", "torch")
# Of each file, the columns without which it cannot be shown. A file may have more.
COLUMNS = {
    "approximation": (
        *("inputs", "inputs_sha256", "n", "attn", "parameter", "value", "workload", "aims", "result", "error"),
        *("step_ms", "ratio", "ratio_eager", "peak_mb", "batch", "heads", "head_dim", "dtype", "threads"),
    ),
    "entropy": (
        *("inputs", "n", "against", "budget", "budget_ms", "attn", "parameter", "value", "instance", "head"),
        *("entropy", "error", "threads"),
    ),
    "efficiency": (
        *("of", "attn", "kind", "rule", "batch", "n", "result", "step_ms", "ratio", "ratio_eager", "peak_mb"),
        *("memory_ratio", "memory_ratio_eager", "dtype", "threads"),
    ),
    "crossover": (
        *("of", "attn", "measure", "dtype", "rule", "against", "length", "ahead_from", "behind_at", "longest"),
    ),
}


class Line(dict[str, str]):
    """A row of a file: texts by column, and where it stands."""

    def __init__(self, cells: dict[str, str], where: str) -> None:
        super().__init__(cells)
        self.where = where

    def number(self, key: str) -> float:
        """The number in a column; ValueError where there is none."""
        try:
            return float(self[key])
        except ValueError:
            raise ValueError(f"{self.where}: {key} is {reprlib.repr(self[key])}, not a number") from None

    def perhaps(self, key: str) -> float | None:
        """The finite number in a column, or None where it is empty or nan or infinite."""
        number = self.number(key) if self[key] else math.nan
        return number if math.isfinite(number) else None

    def whole(self, key: str) -> int:
        """The integer in a column; ValueError where there is none."""
        number = self.number(key)
        if not number.is_integer():
            raise ValueError(f"{self.where}: {key} is {reprlib.repr(self[key])}, not an integer")
        return int(number)


def read(file: Path, columns: Iterable[str]) -> list[Line]:
    """The rows of a file; ValueError where it is torn, is no CSV file or lacks one of the columns."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            cells = [row for row in csv.reader(lines, strict=True) if row]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not text in UTF-8: byte {error.start}") from None
    except csv.Error as error:
        raise ValueError(f"{file} is no whole CSV file: {error}") from None
    if not cells:
        raise ValueError(f"{file} is empty")
    head, *rows = cells
    if len(set(head)) < len(head):
        raise ValueError(f"{file} has a column twice")
    if missing := [name for name in columns if name not in head]:
        raise ValueError(f"{file} has no column {', '.join(missing)}: it is of another version; measure again")
    for number, row in enumerate(rows, 2):
        if len(row) != len(head):
            raise ValueError(f"{file}, line {number}: {len(row)} cells under {len(head)} columns; it is torn")
    return [Line(dict(zip(head, row, strict=True)), f"{file}, line {i}") for i, row in enumerate(rows, 2)]


class Found(NamedTuple):
    """A machine's folder, the rows of each of COLUMNS that is there and whole, and a line for each that is torn."""

    folder: Path
    tables: dict[str, list[Line]]
    problems: list[str]


def find(folder: Path) -> Found:
    """What a machine's folder holds."""
    tables, problems = {}, []
    for name, columns in COLUMNS.items():
        file = folder / f"{name}.csv"
        if not file.exists():
            continue
        try:
            tables[name] = read(file, [*columns, *MACHINE])
        except (ValueError, OSError) as error:
            problems.append(str(error))
    return Found(folder, tables, problems)


def folders_in(folder: Path) -> list[Path]:
    """The folder itself if it is a machine's, else the machines' folders in it, by name."""
    names = [f"{name}.csv" for name in COLUMNS]
    if any((folder / name).exists() for name in names):
        return [folder]
    inner = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [path for path in inner if any((path / name).exists() for name in names)]


def plain(text: str, longest: int = 80) -> str:
    """A name that somebody else gave, on one line, without what cannot be shown, and not too long."""
    seen = "".join(" " if unicodedata.category(x)[0] in "CZ" else x for x in text)
    folded = " ".join(seen.split())
    return folded if len(folded) <= longest else f"{folded[: longest - 1].rstrip()}…"


def slug(text: str) -> str:
    """A name as part of a file's: letters, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-.")[:60] or "unnamed"


def threads(line: Line) -> str:
    """The threads of a row as text, "" on a GPU."""
    return f"{line['threads']} thread{'s' * (line['threads'] != '1')}" if line.get("threads") else ""
