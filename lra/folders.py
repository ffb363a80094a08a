"""A folder of runs, whatever lies in it: where the runs are, and their files as text."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lra.words import WordError

# Folders at the top of runs/ that hold no runs.
NO_RUNS = ("published", "report", "trackio", "wandb")
# What stands in a result.json or in a name may be anything; these are what reading it may raise.
BROKEN = (OSError, ValueError, OverflowError, RecursionError, MemoryError)

# Many times what a run writes.
LARGEST_CONFIG, DEEPEST_CONFIG = 1 << 20, 30


def run_folders(root: Path, problems: list[str]) -> Iterator[Path]:
    """The folders below `root` that hold a run's files, in the order of their paths; links are followed, never twice.

    A folder that cannot be read becomes a line of `problems`.
    """
    seen: set[tuple[int, int]] = set()

    def walk(folder: Path) -> Iterator[Path]:
        try:
            about = folder.stat()
            if (about.st_dev, about.st_ino) in seen:
                return
            seen.add((about.st_dev, about.st_ino))
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            folders = [entry.name for entry in entries if _is_folder(entry)]
        except FileNotFoundError:
            # Moved away since its name was read.
            return
        except OSError as error:
            problems.append(f"left out {visible(folder.relative_to(root).as_posix())}: {reason(error)}")
            return
        if {"result.json", "metrics.jsonl"} & {entry.name for entry in entries}:
            yield folder
        for name in folders:
            if name != "result.json" and not _put_aside(name, folder == root):
                yield from walk(folder / name)

    yield from walk(root)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        # A link that leads round in circles.
        return False


def _put_aside(name: str, at_root: bool) -> bool:
    return name.startswith(".") or ".old-" in name or (at_root and name in NO_RUNS)


def existing(folder: str, default: str) -> Path:
    """The folder of runs. The default one may be missing, as before the first run; another one may not."""
    root = Path(folder)
    if folder != default and not root.is_dir():
        raise WordError(f"runs={folder} is not a folder")
    return root


def visible(name: str) -> str:
    """A name as tables can show it: what cannot be printed, line ends among it, as escapes."""
    return name if name.isprintable() else name.encode("unicode_escape").decode("ascii")


def reason(error: BaseException) -> str:
    """One line for what reading a file raised."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return visible((said.splitlines() or [""])[0])[:160]


def read_config(path: Path) -> dict[str, Any]:
    """A config.yaml as keys and values; a one-line ValueError that names the file where it is none."""
    # Here, because most readers of runs have no use for it.
    import yaml

    try:
        text = read_text(path)
        if len(text) > LARGEST_CONFIG:
            raise ValueError(f"larger than {LARGEST_CONFIG >> 10} KiB")
        depth = 0
        # Before anything is made of it: an alias may stand for billions of values, and depth takes its square in time.
        for event in yaml.parse(text, yaml.CSafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("it has an alias")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST_CONFIG:
                raise ValueError(f"deeper than {DEEPEST_CONFIG} levels")
        config = yaml.load(text, yaml.CSafeLoader)
        if not isinstance(config, dict):
            raise ValueError(f"it holds {type(config).__name__}, not keys and values")
    except OSError:
        raise
    except Exception as error:  # a tag before a value that is none raises nearly anything
        raise ValueError(f"{path} is not readable as a configuration ({reason(error)})") from error
    return config


def read_text(path: Path) -> str:
    """A regular file as text; anything else by its name (a folder, a pipe) is a ValueError instead of a wait."""
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ValueError("not a file")
    return path.read_text(encoding="utf-8")
