"""The lock of a run's directory: who trains there. The system drops it when a process ends, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

from lra.files import naming

NAME = ".lock"
# Seconds: who only looks at a lock has it for less, and who takes it has said by then who it is.
PATIENCE = 0.5


class Held(Exception):
    """Another process has the lock; the message is its number, and its machine where that is another one."""


def take(folder: Path) -> IO[str]:
    """Make `folder` if it is missing and take its lock, which is held until the file that is returned is closed."""
    until = time.monotonic() + PATIENCE
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as opened:
            try:
                file: IO[str] = opened.enter_context(open(folder / NAME, "a+", encoding="utf-8"))
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Held(_who(file)) from None
            except FileNotFoundError:
                # Removed by another process since it was made.
                if time.monotonic() > until:
                    raise
            else:
                # The folder may have been put aside or removed before the lock was there to be had.
                if is_of(file, folder):
                    with naming(folder / NAME):
                        file.truncate(0)
                        file.write(f"{os.getpid()} {socket.gethostname()}")
                        file.flush()
                    opened.pop_all()
                    return file
        time.sleep(0.01)


def holder(folder: Path) -> str:
    """The number of the process that trains in a run's directory, empty where there is none."""
    with contextlib.suppress(OSError), (folder / NAME).open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _who(file)
    return ""


def is_of(file: IO[str], folder: Path) -> bool:
    """Whether `file` is still the lock of `folder`, and not of one that was removed or renamed since."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return os.path.samestat(os.fstat(file.fileno()), (folder / NAME).stat())
    return False


def _who(file: IO[str]) -> str:
    file.seek(0)
    number, _, host = file.read().strip().partition(" ")
    elsewhere = host and host != socket.gethostname()
    return f"{number or 'unknown'}{f' on {host}' if elsewhere else ''}"
