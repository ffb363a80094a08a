"""The records of many runs, read while they are being written: a metrics.jsonl by its end, never wholly twice."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

# Bytes in which the last whole line of a record is looked for.
END = 2**14
# Lines of training at the end of a record that a follower parses and keeps.
RECENT = 40


class Name(NamedTuple):
    """What a run's path says of it. `words` are those that change its recipe, as they stand in the folder's name."""

    protocol: str
    task: str
    attn: str
    words: tuple[str, ...]
    seed: str


def name_of(folder: Path, root: Path) -> Name | None:
    """What `<root>/<protocol>/<task>/<attn>/[<words>,]seed<k>` says; None for a path of another form."""
    parts = folder.relative_to(root).parts
    match = re.fullmatch(r"(?:(.+),)?seed(\d+)", parts[-1]) if len(parts) == 4 else None
    if match is None:
        return None
    words = re.split(r",(?=[^,=\[\](){}]+=)", match[1]) if match[1] else []
    return Name(parts[0], parts[1], parts[2], tuple(words), match[2])


def parsed(line: bytes) -> dict[str, Any] | None:
    """A record of a metrics.jsonl, or None for a line that is none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    good = isinstance(record, dict) and whole(record, "step") is not None and isinstance(record.get("split"), str)
    return record if good else None


def number(record: dict[str, Any], key: str) -> float | None:
    """The finite number at `key`, or None."""
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # A whole number may be too large for a float.
    return float(value) if abs(value) <= sys.float_info.max else None


def whole(record: dict[str, Any], key: str) -> int | None:
    """The whole number from 0 to 2**53 at `key`, or None."""
    value = record.get(key)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**53 else None


def last_record(file: Path) -> dict[str, Any] | None:
    """The last record of a metrics.jsonl; None where there is none or it cannot be read."""
    try:
        with file.open("rb") as opened:
            opened.seek(max(opened.seek(0, os.SEEK_END) - END, 0))
            lines = opened.read(END).split(b"\n")[:-1]
    except OSError:
        return None
    return next(filter(None, map(parsed, reversed(lines))), None)


class Follower:
    """A metrics.jsonl that grows: what was read stays read, and the rest is read when its size or time has changed.

    last, train, val: the newest record, the newest of a training window, the newest of a validation. validations:
    (step, accuracy) of each. times: (step, seconds) of each validation, recent: of the newest records of all kinds.
    broken: lines that are no record.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.seen: tuple[int, int, int] | None = None
        self.forget()

    def forget(self) -> None:
        """Begin again at the first byte."""
        self.offset, self.anchor = 0, b""
        self.last: dict[str, Any] | None = None
        self.train: dict[str, Any] | None = None
        self.val: dict[str, Any] | None = None
        self.validations: list[tuple[int, float]] = []
        self.times: list[tuple[int, float]] = []
        self.recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self.broken = 0

    def read(self, found: os.stat_result) -> None:
        """Take in what is new; `found` is the file's stat. A file that cannot be read is an OSError."""
        now = (found.st_ino, found.st_size, found.st_mtime_ns)
        if now == self.seen:
            return
        if not stat.S_ISREG(found.st_mode):
            raise OSError(f"{self.file} is not a file")
        with self.file.open("rb") as opened:
            # A resumed run cuts its record and writes on: what was read must still stand where it stood.
            opened.seek(self.offset - len(self.anchor))
            if self.seen is None or self.seen[0] != found.st_ino or opened.read(len(self.anchor)) != self.anchor:
                self.forget()
                opened.seek(0)
            lines = opened.read().split(b"\n")[:-1]
        self.seen = now
        if lines:
            self.offset += sum(map(len, lines)) + len(lines)
            self.anchor = lines[-1] + b"\n"
            self.take(lines)

    def take(self, lines: list[bytes]) -> None:
        """Whole lines: each validation counts, of the others the last ones."""
        first = len(lines) - RECENT
        for i, line in enumerate(lines):
            if i < first and b'"val"' not in line:
                continue
            record = parsed(line)
            if record is None:
                self.broken += 1
                continue
            self.last = record
            if record["split"] == "train":
                self.train = record
            elif record["split"] == "val":
                self.val = record
                if (accuracy := number(record, "accuracy")) is not None:
                    self.validations.append((record["step"], accuracy))
            if (seconds := number(record, "seconds")) is not None:
                place = (record["step"], seconds)
                self.recent.append(place)
                if record["split"] == "val":
                    self.times.append(place)
