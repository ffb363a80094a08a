"""The rows of a study on disk: written whole after each unit of work, found again by a second start."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import os
import platform
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from benchmarks.rows import save_rows
from lra.files import remove_parts

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "studies"
# What must be the same of all rows that stand in one file.
MACHINE = ("device", "threads", "python", "torch", "source")

Row = TypeVar("Row", bound=NamedTuple)


class Stamp(NamedTuple):
    """On what a row was measured. `source`: 12 digits of the code that decides what is measured."""

    device: str
    threads: int | str
    driver: str
    clocks: str
    isa: str
    python: str
    torch: str
    source: str
    commit: str


def stamp(device: str, threads: int, modules: Iterable[str]) -> Stamp:
    """The stamp of this machine; `modules`: names of the files of benchmarks/studies whose content matters."""
    import torch

    from benchmarks.kernel import isa
    from benchmarks.meter import meter
    from lra.machine import device_name, git_commit

    torch.set_num_threads(threads)
    where = torch.device(device)
    facts = meter(where, flush=False).facts()
    return Stamp(
        device_name(where).rpartition(", ")[0] if device == "cpu" else device_name(where),
        threads if device == "cpu" else "",
        facts["driver"],
        facts["clocks"],
        isa(device),
        platform.python_version(),
        torch.__version__,
        source(modules),
        git_commit(),
    )


def source(modules: Iterable[str]) -> str:
    """12 digits of the attentions, the kernels and the named modules of the studies."""
    kinds = (".py", ".cpp", ".hpp", ".cu", ".cuh")
    files = [
        file for folder in ("attention_zoo", "csrc") for file in (ROOT / folder).rglob("*") if file.suffix in kinds
    ]
    files += [Path(__file__).with_name(f"{name}.py") for name in modules]
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.relative_to(ROOT)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def folder_of(machine: Stamp) -> Path:
    """Where the results of a machine stand: a folder that its name makes."""
    threads = f" {machine.threads} threads" if machine.threads else ""
    name = re.sub(r"\((r|tm)\)", " ", f"{machine.device}{threads}".lower())
    return RESULTS / re.sub(r"[^a-z0-9.]+", "-", name).strip("-")


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder while measuring: whoever comes second is told so, and would have disturbed the times."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"another study measures into {folder}; start this one when it has ended") from None
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        remove_parts(folder)
        yield
    finally:
        os.close(lock)


def now() -> str:
    """The date of a row."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class Ledger(Generic[Row]):
    """The rows of one CSV file. All are of one machine and source; two with the same `identity` cannot be."""

    def __init__(self, file: Path, kind: type[Row], identity: Sequence[str], machine: Stamp) -> None:
        """Take up what an earlier start left; rows of another machine or source are left out, with a line."""
        self.file, self.kind, self.identity = file, kind, tuple(identity)
        # The fields of a row in their order; mypy does not see them of a type variable.
        self.fields: tuple[str, ...] = getattr(kind, "_fields")  # noqa: B009
        self.rows: dict[tuple[str, ...], dict[str, str]] = {}
        if not file.exists():
            return
        read = rows_of(file)
        same = [
            row
            for row in read
            if tuple(row) == self.fields
            and all(row[key] == str(getattr(machine, key)) for key in MACHINE if key in self.fields)
        ]
        if len(same) < len(read):
            print(f"{len(read) - len(same)} rows of another source or machine in {file} are replaced")
        self.rows = {self._identity(row): row for row in same}

    def _identity(self, row: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[key]) for key in self.identity)

    def has(self, **identity: Any) -> bool:
        """Whether a row is there; every field of the identity is named."""
        return self._identity(identity) in self.rows

    def get(self, **identity: Any) -> dict[str, str]:
        """The row as strings, as in the file."""
        return self.rows[self._identity(identity)]

    def add(self, rows: Iterable[Row]) -> None:
        """Put rows into the file, whole; a row of the same identity is replaced."""
        for row in rows:
            values = {key: text(value) for key, value in zip(self.fields, row, strict=True)}
            self.rows[self._identity(values)] = values
        save_rows(str(self.file), self.fields, ([row[key] for key in self.fields] for row in self.rows.values()))


def text(value: Any) -> str:
    """A value as it stands in a file: six digits of a float, nothing for None, spaces between the parts of a list."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    return " ".join(map(text, value)) if isinstance(value, (list, tuple)) else str(value)


def rows_of(file: Path) -> list[dict[str, str]]:
    """The lines of a CSV file; ValueError where it is no text."""
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return list(csv.DictReader(lines))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is not a CSV file: {error}") from None
