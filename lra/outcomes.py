"""The outcomes of runs, read from a folder that may hold anything: whole ones, broken ones, runs still going on.

Whatever cannot be read is a line with its path and its reason. Accuracies are fractions, as in result.json.
"""

from __future__ import annotations

import json
import math
import os
import re
import reprlib
import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lra.config import CIRCUMSTANCES
from lra.folders import BROKEN, read_text, reason, run_folders, visible
from lra.seal import demand_result, faulty

SCHEMA = 1
STATUSES = ("finished", "diverged", "out_of_memory", "interrupted")
# No result of ours comes near: a larger file is another thing by the same name.
LARGEST = 2**24


@dataclass(frozen=True)
class Run:
    """One result.json. `finished_at` is in seconds since 1970, `kernel` is empty for torch's own.

    config: the dotted keys and values that decide what a run computes; None where the result does not say them.
    declared: what the published set-up changes in the plain recipe; None where the result does not say it.
    predictions, metrics: what is wrong with predictions.npz and metrics.jsonl, empty where nothing is.
    """

    path: Path
    name: str
    finished_at: float
    protocol: str
    task: str
    source: str
    attn: str
    deviation: str
    seed: int
    status: str
    accuracy: float | None
    n: int
    train_accuracy: float | None
    params: int
    params_softmax: int | None
    steps: int
    seconds: float | None
    processes: int
    tokens_per_s: float | None
    peak_memory_mb: float | None
    device: str
    dtype: str
    kernel: str
    data_sha256: str
    config_sha256: str
    git_commit: str
    config: Mapping[str, Any] | None = field(default=None, hash=False)
    declared: Mapping[str, Any] | None = field(default=None, hash=False)
    predictions: str = ""
    metrics: str = ""

    @property
    def split(self) -> str:
        """How the task was split, such as `clean`; empty where the task has one way or the result does not say."""
        return str((self.config or {}).get("task.split", ""))

    @property
    def settings(self) -> str:
        """What the run computes but for its seed, as one text to compare; empty where the result does not say."""
        if self.config is None:
            return ""
        return json.dumps({key: value for key, value in self.config.items() if key != "seed"}, sort_keys=True)


def collect(root: Path) -> tuple[list[Run], list[str]]:
    """Every run below `root` in the order of its paths, and one line for each thing that could not be read."""
    runs: list[Run] = []
    problems: list[str] = []
    waiting: list[str] = []
    faults: dict[str, list[str]] = {}
    for folder in run_folders(root, problems):
        name = visible(folder.relative_to(root).as_posix())
        # A link to nowhere is there, a file that was moved away since its folder was listed is not.
        if not os.path.lexists(folder / "result.json"):
            waiting.append(name)
            continue
        try:
            runs.append(read_run(folder / "result.json", name))
        except BROKEN as error:
            problems.append(f"left out {name}/result.json: {reason(error)}")
            continue
        for file, fault in (("predictions.npz", runs[-1].predictions), ("metrics.jsonl", runs[-1].metrics)):
            if fault:
                faults.setdefault(f"{file} {fault}", []).append(name)
    if waiting:
        problems.append(f"no result yet, running or killed ({_some(waiting)}; the same words again resume")
    for what, names in faults.items():
        problems.append(f"{what} ({_some(names)}")
    return runs, problems


def _some(names: list[str]) -> str:
    return f"{len(names)}): " + ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def read_run(path: Path, name: str = "") -> Run:
    """The run that wrote `path`; a one-line ValueError where it is broken, foreign, or says the impossible."""
    finished_at = path.stat().st_mtime
    if path.stat().st_size > LARGEST:
        raise ValueError(f"larger than {LARGEST >> 20} MiB, no result.json")
    text = read_text(path)
    if not text.strip():
        raise ValueError("empty")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not whole JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"schema {reprlib.repr(found)}, this version reads {SCHEMA}")
    demand_result(record)
    take = _Reader(record)
    status = take.text("status")
    if status not in STATUSES:
        raise ValueError(f"status {reprlib.repr(status)} is not one of {', '.join(STATUSES)}")
    finished = status == "finished"
    n = take.whole("test.n", at_least=1) if finished else 0
    config = take.mapping("config")
    named = record.get("files", {}) if finished else {}
    return Run(
        path=path,
        name=name or visible(path.parent.name),
        finished_at=finished_at,
        protocol=take.text("protocol"),
        task=take.text("task"),
        source=take.text("source"),
        attn=take.text("attn"),
        deviation=deviation(take.value("deviations"), path.parent.name),
        seed=take.whole("seed"),
        status=status,
        accuracy=take.share("test.accuracy", required=finished),
        n=n,
        train_accuracy=take.share("train.accuracy"),
        params=take.whole("params"),
        params_softmax=None if take.value("params_softmax") is None else take.whole("params_softmax", at_least=1),
        steps=take.whole("steps"),
        seconds=take.number("seconds"),
        processes=1 if take.value("processes") is None else take.whole("processes", at_least=1),
        tokens_per_s=take.number("tokens_per_s"),
        peak_memory_mb=take.number("peak_memory_mb"),
        device=take.text("device"),
        dtype=take.text("dtype"),
        kernel="" if take.value("kernel") is None else take.text("kernel"),
        data_sha256=take.text("data_sha256"),
        config_sha256=take.text("config_sha256"),
        git_commit="" if take.value("git_commit") is None else take.text("git_commit"),
        config=None if config is None else {key: value for key, value in config.items() if key not in CIRCUMSTANCES},
        declared=take.mapping("declared"),
        predictions=(
            faulty_predictions(path.with_name("predictions.npz"), n, named.get("predictions.npz")) if finished else ""
        ),
        metrics=faulty(path.with_name("metrics.jsonl"), named["metrics.jsonl"]) if "metrics.jsonl" in named else "",
    )


def faulty_predictions(path: Path, n: int, sha256: str | None = None) -> str:
    """What is wrong with the predictions of a test split of `n` items, empty where nothing is.

    sha256: what the file should have, where its result says so. Of the array only the header is read, without numpy,
    which takes longer to import than everything else here.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return "is not a file"
        with zipfile.ZipFile(path) as arrays:
            # Of these two ways of packing no more is unpacked than is asked for.
            if arrays.getinfo("predictions.npy").compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                return "is broken"
            with arrays.open("predictions.npy") as file:
                head = file.read(2**12)
        shape = re.search(rb"'shape': \((\d{1,15})[,)]", head)
        if shape is None:
            return "is broken"
        found = int(shape[1])
    except FileNotFoundError:
        return "is missing"
    except (zipfile.BadZipFile, zlib.error, RuntimeError, *BROKEN, LookupError, EOFError):
        return "is broken"
    if found != n:
        return f"holds {found:,} items of a test split of {n:,}"
    return faulty(path, sha256) if sha256 else ""


def deviation(changed: Any, folder: str) -> str:
    """What a run changes in its recipe, as words: `train.lr=0.0003`.

    `changed` is the result's own account, keys to values. A result without one is known by its folder's name: the
    words before `seed<k>`, or the whole name where `run_dir=` gave it another form. `task.source=` is left out: the
    task's name shows it.
    """
    if isinstance(changed, dict):
        words = spelled(changed)
        return ",".join(word for word in words if not word.startswith("task.source="))
    match = re.fullmatch(r"(?:(.*),)?seed\d+", visible(folder))
    if match is None:
        return visible(folder)
    words = re.split(r",(?=[^,=\[\](){}]+=)", match[1] or "")
    return ",".join(word for word in words if not word.startswith("task.source="))


def spelled(changed: Mapping[str, Any]) -> list[str]:
    """Keys and values as words of a command line, with nothing in them that cannot be printed."""
    return [visible(f"{key}={json.dumps(value).strip(chr(34))}") for key, value in changed.items()]


class _Reader:
    """Typed look-ups in a result, by dotted key."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record

    def value(self, key: str) -> Any:
        value: Any = self.record
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def text(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError(f"{key} is {reprlib.repr(value)}, not a text")
        return value

    def whole(self, key: str, at_least: int = 0) -> int:
        value = self.value(key)
        # Beyond 2**53 a number is no longer a count, here or in a browser.
        if not isinstance(value, int) or isinstance(value, bool) or not at_least <= value <= 2**53:
            raise ValueError(f"{key} is {reprlib.repr(value)}, not a whole number from {at_least} on")
        return value

    def number(self, key: str, required: bool = False) -> float | None:
        value = self.value(key)
        if value is None and not required:
            return None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not (math.isfinite(value) or not required):
            raise ValueError(f"{key} is {reprlib.repr(value)}, not a finite number")
        return float(value) if math.isfinite(value) else None

    def share(self, key: str, required: bool = False) -> float | None:
        value = self.number(key, required)
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"{key} is {reprlib.repr(value)}, not between 0 and 1")
        return value

    def mapping(self, key: str) -> Mapping[str, Any] | None:
        value = self.value(key)
        if value is not None and not isinstance(value, dict):
            raise ValueError(f"{key} is {reprlib.repr(value)}, not keys and values")
        return value
