"""One run's directory: who holds it, what it is, what came out of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import reprlib
import secrets
import signal
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import yaml

from lra.config import identity
from lra.files import remove_parts, write_text
from lra.folders import read_config, visible
from lra.words import WordError

# What asks a run to stop with everything saved. SIGUSR2 is how a cluster announces the end of a job's time.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

# Keys that are named where two configurations differ.
MOST_SHOWN = 5


class Failed(Exception):
    """The run ended without a result; the message is the one line that the user reads, the exit code is 1."""


class Busy(RuntimeError):
    """Another process trains in the directory."""


class RunFolder:
    """The files of a run, and the configuration that it was started with; making it touches nothing."""

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        self.path = path
        self.config = dict(config)

    def close(self) -> None:
        """Let go of the directory."""

    @property
    def last(self) -> Path:
        return self.path / "checkpoint" / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoint" / "best.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"


class Run(RunFolder):
    """A run directory, locked for the life of the process that holds it.

    Opening it refuses a directory that another process holds (Busy) or that another configuration owns (WordError
    with the keys that differ), and puts an old run aside where `fresh` is set. A new run that ends by an error before
    it has anything to keep leaves no directory, and the old one in its place.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        super().__init__(path, config)
        self.aside: Path | None = None
        self.made = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        self.hold()
        try:
            if config["fresh"] and (path / "config.yaml").exists():
                self.put_aside()
            self.claim()
            for folder in (path, path / "checkpoint"):
                remove_parts(folder)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and (self.made or self.aside) and self.is_empty():
            self.withdraw()
        self.close()

    def close(self) -> None:
        self.lock.close()

    def is_empty(self) -> bool:
        """Whether nothing of a run is here, only what says whose directory it is."""
        return {file.name for file in self.path.iterdir()} <= {".lock", "config.yaml"}

    def withdraw(self) -> None:
        """Leave things as they were before this run came."""
        for name in ("config.yaml", ".lock"):
            (self.path / name).unlink(missing_ok=True)
        if self.aside:
            os.rename(self.aside, self.path)
            print(f"put the old run back as {self.path}")
        with contextlib.suppress(OSError):
            # Another process may have come to need a folder of these.
            for folder in self.made:
                folder.rmdir()

    def tracker_id(self) -> str:
        """What trackers know this run by: drawn at its first start, kept for every later one, new with fresh=true."""
        file = self.path / "tracker.id"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if re.fullmatch(r"[0-9a-f]{16}", known := file.read_text(encoding="utf-8").strip()):
                return known
        drawn = secrets.token_hex(8)
        write_text(file, f"{drawn}\n")
        return drawn

    def hold(self) -> None:
        """Take the lock or name the process that has it; the kernel drops it when a process ends, however it ends."""
        self.lock: IO[str] = open(self.path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.seek(0)
            holder = self.lock.read().strip() or "unknown"
            self.close()
            raise Busy(f"{self.path} is being trained by process {holder}; wait for it or stop it") from None
        self.lock.truncate(0)
        self.lock.write(str(os.getpid()))
        self.lock.flush()

    def put_aside(self) -> None:
        """Keep an old run as `<name>.old-<k>` and start with an empty directory."""
        taken = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{taken}")).exists():
            taken += 1
        os.rename(self.path, aside)
        self.aside = aside
        self.path.mkdir()
        self.close()
        self.hold()
        print(f"kept the old run as {aside}")

    def claim(self) -> None:
        """Write config.yaml, or check that the one that is here says the same wherever it decides the result."""
        file = self.path / "config.yaml"
        if file.exists():
            try:
                mine, theirs = identity(self.config), identity(read_config(file))
            except ValueError:
                raise WordError(f"{file} is not readable as a configuration; fresh=true puts it aside") from None
            differ = [
                f"{visible(key)[:60]}={mine.get(key)} (there {reprlib.repr(theirs.get(key)).strip(chr(39))})"
                for key in sorted(mine.keys() | theirs.keys())
                if mine.get(key) != theirs.get(key)
            ]
            if len(differ) > MOST_SHOWN:
                differ[MOST_SHOWN:] = [f"and {len(differ) - MOST_SHOWN} more"]
            if differ:
                raise WordError(
                    f"{self.path} holds a run with another configuration: {', '.join(differ)}; "
                    "choose another run_dir, or fresh=true puts that run aside"
                )
        write_text(file, yaml.safe_dump(self.config, sort_keys=False))

    def result(self) -> dict[str, Any] | None:
        """What result.json says, or None where it is missing or not whole."""
        with contextlib.suppress(OSError, ValueError, RecursionError):
            result = json.loads((self.path / "result.json").read_text(encoding="utf-8"))
            return result if isinstance(result, dict) and "status" in result else None
        return None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json in one step."""
        write_text(self.path / "result.json", json.dumps(result, indent=1) + "\n")
