"""How long a run will take, from the runs that were."""

from __future__ import annotations

import contextlib
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lra.folders import read_config, run_folders
from lra.records import Name, last_record, name_of, number, whole
from lra.seal import demand_result

# What a run may change in its recipe and still take as long for each step. Steps are scaled, the source is asked for.
FREE = frozenset(
    {"task.source", "model.dropout", "model.init"}
    | {f"train.{key}" for key in ("steps", "lr", "warmup", "schedule", "weight_decay", "beta2", "eps")}
    | {f"train.{key}" for key in ("cycle_momentum", "select")}
)


class Kind(NamedTuple):
    """What runs have in common whose steps cost the same on one device; `words` are changes that cost time."""

    protocol: str
    task: str
    source: str
    attn: str
    words: frozenset[str]
    processes: int


class Setting(NamedTuple):
    """What a run stood on; `device` is None for a run without a result yet."""

    device: str | None
    dtype: str
    kernel: str


@dataclass(frozen=True)
class Timed:
    """`seconds` that `steps` took, and the test after them (None: not known). When is seconds since the epoch."""

    when: float
    setting: Setting
    steps: int
    seconds: float
    test: float | None
    finished: bool
    evaluated: bool


@dataclass(frozen=True)
class Estimate:
    """Seconds of wall clock for a whole run, and what they rest on, such as `3 earlier runs`."""

    seconds: float
    basis: str
    same_device: bool


class Pace:
    """What the runs below a folder took, by what they have in common."""

    def __init__(self, runs: Mapping[Kind, Sequence[Timed]]) -> None:
        self.runs = runs

    @classmethod
    def read(cls, root: Path) -> Pace:
        """The pace of every run below `root`; a run that cannot be read is left out."""
        runs: dict[Kind, list[Timed]] = defaultdict(list)
        for folder in run_folders(root, []):
            if found := read_run(folder, root):
                kind, timed = found
                runs[kind].append(timed)
        return cls(runs)

    def estimate(
        self, protocol: str, task: str, source: str, attn: str, steps: int, device: str = "auto",
        deviations: Mapping[str, Any] | None = None, processes: int = 1,
    ) -> Estimate | None:  # fmt: skip
        """What a run of `steps` steps will take; None where nothing comparable was run.

        device: `auto`, `cpu`, `cuda` or a name as in result.json. deviations: what the run changes in its recipe;
        runs count whose own changes are the same, but for those that cost no time. Of runs on different devices,
        kernels or dtypes those on the newest's count, on the device asked for if there is one.
        """
        words = costly(spelled(deviations or {}))
        known = self.runs.get(Kind(protocol, task, source, attn, words, processes), ())
        if not known:
            return None
        here = [run for run in known if is_on(run.setting.device, device)]
        runs = [run for run in here or known if run.evaluated] or here or known
        newest = max(runs, key=lambda run: run.when).setting
        runs = [run for run in runs if run.setting == newest]
        tests = [run.test for run in runs if run.test is not None]
        seconds = steps * sum(run.seconds for run in runs) / sum(run.steps for run in runs)
        seconds += sum(tests) / len(tests) if tests else 0.0
        several = len({run.setting.device for run in known}) > 1
        return Estimate(seconds, basis(runs, bool(tests), bool(here), several), bool(here))

    def seconds(
        self, protocol: str, task: str, source: str, attn: str, steps: int, device: str = "auto",
        deviations: Mapping[str, Any] | None = None, processes: int = 1,
    ) -> float | None:  # fmt: skip
        """`estimate` from runs on the device asked for alone."""
        found = self.estimate(protocol, task, source, attn, steps, device, deviations, processes)
        return found.seconds if found and found.same_device else None


def basis(runs: Sequence[Timed], tested: bool, here: bool, several: bool) -> str:
    """What an estimate rests on and what it leaves out, in words."""
    unfinished = "unfinished " if not any(run.finished for run in runs) else ""
    words = [f"{len(runs)} {unfinished or 'earlier '}run{'s' if len(runs) > 1 else ''}"]
    device = runs[0].setting.device
    if device is None:
        words.append("device not known")
    elif not here:
        words.append(f"another device ({device})")
    elif several:
        words.append(f"on {device}")
    if not runs[0].evaluated:
        words.append("training steps alone, without evaluations")
    elif not tested:
        words.append("without the test")
    return ", ".join(words)


def is_on(device: str | None, wanted: str) -> bool:
    """Whether a device of a result is the one asked for; a result names a CPU with its threads."""
    if device is None or wanted in ("", "auto"):
        return device is not None
    if wanted in ("cpu", "cuda"):
        return (wanted == "cpu") == bool(re.search(r", \d+ threads$", device))
    return device == wanted


def spelled(deviations: Mapping[str, Any]) -> list[str]:
    """Changes of a recipe as the words of a run's folder."""
    words = (f"{key}={json.dumps(value).strip(chr(34))}" for key, value in deviations.items())
    return [re.sub(r"[^\w.=,+\[\]-]", "_", word) for word in words]


def costly(words: Sequence[str]) -> frozenset[str]:
    """The words that change what a step costs."""
    return frozenset(word for word in words if word.partition("=")[0] not in FREE)


def read_run(folder: Path, root: Path) -> tuple[Kind, Timed] | None:
    """What a run has in common with others and what it took, or None where it does not say enough."""
    last = last_record(folder / "metrics.jsonl")
    try:
        result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
        if isinstance(result, dict):
            demand_result(result)
    except FileNotFoundError:
        return under_way(folder, name_of(folder, root), last)
    except (OSError, ValueError, RecursionError):
        return None
    return ended(folder, result, last) if isinstance(result, dict) else None


def ended(folder: Path, result: dict[str, Any], last: dict[str, Any] | None) -> tuple[Kind, Timed] | None:
    """A run with a result, interrupted ones included."""
    names = [result.get(key) for key in ("protocol", "task", "source", "attn", "device", "dtype")]
    changed = result.get("deviations")
    if not all(isinstance(name, str) for name in names) or not isinstance(changed, dict):
        return None
    protocol, task, source, attn, device, dtype = map(str, names)
    finished = result.get("status") == "finished"
    total, steps = number(result, "seconds"), whole(result, "steps")
    seconds, test, evaluated = total, 0.0 if finished else None, total is not None
    if last and number(last, "seconds") is not None and whole(last, "step"):
        seconds, steps, evaluated = number(last, "seconds"), whole(last, "step"), True
        test = max(total - (seconds or 0.0), 0.0) if finished and total is not None else None
    elif total is None:
        seconds, test = number(result, "train_seconds"), None
    if not steps or seconds is None or seconds <= 0:
        return None
    kind = Kind(protocol, task, source, attn, costly(spelled(changed)), whole(result, "processes") or 1)
    setting = Setting(device, dtype, str(result.get("kernel") or ""))
    when = (folder / "result.json").stat().st_mtime
    return kind, Timed(when, setting, steps, seconds, test, finished, evaluated)


def under_way(folder: Path, name: Name | None, last: dict[str, Any] | None) -> tuple[Kind, Timed] | None:
    """A run without a result: its path and its config.yaml say what it is, its last record what it took."""
    if not name or not last or any("..." in word for word in name.words):
        return None
    seconds, steps = number(last, "seconds"), whole(last, "step")
    if not steps or seconds is None or seconds <= 0:
        return None
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        file = folder / "config.yaml"
        source = read_config(file)["task"]["source"]
        kind = Kind(name.protocol, name.task, str(source), name.attn, costly(name.words), 1)
        when = (folder / "metrics.jsonl").stat().st_mtime
        return kind, Timed(when, Setting(None, "", ""), steps, seconds, None, False, True)
    return None
