"""Faults on purpose: processes whose k-th file operation below a folder goes wrong (injector.cpp does it)."""

from __future__ import annotations

import multiprocessing.forkserver
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from csrc.build import library

# What can happen at an operation; injector.cpp says what each is.
FAULTS = ("kill", "term", "int", "usr2", "full", "once", "quota", "broken", "readonly", "gone", "away", "replaced")


class Operation(NamedTuple):
    """Something that a process did to a file."""

    number: int
    name: str  # open, write, truncate, sync, rename, link, mkdir, rmdir, unlink
    path: Path


class Injection:
    """A fault for the processes that are started with `environ`, and what they did.

    under: the folder whose files count. at: the number of the operation that goes wrong, from 1; 0 only counts.
    fault: one of FAULTS. Notes are kept in `notes`, a folder outside `under`.
    """

    def __init__(self, under: Path, notes: Path, at: int = 0, fault: str = "kill") -> None:
        if fault not in FAULTS:
            raise ValueError(f"fault={fault!r} is not one of {', '.join(FAULTS)}")
        notes.mkdir(parents=True, exist_ok=True)
        self._counter, self._log = notes / "counter", notes / "operations"
        self._counter.write_bytes(bytes(8))
        self._log.unlink(missing_ok=True)
        self.environ = {
            "LD_PRELOAD": str(injector()),
            "FAULTS_UNDER": f"{under.resolve()}/",
            "FAULTS_COUNTER": str(self._counter),
            "FAULTS_LOG": str(self._log),
            "FAULTS_AT": str(at),
            "FAULTS_DO": fault,
        }

    def count(self) -> int:
        """Operations so far, over all processes."""
        return int(struct.unpack("<q", self._counter.read_bytes())[0])

    def operations(self) -> list[Operation]:
        """What was done so far, in order."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        found = (line.split("\t", 2) for line in lines)
        return sorted(Operation(int(number), name, Path(path)) for number, name, path in found)


def injector() -> Path:
    """The library that is preloaded, compiled at its first use."""
    return library("injector", (Path(__file__).with_name("injector.cpp"),), ("-ldl",))


@contextmanager
def injectable() -> Iterator[None]:
    """Within it the processes of tests.forks have the injector: they heed the environment of an Injection.

    Without one in their environment they are as ever.
    """
    before = os.environ.get("LD_PRELOAD")
    # The server has what it was started with; the next process starts another one.
    multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
    os.environ["LD_PRELOAD"] = str(injector())
    try:
        yield
    finally:
        multiprocessing.forkserver._forkserver._stop()  # type: ignore[attr-defined]
        if before is None:
            del os.environ["LD_PRELOAD"]
        else:
            os.environ["LD_PRELOAD"] = before
