"""Runs of recipes as `make collect` takes them: a tiny real one, in the clothes of a whole one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lra.compose import composer
from lra.config import digest, identity
from lra.data import SEAL
from lra.seal import file_sha256, sealed
from tests.runs import train

RECIPES: dict[str, dict[str, Any]] = {}


def trained(folder: Path) -> Path:
    """The directory of a real run of 40 steps on synthetic ListOps, its data in `folder`/data."""
    train(folder)
    return folder / "run"


def recipe(attn: str) -> dict[str, Any]:
    """The configuration of ListOps' recipe, composed once."""
    if attn not in RECIPES:
        with composer() as composing:
            RECIPES[attn] = composing.planned(["protocol=mlpen", "task=listops", f"attn={attn}", "seed=0"]).plain
    return RECIPES[attn]


def dressed(real: Path, root: Path, attn: str = "mra2", seed: int = 0, right: int = -1, **changes: Any) -> Path:
    """The run `real` as `root`/mlpen/listops/<attn>/seed<k>: its files and scores, but a recipe's configuration.

    right: of its predictions so many are right, 0 to n; the real ones by default. changes: to result.json, None removes
    a key; the seal is that of the whole.
    """
    folder = root / "mlpen" / "listops" / attn / f"seed{seed}"
    folder.mkdir(parents=True)
    for file in ("metrics.jsonl", "predictions.npz", "log.txt"):
        if (real / file).exists():
            shutil.copy(real / file, folder / file)
    config = {**recipe(attn), "seed": seed}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    result = json.loads((real / "result.json").read_text())
    if right >= 0:
        with np.load(folder / "predictions.npz") as arrays:
            labels = arrays["labels"]
        given = np.where(np.arange(len(labels)) < right, labels, (labels + 1) % 10)
        logits = np.eye(10, dtype=np.float32)[given]
        np.savez(folder / "predictions.npz", logits=logits, predictions=logits.argmax(1), labels=labels)
        result["test"]["accuracy"] = right / len(labels)
    result |= {"source": "generated", "attn": attn, "seed": seed, "deviations": {}, "steps": config["train"]["steps"]}
    result |= {"config": identity(config), "config_sha256": digest(config)} | changes
    if result["status"] != "finished":
        del result["test"], result["train"]
        (folder / "predictions.npz").unlink()
    seal(folder, {key: value for key, value in result.items() if value is not None})
    return folder


def seal(folder: Path, result: dict[str, Any]) -> None:
    """Write a result with its seal and the sha256 of the files that are there."""
    there = [name for name in ("metrics.jsonl", "predictions.npz") if (folder / name).exists()]
    whole = {**result, "files": {name: file_sha256(folder / name) for name in there}}
    (folder / "result.json").write_text(json.dumps(sealed(whole), indent=1) + "\n")


def reseal(folder: Path, **changes: Any) -> None:
    """Change a result and seal it again, as a run that was wrong from the start would be."""
    seal(folder, json.loads((folder / "result.json").read_text()) | changes)


def prepared(real: Path, folder: Path) -> Path:
    """The data of the run `real` as those that its clothes speak of, in `folder`."""
    (data,) = real.parent.glob("data/listops-synthetic/*")
    copy = folder / "listops-generated" / data.name
    shutil.copytree(data, copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    del manifest[SEAL]
    (copy / "manifest.json").write_text(json.dumps(sealed({**manifest, "source": "generated"}, SEAL)))
    return folder
