"""What the benchmarks share: words that are whole numbers, medians with their spread, CSV files, tables."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lra.files import write_text
from lra.words import WordError, choose


def whole_number(key: str, text: str, least: int) -> int:
    """The number that `key=text` names; WordError where it is none or smaller than `least`."""
    if not text.isdecimal() or int(text) < least:
        raise WordError(f"{key}={text} must be an integer of at least {least}")
    return int(text)


def choices(key: str, text: str, allowed: Sequence[str]) -> list[str]:
    """The names in a list with commas, all of `allowed` where it is empty; WordError where one is not allowed."""
    return [choose(key, name, allowed) for name in text.split(",")] if text else list(allowed)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Median and interquartile range."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return median, high - low


def save_rows(file: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_text(Path(file), text.getvalue())


def write_rows(file: str, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file whole or not at all, and say so."""
    save_rows(file, head, rows)
    print(f"written: {file}")


def grid(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (head, ["---"] * len(head), *lines))
