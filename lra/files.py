"""Files that are whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# What must hold for a file to be written: raises where it does not.
Demand = Callable[[], None]


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any], demand: Demand | None = None) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step, synced to disk.

    Killed at any instant, this leaves the old file or the new one; an OSError (a full disk, say) leaves the old one and
    names `path`. A folder that is missing is made, but not where there is a `demand`: that is called before anything is
    written and again the instant before the file is put in place, and what it raises leaves everything as it was.
    """
    with naming(path):
        if demand:
            demand()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        if demand:
            demand()
        os.replace(name, path)
    except BaseException as error:
        # What goes wrong here is no news beside the first error.
        with suppress(OSError):
            Path(name).unlink(missing_ok=True)
        with naming(path):
            raise error
    sync_folder(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError in here names `path` and nothing beside it: not the temporary name that nobody knows, nor none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def write_text(path: Path, text: str, demand: Demand | None = None) -> None:
    """Replace a text file in one step."""
    write_atomically(path, lambda file: file.write(text.encode()), demand)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder as durable as the files behind them."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with naming(folder):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files that a killed writer left; only for whoever holds the folder's lock."""
    for part in folder.glob(".*.part"):
        part.unlink()
