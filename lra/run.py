"""One run's directory: who holds it, what it is, what came out of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import reprlib
import secrets
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import yaml

from lra import lock
from lra.config import identity
from lra.files import remove_parts, spare, write_text
from lra.folders import read_config, visible
from lra.seal import NAMED, demand_result, faulty, file_sha256, sealed
from lra.words import WordError

# What asks a run to stop with everything saved. SIGUSR2 is how a cluster announces the end of a job's time.
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2)

# Keys that are named where two configurations differ.
MOST_SHOWN, WIDEST = 5, 220


def some(differ: Sequence[str]) -> str:
    """The first of the keys that differ, and how many there are more."""
    shown = ", ".join(differ[:MOST_SHOWN])
    more = f" and {len(differ) - MOST_SHOWN} more" if len(differ) > MOST_SHOWN else ""
    return f"{shown if len(shown) <= WIDEST else f'{shown[:WIDEST]}...'}{more}"


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

    def demand(self) -> None:
        """Raise Failed where the directory is no longer the one that this process holds."""

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
    it has anything to keep leaves no directory, and the old one in its place. Where somebody takes the directory away
    nothing more is written below its path: each file goes by `demand`.
    """

    def __init__(self, path: Path, config: Mapping[str, Any]) -> None:
        super().__init__(path, config)
        self.aside: Path | None = None
        self.made = [folder for folder in (path, *path.parents) if not folder.exists()]
        try:
            self.hold()
        except OSError:
            self.unmake()
            raise
        try:
            if config["fresh"] and (path / "config.yaml").exists():
                self.put_aside()
            self.claim()
            for folder in (path, path / "checkpoint"):
                remove_parts(folder)
        except BaseException as error:
            self.close_after(error)
            raise

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_after(error)

    def close_after(self, error: BaseException | None) -> None:
        """Let go; where the run ended by an error, leave no empty directory, and say so if the directory was taken."""
        try:
            if error is None:
                return
            if not self.is_here():
                if isinstance(error, OSError):
                    self.demand()
            elif (self.made or self.aside) and self.is_empty():
                self.withdraw()
        finally:
            self.close()

    def close(self) -> None:
        self.lock.close()

    def is_here(self) -> bool:
        """Whether the path still leads to the directory whose lock this process holds."""
        return lock.is_of(self.lock, self.path)

    def demand(self) -> None:
        if not self.is_here():
            gone = "has been removed or renamed"
            what = "is another directory now, or its .lock another file" if self.path.exists() else gone
            raise Failed(f"{self.path} {what}: this run writes nothing more there; the same words start again")

    def is_empty(self) -> bool:
        """Whether nothing of a run is here, only what says whose directory it is."""
        return {file.name for file in self.path.iterdir()} <= {".lock", "config.yaml"}

    def withdraw(self) -> None:
        """Leave things as they were before this run came."""
        for name in ("config.yaml", lock.NAME):
            (self.path / name).unlink(missing_ok=True)
        if self.aside:
            # Another process may have come to need the place.
            with contextlib.suppress(OSError):
                os.rename(self.aside, self.path)
                print(f"put the old run back as {self.path}")
        self.unmake()

    def unmake(self) -> None:
        """Remove the folders that this run made and nobody has come to need."""
        with contextlib.suppress(OSError):
            for folder in self.made:
                folder.rmdir()

    def tracker_id(self) -> str:
        """What trackers know this run by: drawn at its first start, kept for every later one, new with fresh=true."""
        file = self.path / "tracker.id"
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if re.fullmatch(r"[0-9a-f]{16}", known := file.read_text(encoding="utf-8").strip()):
                return known
        drawn = secrets.token_hex(8)
        write_text(file, f"{drawn}\n", self.demand)
        return drawn

    def hold(self) -> None:
        """Take the lock or name the process that has it."""
        try:
            self.lock: IO[str] = lock.take(self.path)
        except lock.Held as held:
            raise Busy(f"{self.path} is being trained by process {held}; wait for it or stop it") from None

    def put_aside(self) -> None:
        """Keep an old run as `<name>.old-<k>` and start with an empty directory."""
        taken = 1
        while (aside := self.path.with_name(f"{self.path.name}.old-{taken}")).exists():
            taken += 1
        os.rename(self.path, aside)
        self.aside = aside
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
            if differ:
                raise WordError(
                    f"{self.path} holds a run with another configuration: {some(differ)}; "
                    "choose another run_dir, or fresh=true puts that run aside"
                )
        write_text(file, yaml.safe_dump(self.config, sort_keys=False), self.demand)

    def result(self) -> dict[str, Any] | None:
        """What result.json says; None where it is missing, and where a checkpoint can make again what is damaged.

        One line on stderr tells what is damaged.
        """
        file = self.path / "result.json"
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(result, dict) or "status" not in result:
                raise ValueError("is not a result")
            demand_result(result)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            said = str(error) if str(error).startswith("is ") else "is not whole"
            print(f"{file} {said}: the run goes on from its last checkpoint", file=sys.stderr)
            return None
        return None if result["status"] == "finished" and self.is_incomplete(result) else result

    def is_incomplete(self, result: Mapping[str, Any]) -> bool:
        """Whether predictions.npz is not the one that a finished result names, and can be made again."""
        files = result.get("files", {})
        faults = {name: faulty(self.path / name, files[name]) for name in NAMED if name in files}
        again = bool(faults.get("predictions.npz")) and (self.last.exists() or spare(self.last).exists())
        for name, fault in faults.items():
            made = name == "predictions.npz" and again
            outcome = "the last checkpoint makes it again" if made else "fresh=true runs the whole again"
            if fault:
                print(f"{self.path / name} {fault}: {outcome}", file=sys.stderr)
        return again

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json in one step, with the sha256 of the files beside it and of itself."""
        # A run that will go on writes more.
        named = () if result["status"] == "interrupted" else NAMED
        files = {name: file_sha256(self.path / name) for name in named if (self.path / name).exists()}
        text = json.dumps(sealed({**result, "files": files}), indent=1) + "\n"
        write_text(self.path / "result.json", text, self.demand)
