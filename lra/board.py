"""`python -m lra.board`: every run below runs/ in trackio's page, served to this machine."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
import webbrowser
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from lra.bar import bar
from lra.command import command
from lra.config import digest
from lra.folders import BROKEN, existing, read_config, read_text, reason, run_folders, visible
from lra.outcomes import read_run
from lra.shown import summary, view_config
from lra.tracker import charted, read_metrics
from lra.trackio_store import Point, Store, StoreError, View, demand
from lra.trackio_view import concluded, end
from lra.words import WordError

KEYS = {
    "runs": ("runs", "folder of the runs; trackio's files go to <runs>/trackio"),
    "port": ("0", "port of the page on this machine, 0 for a free one"),
}
# What result.json says of a run's outcome; the rest says what the run stands on, and belongs to its configuration.
OUTCOME = {"schema", "status", "test", "val", "train", "steps", "tokens_per_s", "train_seconds", "seconds"}
OUTCOME |= {"peak_memory_mb", "config", "files", "sha256"}
# Seconds between two looks at the folder while the page is open.
REFRESH_SECONDS = 5.0
FILES = ("config.yaml", "metrics.jsonl", "result.json", "tracker.id")


def show(root: Path, port: int = 0, word: str = "view=trackio", wait: Callable[[float], None] = time.sleep) -> int:
    """Put the runs below `root` into trackio and serve its page until Ctrl-C; returns the exit code.

    port: 0 takes a free one. word: what asked for trackio, should it be missing. wait: sleeps between two looks.
    """
    demand(word)
    # A shell that starts this in the background has told it to ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    close: Callable[[], None] | None = None
    try:
        board = Board(root, Store(root / "trackio"))
        with progress() as advance:
            new = board.look(advance)
        for problem in board.problems:
            print(problem)
        if not board.runs:
            print(f"no runs in {root} yet: make lra task=listops attn=mra2")
            return 0
        projects = board.projects()
        shown = ", ".join(f"{name} {count}" for name, count in projects.most_common())
        print(f"{len(board.runs)} runs in {root / 'trackio'} ({new:,} new points): {shown}")
        url, close = board.store.serve(projects.most_common(1)[0][0], port)
        print(f"{url}  ('Group by: attn' sets the seeds of an attention together; Ctrl-C ends)", flush=True)
        if has_screen():
            webbrowser.open(url)
        board.follow(wait)
    except KeyboardInterrupt:
        # Before there is a page, it is an interruption; afterwards, the way to end.
        return 130 if close is None else 0
    finally:
        if close is not None:
            close()
    return 0


def progress() -> AbstractContextManager[Callable[[int], None]]:
    """A bar on a terminal: the first look at many runs takes a while."""
    if sys.stderr.isatty():
        return bar(sys.stderr, "runs into trackio", None, passing=True)
    return nullcontext(lambda count: None)


def has_screen() -> bool:
    """Whether a browser has a window to open in: without one, Python's webbrowser takes over the terminal."""
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


class Board:
    """The runs below a folder and their views in trackio, as of the last look.

    runs: each run's view by its folder. problems: a line for each one that could not be shown.
    """

    def __init__(self, root: Path, store: Store) -> None:
        self.root, self.store = root, store
        self.runs: dict[Path, View] = {}
        self.problems: list[str] = []
        self._seen: dict[Path, object] = {}
        self._faults: dict[Path, str] = {}

    def look(self, advance: Callable[[int], None] = lambda count: None) -> int:
        """Take in what has changed since the last look; returns the number of points that trackio did not have.

        `advance` hears of each run that was looked at.
        """
        self.problems = []
        folders = list(run_folders(self.root, self.problems)) if self.root.is_dir() else []
        new = 0
        for folder in folders:
            state = stamp(folder)
            if self._seen.get(folder) != state:
                new += self._take(folder)
                self._seen[folder] = state
            advance(1)
        there = set(folders)
        self.runs = {folder: view for folder, view in self.runs.items() if folder in there}
        if new:
            self._forget_superseded()
        self.problems += [self._faults[folder] for folder in folders if folder in self._faults]
        return new

    def follow(self, wait: Callable[[float], None]) -> None:
        """Look again and again, print what is newly wrong; ends by what `wait` raises."""
        while True:
            wait(REFRESH_SECONDS)
            known = list(self.problems)
            try:
                self.look()
            except StoreError as error:
                # Another process may have it, or the disk be full for a while: the next look tries again.
                self.problems.append(str(error))
            for problem in self.problems:
                if problem not in known:
                    print(problem, flush=True)

    def projects(self) -> Counter[str]:
        """How many runs each project has."""
        return Counter(view.project for view in self.runs.values())

    def _forget_superseded(self) -> None:
        """Take out of trackio what has the name of a run below the folder and is none: it was started over."""
        ids: dict[str, dict[str, set[str]]] = {}
        for view in self.runs.values():
            ids.setdefault(view.project, {}).setdefault(view.name, set()).add(view.run_id)
        for project, names in ids.items():
            self.store.keep(project, names)

    def _take(self, folder: Path) -> int:
        self._faults.pop(folder, None)
        name = visible(folder.relative_to(self.root).as_posix())
        try:
            view = read_view(folder, self.root)
            for other, known in self.runs.items():
                if known.run_id == view.run_id and other != folder:
                    raise ValueError(f"the same configuration as {visible(other.relative_to(self.root).as_posix())}")
            new = self.store.hold(view, lambda: read_points(folder))
        except StoreError:
            raise
        except BROKEN as error:
            self.runs.pop(folder, None)
            self._faults[folder] = f"left out {name}: {reason(error)}"
            return 0
        self.runs[folder] = view
        return new


def stamp(folder: Path) -> object:
    """Equal for two moments between which none of a run's files was written."""
    stamps: list[tuple[int, int, int] | None] = []
    for name in FILES:
        try:
            about = (folder / name).stat()
        except OSError:
            stamps.append(None)
        else:
            stamps.append((about.st_ino, about.st_size, about.st_mtime_ns))
    return stamps


def read_view(folder: Path, root: Path) -> View:
    """A run as tracker=trackio shows it, from its files alone; one of BROKEN where they are not whole."""
    config, result = config_of(folder), read_result(folder)
    names = result or named(folder.relative_to(root).parts, config)
    about = {key: value for key, value in names.items() if key not in OUTCOME}
    view = View(
        run_id=read_id(folder) or (result["config_sha256"] if result else digest(config))[:16],
        group=f"{about['protocol']}/{about['task']}",
        name=f"{about['attn']}/{folder.name}",
        config=view_config(config, about),
    )
    if not re.fullmatch(r"[0-9a-f]{16}", view.run_id):
        raise ValueError(f"the id {view.run_id[:16]!r} is not 16 hexadecimal digits")
    return concluded(view, summary(result)) if result else view


def read_points(folder: Path) -> list[Point]:
    """What a run's charts hold, its end included where it has one."""
    records, written = read_records(folder)
    points = [Point(record["step"], charted(record), at) for record, at in zip(records, written, strict=True)]
    if result := read_result(folder):
        last = points[-1] if points else Point(0, {})
        points.append(end(summary(result), last.step, last.at))
    return points


def read_id(folder: Path) -> str:
    """What trackers know the run by; empty where it has had none."""
    file = folder / "tracker.id"
    return read_text(file).strip() if file.exists() else ""


def config_of(folder: Path) -> dict[str, Any]:
    """config.yaml; empty where there is none."""
    if not (folder / "config.yaml").exists():
        return {}
    return read_config(folder / "config.yaml")


def read_result(folder: Path) -> dict[str, Any]:
    """result.json, checked; empty where there is none."""
    file = folder / "result.json"
    if not file.exists():
        return {}
    read_run(file)
    return json.loads(read_text(file))


def read_records(folder: Path) -> tuple[list[dict[str, Any]], list[float]]:
    """The records of metrics.jsonl and when each was written, in seconds since 1970.

    The file says when the last one was, and `seconds` how long before it the others were. Without it all are the last.
    """
    file = folder / "metrics.jsonl"
    if not file.exists():
        return [], []
    records = list(read_metrics(file))
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or type(record.get("step")) is not int or abs(record["step"]) >= 2**53:
            raise ValueError(f"metrics.jsonl, line {number} has no step")
    last = file.stat().st_mtime
    spent = [record["seconds"] for record in records if isinstance(record.get("seconds"), int | float)]
    if len(spent) < len(records):
        return records, [last] * len(records)
    return records, [last - (spent[-1] - seconds) for seconds in spent]


def named(parts: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run without a result is called: by its path `<protocol>/<task>/<attn>/...`, or else its configuration."""
    task, attn = config.get("task"), config.get("attn")
    if not isinstance(task, Mapping) or not isinstance(attn, Mapping):
        raise ValueError("there is no result.json yet, and no config.yaml that names the run")
    names = {"protocol": config.get("protocol"), "task": task.get("name"), "attn": attn.get("name")}
    if len(parts) == 4 and parts[0] == names["protocol"]:
        names |= {"task": parts[1], "attn": parts[2]}
    for key, name in names.items():
        if not isinstance(name, str):
            raise ValueError(f"config.yaml names no {key}")
    return {**names, "source": task.get("source"), "seed": config.get("seed")}


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""

    def work(options: dict[str, str]) -> int:
        port = options["port"]
        if not port.isdecimal() or int(port) > 65535:
            raise WordError(f"port={port} must be a number from 0 to 65535")
        return show(existing(options["runs"], KEYS["runs"][0]), int(port), word="lra.board")

    return command("lra.board", "Every run in trackio's page, in the browser.", KEYS, work, words)


if __name__ == "__main__":
    sys.exit(main())
