"""A bar on a terminal for something that takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO


@contextmanager
def bar(
    terminal: TextIO, doing: str, total: int | None, in_bytes: bool = False, passing: bool = False
) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done, items or bytes; a `passing` bar is gone at the end."""
    # Here, so that commands which show no bar never wait for it.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )  # fmt: skip

    count = DownloadColumn() if in_bytes else MofNCompleteColumn()
    columns = TextColumn("{task.description}"), BarColumn(), count, TimeElapsedColumn(), TimeRemainingColumn()
    console = Console(file=terminal)
    with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False, transient=passing) as shown:
        row = shown.add_task(doing, total=total)
        yield lambda count: shown.advance(row, count)
