"""`python -m benchmarks.preparing`: time, memory and disk of preparing every data set that needs no download.

Each is prepared by the command of a user in a process of its own, below one folder that holds none of them yet.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rows import choices, write_rows
from lra import data
from lra.command import command
from lra.tasks import TASKS
from lra.words import WordError

# The sources that are made here, of whatever task.
MADE = ("generated", "synthetic")
KEYS = {
    "tasks": ("", "only these tasks, a list with commas"),
    "sources": (",".join(MADE), "only these sources"),
    "data_dir": ("", "where the data sets are prepared and stay; a temporary folder by default"),
    "out": ("benchmarks/results/preparing.csv", "the CSV file"),
}


class Row(NamedTuple):
    """A line of the CSV file: wall time, processor time of all threads, peak resident memory, and disk in MB (10^6).

    The arrays are what training reads; the records are those of TFDS.
    """

    task: str
    source: str
    examples: int
    tokens: int
    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    arrays_mb: float
    records_mb: float
    sha256: str
    device: str
    python: str
    numpy: str
    torch: str
    commit: str


def prepare(name: str, source: str, data_dir: Path) -> dict[str, Any]:
    """Prepare one data set. OSError where the command fails; it has said why."""
    facts = TASKS[name]()
    folder = data.folder(data_dir, facts, source)
    if folder.exists():
        raise WordError(f"data_dir={data_dir} has {name} ({source}) already: name another folder")
    start = time.monotonic()
    child = subprocess.Popen(
        [sys.executable, "-m", "lra.prepare", *facts.words(source).split(), f"data_dir={data_dir}"]
    )
    # Unlike the usage of all children, this is of the one alone.
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - start
    if child.returncode:
        raise OSError(f"preparing {name} ({source}) ended with exit code {child.returncode}")
    manifest = data.load(data_dir, facts, source).manifest
    splits = manifest["splits"].values()
    records = (data_dir / "tfds").glob(f"lra_{name}*/{facts.config(source)}")
    return {
        "task": name,
        "source": source,
        "examples": sum(split["examples"] for split in splits),
        "tokens": sum(split["tokens"] for split in splits),
        "wall_s": round(wall, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_rss_mb": round(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6),
        "arrays_mb": megabytes(folder),
        "records_mb": sum(map(megabytes, records)),
        "sha256": manifest["sha256"],
    }


def megabytes(folder: Path) -> float:
    """What the files below a folder take."""
    return round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6, 2)


def run(options: dict[str, str]) -> int:
    """Prepare, print, write, with a value for each of KEYS; returns the exit code."""
    tasks = choices("tasks", options["tasks"], list(TASKS))
    sources = choices("sources", options["sources"], MADE)

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in tasks:
            for source in (source for source in TASKS[name].sources if source in sources):
                row = prepare(name, source, Path(options["data_dir"] or folder))
                rows.append(row)
                disk = f"arrays {row['arrays_mb']:,.1f} MB, records {row['records_mb']:,.1f} MB"
                print(f"{name} ({source}): {row['wall_s']} s, peak {row['peak_rss_mb']:,.0f} MB, {disk}", flush=True)

    # Not before: the system counts what this process holds when it starts a child to the peak of the child.
    import torch

    from lra.machine import device_name, git_commit, versions

    stamp: dict[str, Any] = {"device": device_name(torch.device("cpu")), **versions(), "commit": git_commit()}
    print(f"{stamp['device']}; numpy {stamp['numpy']}, Python {stamp['python']}; commit {stamp['commit'] or 'none'}")
    write_rows(options["out"], Row._fields, [Row(**row, **stamp) for row in rows])
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("benchmarks.preparing", "Time, memory and disk of preparing data.", KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
