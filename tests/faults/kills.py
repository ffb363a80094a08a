"""Kill a command at an instant, look at what it left, and give the same command again."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
import yaml

from lra import checkpoint, data
from lra.outcomes import collect
from lra.tasks.listops import ListOps
from lra.tracker import read_metrics
from tests import forks
from tests.faults.injection import Injection, Operation
from tests.runs import environment, result

SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}
LOST = "kill: lost results"
HALF = "kill: half-written files taken for whole"
DIFFERENT = "kill: outcomes that differ from the undisturbed one"
REMNANTS = "kill: remnants after the second run"


class Ended(NamedTuple):
    """How an attacked process ended: its exit code, or minus the signal that ended it."""

    code: int
    said: str
    complaint: str


def faults(draw: Random, count: int) -> list[str]:
    """Names of SIGNALS in a random order, all of them equally often."""
    names = [list(SIGNALS)[k % len(SIGNALS)] for k in range(count)]
    draw.shuffle(names)
    return names


def plain(arguments: Sequence[str], folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`python <arguments>` to its end, in a process of its own from its first instant."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=folder, env=environ, text=True, capture_output=True)


def run(arguments: Sequence[str], folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`python <arguments>` to its end; what imports torch is a fork of who has it already."""
    return (forks.run if "lra.train" in arguments else plain)(arguments, folder, environ)


def at_operation(arguments: Sequence[str], folder: Path, number: int, fault: str) -> Ended | None:
    """Run the command in `folder` with `fault` at an operation below it; None where there were fewer operations."""
    injection = Injection(folder, folder.with_name(f"{folder.name}-notes"), number, fault)
    done = run(arguments, folder, environment() | injection.environ)
    if injection.count() < number:
        return None
    return Ended(done.returncode, done.stdout, done.stderr)


def operations(arguments: Sequence[str], folder: Path) -> list[Operation]:
    """What the command does to the files of `folder` in an undisturbed run."""
    injection = Injection(folder, folder.with_name(f"{folder.name}-notes"))
    done = run(arguments, folder, environment() | injection.environ)
    assert done.returncode == 0, done.stdout + done.stderr
    return injection.operations()


def again(arguments: Sequence[str], folder: Path) -> str:
    """The same command to its end, which must be a good one without a complaint; what it said."""
    done = run(arguments, folder, environment())
    said = done.stderr.splitlines()
    # A kill between the two renamings of a checkpoint leaves its spare, and a line says that the run goes on from it.
    spare = len(said) == 1 and "last.pt is missing: going on from step" in said[0]
    assert done.returncode == 0 and (spare or not said), done.stdout + done.stderr  # noqa: PT018
    return done.stdout


def note(tally: Counter[str], fault: str, phase: str) -> None:
    """Count an instant."""
    tally["kill: instants"] += 1
    tally[f"kill: instants, by {SIGNALS[fault].name}"] += 1
    tally[f"kill: instants, in {phase}"] += 1


def assert_ended_well(ended: Ended, fault: str) -> None:
    """SIGKILL says nothing. The others end with their code and one line, or come too late to stop anything."""
    number = SIGNALS[fault]
    if fault == "kill":
        assert (ended.code, ended.complaint) == (-number, ""), ended
    elif ended.code == 0:
        assert ended.complaint == "", ended
    else:
        assert ended.code == 128 + number, ended
        assert len(ended.complaint.splitlines()) == 1, ended
        assert "Traceback" not in ended.complaint


def files(folder: Path) -> set[str]:
    """The files and links below a folder, by their paths; without the spares of checkpoints and what trackers keep."""
    return {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if not path.is_dir() and ".spare." not in path.name and "views" not in path.parts
    }


def half_written(folder: Path) -> list[str]:
    """What stands in a run's folder under its final name and is not whole."""
    found = []
    readers: dict[str, Callable[[Path], object]] = {
        "run/config.yaml": lambda path: yaml.safe_load(path.read_text())["task"],
        "run/tracker.id": lambda path: re.fullmatch(r"[0-9a-f]{16}\n", path.read_text())[0],  # type: ignore[index]
        "run/metrics.jsonl": lambda path: list(read_metrics(path)),
        "run/predictions.npz": _arrays,
        "run/result.json": lambda path: json.loads(path.read_text())["status"],
        "run/checkpoint/*.pt": lambda path: checkpoint.load(path, torch.device("cpu"))["model"],
    }
    for pattern, read in readers.items():
        for path in folder.glob(pattern):
            try:
                read(path)
            except Exception as error:
                found.append(f"{path}: {error!r}")
    found += [line for line in collect(folder)[1] if not line.startswith("no result yet")]
    return found + half_prepared(folder / "data")


def half_prepared(data_dir: Path) -> list[str]:
    """What is wrong with the data of the tiny runs, where there are some."""
    try:
        held = data.load(data_dir, ListOps(), "synthetic")
    except data.DataMissing:
        return []
    except ValueError as error:
        return [str(error)]
    return [
        f"{name}.{key}"
        for name, facts in held.manifest["splits"].items()
        for key, sha256 in facts["sha256"].items()
        if data.content_sha256(getattr(getattr(held, name), key)) != sha256
    ]


def _arrays(path: Path) -> list[np.ndarray]:
    with np.load(path) as arrays:
        return [arrays[name] for name in arrays.files]


def finished(folder: Path) -> bytes | None:
    """The result of a run that counts as finished."""
    path = folder / "run" / "result.json"
    return path.read_bytes() if path.exists() and result(path.parent)["status"] == "finished" else None


def copied(folder: Path, to: Path) -> Path:
    """A folder of its own with the data of another one, so that a run need not prepare them."""
    shutil.copytree(folder / "data", to / "data")
    return to


def heeds_signals(process: subprocess.Popen[str]) -> None:
    """Wait until a process answers SIGTERM itself: before that the system ends it in silence."""
    bit = 1 << (signal.SIGTERM - 1)
    while process.poll() is None:
        (caught,) = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{process.pid}/status").read_text())
        if int(caught, 16) & bit:
            return
        os.sched_yield()
