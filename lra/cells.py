"""Runs read from disk, grouped into what may be averaged, beside the published numbers.

A cell is the runs of one protocol, task, source of data, attention, deviation from the recipe and data hash, which
differ in their seed. Accuracies are fractions in `Run`, as in result.json, and percent in `Published` and `Cell`.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import reprlib
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lra.budget import excess
from lra.intervals import student_interval, wilson
from lra.words import WordError, choose

SCHEMA = 1
PUBLISHED = Path(__file__).resolve().parents[1] / "runs" / "published"
STATUSES = ("finished", "diverged", "out_of_memory", "interrupted")
# The sources of a task's own distribution, which the published numbers speak of. The task's plain name means the first.
SOURCES = {
    "listops": ("release", "generated"),
    "text": ("imdb",),
    "retrieval": ("aan",),
    "image": ("cifar10",),
    "pathfinder": ("release", "generated"),
    "pathx": ("release", "generated"),
}
# Options that make another task of a task: nothing was published for them under its name.
OTHER_TASK = re.compile(r"(?:^|,)task\.(?:resolution|difficulty)=")
# What needs no attention at all on ListOps: test accuracies in percent.
LISTOPS_FLOORS = {"majority class": 17.1, "root-operator classifier": 36.2}
# How far a published value is from its source, best first, and the mark that it carries in tables.
MARKS = {"read": "", "secondary": "*", "unverified": "?"}
# What stands at the name of an attention whose parameters are beyond the benchmark's rule.
OVER_BUDGET = "†"
# The paper that a protocol is taken from: its value is preferred where several papers print one.
OWN_PAPER = {"mlpen": "https://arxiv.org/abs/2207.10284", "google": "https://arxiv.org/abs/2011.04006"}


@dataclass(frozen=True)
class Run:
    """One result.json. Accuracies are fractions, `finished_at` is in seconds, `kernel` is empty for torch's own."""

    path: Path
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
    tokens_per_s: float | None
    peak_memory_mb: float | None
    device: str
    dtype: str
    kernel: str
    data_sha256: str
    config_sha256: str


@dataclass(frozen=True)
class Published:
    """One published accuracy in percent, None where the paper prints FAIL."""

    source: str
    url: str
    protocol: str
    model: str
    attn: str
    task: str
    accuracy: float | None
    status: str
    note: str

    @property
    def text(self) -> str:
        """The value, such as `37.2`, or FAIL."""
        return "FAIL" if self.accuracy is None else str(self.accuracy)

    @property
    def marked(self) -> str:
        """The value with the mark of its status, such as `37.2?`."""
        return self.text + MARKS[self.status]


@dataclass(frozen=True)
class Cell:
    """Runs that differ in their seed alone, one per seed, beside the published value. Accuracies in percent."""

    protocol: str
    task: str
    source: str
    attn: str
    deviation: str
    data_sha256: str
    runs: tuple[Run, ...]
    superseded: tuple[Run, ...] = ()
    published: Published | None = None
    elsewhere: tuple[Published, ...] = ()

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.status == "finished"]

    @property
    def accuracy(self) -> float | None:
        return _mean(run.accuracy for run in self.finished)

    @property
    def train_accuracy(self) -> float | None:
        return _mean(run.train_accuracy for run in self.finished)

    @property
    def interval(self) -> tuple[float, float, str] | None:
        """Low, high and kind of the 95% interval: `wilson` over one run's test set, `student` over several seeds."""
        accuracies = [run.accuracy for run in self.finished if run.accuracy is not None]
        if not accuracies:
            return None
        if len(accuracies) == 1:
            n = self.finished[0].n
            low, high = wilson(accuracies[0] * n, n)
            return 100 * low, 100 * high, "wilson"
        low, high = student_interval(accuracies)
        return 100 * max(low, 0.0), 100 * min(high, 1.0), "student"

    @property
    def difference(self) -> float | None:
        """Ours minus the published value, in points."""
        if self.accuracy is None or self.published is None or self.published.accuracy is None:
            return None
        return self.accuracy - self.published.accuracy

    @property
    def excess(self) -> str:
        """Parameters beyond the benchmark's 10% more than softmax's, such as `+502%`; empty where none is beyond."""
        return next(filter(None, (excess(run.params, run.params_softmax) for run in self.runs)), "")

    @property
    def attn_name(self) -> str:
        """The attention, marked where its parameters are beyond the benchmark's rule."""
        return self.attn + (OVER_BUDGET if self.excess else "")

    @property
    def task_name(self) -> str:
        """The task's plain name where its data are the real ones, with the source in parentheses where they are not."""
        real = SOURCES.get(self.task, (None,))[0]
        return self.task if self.source == real else f"{self.task} ({self.source})"

    def count(self, status: str) -> int:
        return sum(run.status == status for run in self.runs)

    def only(self, fact: Callable[[Run], Any]) -> Any:
        """What `fact` says of every finished run (of every run, where none finished), or None where they disagree."""
        facts = {fact(run) for run in self.finished or self.runs}
        return facts.pop() if len(facts) == 1 else None

    @property
    def tokens_per_s(self) -> float | None:
        """Mean over finished runs; None where they ran on different devices, which no mean describes."""
        if self.only(lambda run: run.device) is None:
            return None
        speeds = [run.tokens_per_s for run in self.finished if run.tokens_per_s is not None]
        return statistics.fmean(speeds) if speeds else None

    @property
    def peak_memory_mb(self) -> float | None:
        """Largest of the finished runs; None where they ran on different devices."""
        if self.only(lambda run: run.device) is None:
            return None
        return max((run.peak_memory_mb for run in self.finished if run.peak_memory_mb is not None), default=None)


def collect(root: Path) -> tuple[list[Run], list[str]]:
    """Every run below `root` in the order of its paths, and one line per result.json that could not be read."""
    runs: list[Run] = []
    problems: list[str] = []
    without_result: list[str] = []
    for folder, files in _run_folders(root):
        name = folder.relative_to(root).as_posix()
        if "result.json" not in files:
            without_result.append(name)
            continue
        try:
            runs.append(read_run(folder / "result.json"))
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            problems.append(f"left out {name}/result.json: {error}")
    if without_result:
        shown = ", ".join(without_result[:3]) + (", ..." if len(without_result) > 3 else "")
        problems.append(
            f"no result yet, running or killed ({len(without_result)}): {shown}; the same words again resume"
        )
    return runs, problems


def existing(folder: str, default: str) -> Path:
    """The folder of runs. The default one may be missing, as before the first run; another one may not."""
    root = Path(folder)
    if folder != default and not root.is_dir():
        raise WordError(f"runs={folder} is not a folder")
    return root


def select(
    runs: Sequence[Run], published: Sequence[Published], wanted: Mapping[str, str]
) -> tuple[list[Run], list[Published]]:
    """What agrees with `wanted`, names with commas by key. A name that no run and no paper has is a WordError."""
    for key, names in wanted.items():
        known = sorted({getattr(item, key) for item in (*runs, *published)} - {""})
        chosen = [choose(key, name, known) for name in names.split(",")]
        runs = [run for run in runs if getattr(run, key) in chosen]
        published = [value for value in published if getattr(value, key) in chosen]
    return list(runs), list(published)


def _run_folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    for folder, folders, files in os.walk(root):
        at_root = Path(folder) == root
        folders[:] = sorted(name for name in folders if not _put_aside(name, at_root))
        if "result.json" in files or "metrics.jsonl" in files:
            yield Path(folder), files


def _put_aside(name: str, at_root: bool) -> bool:
    return name.startswith(".") or ".old-" in name or (at_root and name in ("published", "report", "wandb"))


def read_run(path: Path) -> Run:
    """The run that wrote `path`; a one-line ValueError where it is broken, foreign, or says the impossible."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"not whole JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        found = record.get("schema") if isinstance(record, dict) else type(record).__name__
        raise ValueError(f"schema {reprlib.repr(found)}, this version reads {SCHEMA}")
    take = _Reader(record)
    status = take.text("status")
    if status not in STATUSES:
        raise ValueError(f"status {reprlib.repr(status)} is not one of {', '.join(STATUSES)}")
    finished = status == "finished"
    return Run(
        path=path,
        finished_at=path.stat().st_mtime,
        protocol=take.text("protocol"),
        task=take.text("task"),
        source=take.text("source"),
        attn=take.text("attn"),
        deviation=deviation(take.value("deviations"), path.parent.name),
        seed=take.whole("seed"),
        status=status,
        accuracy=take.share("test.accuracy", required=finished),
        n=take.whole("test.n", at_least=1) if finished else 0,
        train_accuracy=take.share("train.accuracy"),
        params=take.whole("params"),
        params_softmax=None if take.value("params_softmax") is None else take.whole("params_softmax", at_least=1),
        steps=take.whole("steps"),
        tokens_per_s=take.number("tokens_per_s"),
        peak_memory_mb=take.number("peak_memory_mb"),
        device=take.text("device"),
        dtype=take.text("dtype"),
        kernel="" if take.value("kernel") is None else take.text("kernel"),
        data_sha256=take.text("data_sha256"),
        config_sha256=take.text("config_sha256"),
    )


def deviation(changed: Any, folder: str) -> str:
    """What a run changes in its recipe, as words: `train.lr=0.0003`.

    `changed` is the result's own account, keys to values. A result without one is known by its folder's name: the
    words before `seed<k>`, or the whole name where `run_dir=` gave it another form. `task.source=` is left out: the
    task's name shows it.
    """
    if isinstance(changed, dict):
        words = [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in changed.items()]
        return ",".join(word for word in words if not word.startswith("task.source="))
    match = re.fullmatch(r"(?:(.*),)?seed\d+", folder)
    if match is None:
        return folder
    words = re.split(r",(?=[^,=\[\](){}]+=)", match[1] or "")
    return ",".join(word for word in words if not word.startswith("task.source="))


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
        if not isinstance(value, str):
            raise ValueError(f"{key} is {reprlib.repr(value)}, not a text")
        return value

    def whole(self, key: str, at_least: int = 0) -> int:
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
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


def read_published(folder: Path = PUBLISHED) -> list[Published]:
    """Every row of `folder`/*.csv; ValueError names the file and line that breaks a rule."""
    rows: list[Published] = []
    for path in sorted(folder.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                try:
                    rows.append(_published(row))
                except (TypeError, KeyError, ValueError) as error:
                    raise ValueError(f"{path}, line {line}: {error}") from None
    return rows


def _published(row: Mapping[str, Any]) -> Published:
    value = Published(**{**row, "accuracy": float(row["accuracy"]) if row["accuracy"] else None})
    if value.status not in MARKS:
        raise ValueError(f"status {value.status!r} is not one of {', '.join(MARKS)}")
    if value.accuracy is not None and not 0 <= value.accuracy <= 100:
        raise ValueError(f"accuracy {value.accuracy} is not between 0 and 100")
    return value


def cells(runs: Iterable[Run], published: Sequence[Published] = ()) -> list[Cell]:
    """Group `runs` into cells, softmax first in each task; of two runs with one seed the newer counts."""
    groups: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run.protocol, run.task, run.source, run.attn, run.deviation, run.data_sha256].append(run)
    known: dict[tuple[str, str, str], list[Published]] = defaultdict(list)
    for value in sorted(published, key=preference):
        known[value.protocol, value.attn, value.task].append(value)

    table = []
    for key in sorted(groups, key=_order):
        protocol, task, source, attn, words, data = key
        members = sorted(groups[key], key=lambda run: (run.finished_at, run.path))
        newest = {run.seed: run for run in members}
        same_task = source in SOURCES.get(task, ()) and not OTHER_TASK.search(words)
        values = known[protocol, attn, task] if same_task else []
        table.append(
            Cell(
                protocol=protocol,
                task=task,
                source=source,
                attn=attn,
                deviation=words,
                data_sha256=data,
                runs=tuple(newest[seed] for seed in sorted(newest)),
                superseded=tuple(run for run in members if newest[run.seed] is not run),
                published=values[0] if values else None,
                elsewhere=tuple(value for value in values[1:] if value.url != values[0].url),
            )
        )
    return table


def preference(value: Published) -> tuple[bool, int]:
    """The protocol's own paper first, then what is nearest to its source."""
    return value.url != OWN_PAPER.get(value.protocol), list(MARKS).index(value.status)


def protocol_order(protocol: str) -> tuple[int, str]:
    """The place of a protocol in tables: those that runs follow first, the default one before all."""
    return list(OWN_PAPER).index(protocol) if protocol in OWN_PAPER else len(OWN_PAPER), protocol


def _order(key: tuple[str, ...]) -> tuple[Any, ...]:
    protocol, task, source, attn, words, data = key
    place = list(SOURCES).index(task) if task in SOURCES else len(SOURCES)
    return protocol_order(protocol), place, task, source, attn != "softmax", attn, words, data


def _mean(shares: Iterable[float | None]) -> float | None:
    """Mean of fractions in percent, None where there are none."""
    known = [share for share in shares if share is not None]
    return 100 * statistics.fmean(known) if known else None
