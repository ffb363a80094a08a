"""CSV files of named columns, read by a strict rule: the columns as they are written, every row whole."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Row = TypeVar("Row")


def read_rows(path: Path, columns: Sequence[str], parse: Callable[[list[str]], Row]) -> list[Row]:
    """What `parse` makes of each row under the line of `columns`; empty lines are no rows.

    ValueError is one line with the file, the line and the rule that it breaks, which may be one of `parse`'s own.
    FileNotFoundError is the caller's to tell.
    """
    rows: list[Row] = []
    number = 0
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for number, cells in enumerate(csv.reader(file, strict=True), start=1):
                if number == 1:
                    if cells != list(columns):
                        raise ValueError(f"the columns are not {', '.join(columns)}")
                elif cells:
                    rows.append(parse(cells))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: byte {error.start}") from None
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}, line {max(number, 1)}: {error}") from None
    if not number:
        raise ValueError(f"{path} is empty; its first line must be {','.join(columns)}")
    return rows
