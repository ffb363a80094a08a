"""From a run's directory to a row of our table: everything that the run says of itself is held to what is there."""

from __future__ import annotations

import datetime
import hashlib
import json
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lra import ours
from lra.compose import WRONG_WORDS, Composer, known_keys
from lra.config import digest, identity
from lra.data import DataMissing, content_sha256, load, recorded_hashes
from lra.folders import BROKEN, read_config, reason
from lra.outcomes import read_run, spelled
from lra.predictions import read as read_predictions
from lra.records import Name
from lra.run import some
from lra.seal import NAMED, faulty
from lra.tasks import task
from lra.words import explain

# The decimals of `accuracy` in result.json are those of a float: a share of n items is known to this.
CLOSE = 1e-9


class Verified(NamedTuple):
    """A run that is what it says: its directory, its row, and what it predicted (None: it did not finish)."""

    folder: Path
    row: ours.Row
    said: ours.Predictions | None


class Facts(NamedTuple):
    """What the prepared data of a task are: their sha256, and that of the test split's labels."""

    data_sha256: str
    labels_sha256: str


def verified(folder: Path, name: Name, composer: Composer) -> Verified:
    """The run in `folder`, which its path calls `name`; a one-line ValueError that says what does not hold.

    Its result has its seal and names the files beside it by their sha256; config.yaml is the configuration that the
    result was computed with, and the one that the words of the path make today; the predictions give the accuracy.
    """
    try:
        run = read_run(folder / "result.json")
        result: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except BROKEN as error:
        raise ValueError(f"result.json {_as_verb(reason(error))}") from None
    if "sha256" not in result:
        raise ValueError("result.json has no seal: it was written before results had one")
    for key in ("protocol", "task", "attn"):
        if result[key] != getattr(name, key):
            raise ValueError(f"result.json says {key}={result[key]}, the directory {key}={getattr(name, key)}")
    if run.seed != int(name.seed):
        raise ValueError(f"result.json says seed={run.seed}, the directory seed={name.seed}")
    demand_recipe(folder, name, result, composer)
    files = result["files"]
    for file in NAMED:
        if run.status == "finished" and file not in files:
            raise ValueError(f"result.json does not name {file}")
        if file in files and (fault := faulty(folder / file, files[file])):
            raise ValueError(f"{file} {fault}")
    promised = result["config"].get("train.steps")
    if run.status == "finished" and run.steps != promised:
        raise ValueError(f"finished after {run.steps} of {promised} steps")
    found = demand_accuracy(folder, run.accuracy, run.n) if run.status == "finished" else None
    packed = ours.packed(found) if found else b""
    correct = int((found.predictions == found.labels).sum()) if found else None
    day = datetime.datetime.fromtimestamp(run.finished_at, datetime.UTC).date()
    row = ours.Row(
        protocol=run.protocol,
        task=run.task,
        source=run.source,
        attn=run.attn,
        seed=run.seed,
        status=run.status,
        accuracy=correct / run.n if correct is not None else None,
        correct=correct,
        n=run.n if found else None,
        best_step=_best_step(result),
        steps=run.steps,
        declared=",".join(spelled(run.declared or {})),
        params=run.params,
        tokens_per_s=run.tokens_per_s,
        peak_memory_mb=run.peak_memory_mb,
        train_seconds=_number(result.get("train_seconds")),
        seconds=run.seconds,
        device=run.device,
        processes=run.processes,
        dtype=run.dtype,
        kernel=run.kernel,
        versions=versions(result.get("versions")),
        data_sha256=run.data_sha256,
        config_sha256=run.config_sha256,
        kernel_sha256=str(result.get("kernel_sha256") or ""),
        git_commit=run.git_commit,
        result_sha256=str(result["sha256"]),
        predictions_sha256=hashlib.sha256(packed).hexdigest() if found else "",
        date=day.isoformat(),
    )
    # As it will be read: whatever a row may not say is said here.
    return Verified(folder, ours.parsed(ours.spelled(row)), found)


def demand_recipe(folder: Path, name: Name, result: Mapping[str, Any], composer: Composer) -> None:
    """ValueError unless config.yaml is what the result was computed with, and the recipe of the path's own words."""
    try:
        config = read_config(folder / "config.yaml")
        mine, found = identity(config), digest(config)
    except FileNotFoundError:
        raise ValueError("config.yaml is missing") from None
    except BROKEN as error:
        raise ValueError(f"config.yaml cannot be read ({reason(error)})") from None
    if found != result["config_sha256"]:
        raise ValueError(
            f"config.yaml is damaged (sha256 {found[:12]}, the result says {result['config_sha256'][:12]})"
        )
    if result.get("deviations") != {} or result.get("config") != mine:
        raise ValueError("result.json does not say the configuration of config.yaml")
    words = [f"protocol={name.protocol}", f"task={name.task}", f"attn={name.attn}", f"seed={name.seed}"]
    if not all(ours.NAME.fullmatch(part) for part in (name.protocol, name.task, name.attn)):
        raise ValueError(f"{' '.join(words)} is no recipe: names have small letters, digits and _")
    try:
        recipe = identity(composer.planned(words).plain)
    except WRONG_WORDS as error:
        raise ValueError(f"{' '.join(words)} is no recipe: {explain(error, known_keys)}") from None
    differ = [
        f"{key}={_brief(mine, key)} (the recipe has {_brief(recipe, key)})"
        for key in sorted(mine.keys() | recipe.keys())
        if mine.get(key, ...) != recipe.get(key, ...)
    ]
    if differ:
        raise ValueError(f"it is not the recipe of today: {some(differ)}")


def demand_accuracy(folder: Path, accuracy: float | None, n: int) -> ours.Predictions:
    """The predictions and labels of a finished run; ValueError unless they are of its logits and give its accuracy."""
    try:
        found = read_predictions(folder)
    except ValueError as error:
        raise ValueError(str(error).removeprefix(f"{folder}/")) from None
    predictions, labels, classes = found.predictions, found.labels, found.logits.shape[1]
    if len(labels) != n:
        raise ValueError(f"predictions.npz holds {len(labels)} items of a test split of {n}")
    if classes > 256 or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"predictions.npz has labels beyond its {classes} classes")
    if not np.array_equal(found.logits.argmax(1), predictions):
        raise ValueError("predictions.npz has predictions that are not those of its logits")
    share = int((predictions == labels).sum()) / n
    if accuracy is None or abs(share - accuracy) > CLOSE:
        raise ValueError(f"its predictions are right for {share:.6f}, result.json says {accuracy:.6f}")
    return ours.Predictions(predictions.astype(np.uint8), labels.astype(np.uint8))


def prepared(data_dir: str, task_name: str, source: str) -> Facts | None:
    """What is prepared of a task in `data_dir`, None where nothing is; a one-line ValueError where it is broken."""
    facts = task({"name": task_name})
    try:
        data = load(data_dir, facts, source)
    except DataMissing:
        return None
    labels = np.asarray(data.test.labels)
    recorded = recorded_hashes(data.manifest)["test.labels"]
    if content_sha256(labels) != recorded:
        raise ValueError(f"the labels of {task_name} ({source}) in {data_dir} are damaged")
    return Facts(str(data.manifest["sha256"]), labels_sha256(labels))


def labels_sha256(labels: np.ndarray) -> str:
    """What tells the labels of a test split from others."""
    return hashlib.sha256(np.ascontiguousarray(labels, np.uint8).tobytes()).hexdigest()


def versions(said: Any) -> str:
    """What a run says of the software that it ran on: `torch 2.13.0; python 3.11.9; numpy 2.4.6`."""
    known = dict(said) if isinstance(said, dict) else {}
    order = sorted(known, key=lambda key: (key != "torch", key != "python", key))
    return "; ".join(f"{key} {known[key]}" for key in order)


def _best_step(result: Mapping[str, Any]) -> int | None:
    val = result.get("val")
    step = val.get("best_step") if isinstance(val, dict) else None
    return step if isinstance(step, int) and not isinstance(step, bool) and step > 0 else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _brief(config: Mapping[str, Any], key: str) -> str:
    return reprlib.repr(config[key]).strip("'") if key in config else "none"


def _as_verb(said: str) -> str:
    """A reason in words that follow the name of a file."""
    return said if said.startswith("is ") else f"cannot be taken: {said}"
