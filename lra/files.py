"""Files that are whole or not there."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

# What must hold for a file to be written: raises where it does not.
Demand = Callable[[], None]


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], Any], demand: Demand | None = None, keep: Path | None = None
) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step, synced to disk.

    Killed at any instant, this leaves the old file or the new one; an OSError (a full disk, say) leaves the old one and
    names `path`. A folder that is missing is made, but not where there is a `demand`: that is called before anything is
    written and again the instant before the file is put in place, and what it raises leaves everything as it was.
    keep: where the old file goes the instant before. Killed just then, it is there alone.
    """
    with naming(path):
        if demand:
            demand()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
        file, name = _part(path)
    try:
        # Open, and so locked, until it has its name.
        with file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(name, 0o644)
            if demand:
                demand()
            _replace(name, path, keep)
    except BaseException as error:
        # What goes wrong here is no news beside the first error.
        with suppress(OSError):
            Path(name).unlink(missing_ok=True)
        with naming(path):
            raise error
    sync_folder(path.parent)


def _part(path: Path) -> tuple[IO[bytes], str]:
    """A new temporary file beside `path`, and its name. Those that killed writers of `path` left are removed.

    It is locked while it is open: an abandoned one is known by its lock, which nobody holds.
    """
    begins = f".{path.name}."
    for left in os.listdir(path.parent):
        if left.startswith(begins) and left.endswith(".part"):
            _remove_abandoned(path.with_name(left))
    while True:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=begins, suffix=".part")
        file = os.fdopen(descriptor, "wb")
        # Where the file system has no locks, nobody removes anything.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        # Another writer may have taken it for abandoned before it was locked.
        if os.fstat(descriptor).st_nlink:
            return file, name
        file.close()


def _remove_abandoned(part: Path) -> None:
    with suppress(OSError), part.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        part.unlink()


def _replace(name: str, path: Path, keep: Path | None) -> None:
    if keep is None or not path.exists():
        os.replace(name, path)
        return
    os.replace(path, keep)
    try:
        os.replace(name, path)
    except BaseException:
        if not path.exists():
            with suppress(OSError):
                os.replace(keep, path)
        raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError in here names `path` and nothing beside it: not the temporary name that nobody knows, nor none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise OSError(f"{path}: {error}") from error
        raise OSError(error.errno, error.strerror, str(path)) from error


def spare(path: Path) -> Path:
    """Where the spare of a file stands: the file of before, or a second copy."""
    return path.with_name(f"{path.stem}.spare{path.suffix}")


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
