"""Run folders as training leaves them, made in a moment."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import yaml


def config_of(attn: str, seed: int, task: str = "listops") -> dict[str, Any]:
    """A part of what config.yaml holds."""
    return {
        "task": {"name": task, "source": "generated", "version": "1.0.0"},
        "attn": {"name": attn, "conv": 0},
        "protocol": "mlpen",
        "seed": seed,
        "tracker": "offline",
    }


def record(step: int, split: str, accuracy: float) -> dict[str, Any]:
    values = {"step": step, "split": split, "loss": 2.3 - accuracy, "accuracy": accuracy, "steps": 400}
    return values if split == "val" else {**values, "lr": 1e-4, "tokens_per_s": 5000.0, "peak_memory_mb": 300.0}


def write_run(root: Path, attn: str, seed: int, status: str = "finished", task: str = "listops") -> Path:
    """A run of 400 steps below `root`, logged every 10 and validated every 50; without a result where status is ''."""
    folder = root / "mlpen" / task / attn / f"seed{seed}"
    folder.mkdir(parents=True)
    config = config_of(attn, seed, task)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    height = {"softmax": 0.38, "mra2": 0.34}.get(attn, 0.3) + 0.01 * seed
    lines = []
    for step in range(10, 401, 10):
        accuracy = height * (1 - math.exp(-step / 120)) + 0.008 * math.sin(step * (seed + 1))
        lines.append(record(step, "train", accuracy))
        lines += [record(step, "val", accuracy - 0.01)] if step % 50 == 0 else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status:
        (folder / "result.json").write_text(json.dumps(result_of(config, status, height)))
    return folder


def result_of(config: dict[str, Any], status: str, accuracy: float) -> dict[str, Any]:
    """A result.json for a configuration."""
    digest = hashlib.sha256(json.dumps(config).encode()).hexdigest()
    names = {"protocol": config["protocol"], "task": config["task"]["name"], "attn": config["attn"]["name"]}
    result = {
        "schema": 1, "status": status, **names, "source": config["task"]["source"], "seed": config["seed"],
        "deviations": {}, "params": 40_000, "params_softmax": 40_000, "device": "a CPU", "dtype": "float32",
        "kernel": "cpu", "exact_share": None, "data_sha256": "d" * 64, "config_sha256": digest, "git_commit": "",
        "versions": {}, "val": {"accuracy": accuracy, "n": 200, "best_step": 400},
        "steps": 400, "tokens_per_s": 5000.0, "train_seconds": 60.0, "peak_memory_mb": 300.0, "config": {},
    }  # fmt: skip
    if status == "finished":
        result["test"] = {"accuracy": accuracy, "loss": 1.9, "n": 200, "ci95": [0.3, 0.5], "step": 400}
        result["train"] = {"accuracy": accuracy, "n": 200}
    return result
