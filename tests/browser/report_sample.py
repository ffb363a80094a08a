"""Pages of the report over made-up data: what `make compare` writes, without a run."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any

from lra.page import build, front_end

ATTENTIONS = (
    *("softmax", "adamra", "bigbird", "h_transformer_1d", "linformer", "longformer", "mra", "mra2", "mra2_s"),
    *("nystromformer", "nystromformer_conv", "performer", "reformer", "scatterbrain", "soft", "soft_conv"),
    *("yoso", "yoso_conv"),
)
TASKS = {"listops": 36.5, "text": 63.0, "retrieval": 79.0, "image": 40.0, "pathfinder": 70.0}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#882255", "#44AA99", "#999933", "#332288")
GPU, CPU = "NVIDIA A100", "cpu, 16 cores"
PAPER = ("Zeng et al. 2022, MRA, table 4", "https://arxiv.org/abs/2207.10284")
FLOORS = {"majority class": 17.1, "root-operator classifier": 36.2}


def page(data: dict[str, Any]) -> str:
    """The page of `data`, as `make compare` writes it."""
    return build(*front_end(), data)


def sample(attentions: int = 18, tasks: int = 5, seeds: int = 2, rounds: int = 0) -> dict[str, Any]:
    """The page's JSON for a sweep of the first attentions, tasks and seeds; the same for the same numbers."""
    dice = random.Random(1)
    names = ATTENTIONS[:attentions]
    columns = [_column(task) for task in list(TASKS)[:tasks]]
    data = _data(columns, names)
    for a, name in enumerate(names):
        for c, task in enumerate(list(TASKS)[:tasks]):
            _add_cell(data, dice, c, a, "", [_drawn(dice, task, name) for _ in range(seeds)])
    for _ in range(rounds):
        _add_cell(data, dice, 0, len(names) - 1, f"train.lr=0.000{len(data['cells'])}", [("finished", 36.0)])
    if len(names) > 2 and seeds > 1:
        _add_cell(data, dice, 0, 0, "train.lr=0.0003", [("finished", 35.1)])
        _add_cell(data, dice, 0, 2, "attn.blocks_per_row=16", [("finished", 37.9), ("finished", 38.2)])
        _add_cell(data, dice, 0, 2, "train.steps=10000,train.lr=0.0003", [("interrupted", None)])
    return data


def _column(task: str) -> dict[str, Any]:
    source = "generated" if task in ("listops", "pathfinder") else "release"
    floors = FLOORS if task == "listops" else {}
    return {"protocol": "mlpen", "task": task, "name": task, "source": source, "data": "dba848f50a65", "floors": floors}


def _data(columns: list[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    colours = [{"name": name, "colour": COLOURS[i % 10], "dash": i // 10} for i, name in enumerate(names[1:])]
    return {
        "schema": 1,
        "generated": "2026-11-23 01:20 UTC",
        "commit": "e85712a0c5b1",
        "filters": "",
        "columns": columns,
        "attentions": [{"name": names[0], "colour": "#222222", "dash": 0}, *colours],
        "cells": [],
        "runs": [],
        "common": {"train.dtype": "float32", "model.layers": 2, "model.dim": 64, "task.split": "clean"},
        "crossover": {
            "source": "forward and backward of one layer on a CPU of 16 cores, 2 heads of 32, medians of 20.",
            "lengths": [1024, 2048, 4096, 8192],
            "rows": [
                {
                    "attention": name,
                    "time": [_ratio(i, n) for n in range(4)],
                    "memory": [_ratio(i, n + 1) for n in range(4)],
                    "ahead_from": 1024 * 2**i if i < 4 else None,
                    "memory_ahead_from": 1024,
                }
                for i, name in enumerate(names[1:7])
            ],
        },
        "notes": [
            "Wilson: of one run over the items of the test set; the spread of seeds is not in it.",
            "listops: the test set has 2,000 items, +-2.1 points for one run; majority class 17.1%.",
        ],
        "sources": [f"[1] {PAPER[0]}, {PAPER[1]}"],
        "problems": ["left out runs/mlpen/text/mra/seed9/result.json: not whole JSON"],
    }


def _ratio(i: int, n: int) -> float:
    return round(1.9 * (1 + 0.35 * i) / 2.1**n, 3)


def _drawn(dice: random.Random, task: str, name: str) -> tuple[str, float | None]:
    chance = dice.random()
    if chance < 0.03:
        return "diverged", None
    if chance < 0.045 and name != "softmax":
        return "out_of_memory", None
    if chance < 0.06:
        return "interrupted", None
    return "finished", round(TASKS[task] + 2 * (len(name) % 5 - 2) + dice.gauss(0, 0.6), 2)


def _add_cell(data: dict[str, Any], dice: random.Random, c: int, a: int, words: str, outcomes: list[Any]) -> None:
    column, name = data["columns"][c], data["attentions"][a]["name"]
    runs = [_run(dice, column, name, words, seed, *outcome) for seed, outcome in enumerate(outcomes)]
    indices = [len(data["runs"]) + i for i in range(len(runs))]
    data["runs"] += runs
    found = [run["accuracy"] for run in runs if run["status"] == "finished"]
    mean = sum(found) / len(found) if found else None
    value = round(TASKS[column["task"]] + dice.gauss(0, 1.5), 2) if a % 4 != 3 else None
    status = ("read", "secondary", "unverified")[a % 3]
    mark = {"read": "", "secondary": "*", "unverified": "?"}[status]
    published = {
        "text": str(value), "value": value, "mark": mark, "status": status,
        "source": PAPER[0], "url": PAPER[1], "note": "",
    }  # fmt: skip
    failures = ("diverged", "out_of_memory", "interrupted")
    speeds = [run["tokens_per_s"] for run in runs if run["status"] == "finished"]
    data["cells"].append({
        "column": c, "attention": a, "deviation": words,
        "accuracy": mean, "interval": _interval(found), "finished": len(found),
        "failures": {status: sum(run["status"] == status for run in runs) for status in failures},
        "published": published if value is not None else None,
        "elsewhere": [published] if a == 7 and value else [],
        "difference": mean - value if mean is not None and value is not None else None,
        "excess": "+502%" if name == "linformer" else "", "params": 208778 if name != "linformer" else 1257354,
        "train_accuracy": mean + 4 if mean else None, "tokens_per_s": sum(speeds) / len(speeds) if speeds else None,
        "peak_memory_mb": 300.0 + 90 * a if speeds else None, "device": GPU if c != 4 or a % 2 else CPU,
        "declared": {"attn.first_blocks": 1} if name.startswith("mra2") else {}, "runs": indices, "superseded": [],
        "notes": ["its runs differ in steps (5000, 4000)."] if a == 3 else [],
    })  # fmt: skip


def _interval(found: list[float]) -> list[Any] | None:
    if not found:
        return None
    mean = sum(found) / len(found)
    if len(found) == 1:
        return [mean - 2.1, mean + 2.1, "wilson"]
    half = 2.8 * math.sqrt(sum((x - mean) ** 2 for x in found) / (len(found) - 1) / len(found))
    return [mean - half, mean + half, "student"]


def _run(
    dice: random.Random, column: dict[str, Any], name: str, words: str, seed: int, status: str, accuracy: float | None
) -> dict[str, Any]:
    task, steps = column["task"], 5000 if status == "finished" else dice.randrange(500, 4000)
    folder = f"{words},seed{seed}" if words else f"seed{seed}"
    speed = 40_000 * 1.22 ** ATTENTIONS.index(name) * dice.uniform(0.95, 1.05) / (1 + list(TASKS).index(task))
    return {
        "path": f"{column['protocol']}/{task}/{name}/{folder}", "seed": seed, "status": status,
        "accuracy": accuracy, "n": 2000, "steps": steps, "seconds": steps * 0.31,
        "tokens_per_s": speed if status == "finished" else None, "peak_memory_mb": 900.0,
        "device": GPU, "dtype": "float32", "kernel": "cuda" if "mra2" in name else "", "processes": 1,
        "git_commit": "e85712a0c5b1e2", "data_sha256": column["data"], "config_sha256": f"{dice.getrandbits(48):012x}",
        "finished_at": "2026-11-22 20:11 UTC", "recorded": True, "predictions": "",
        "config": {
            "seed": seed, "attn": name, "task": task, "train.lr": 0.0003 if "lr" in words else 0.0001,
            "attn.block_size": 32 if "mra" in name else None,
        },
        "curves": _curves(dice, TASKS[task], steps, status),
    }  # fmt: skip


def _curves(dice: random.Random, top: float, steps: int, status: str) -> dict[str, Any]:
    curves = {}
    for split, count in (("val", 20), ("train", 60)):
        at = [round((i + 1) * steps / count) for i in range(count)]
        rise = [1 - math.exp(-step / 900) for step in at]
        accuracy = [round(12 + (top - 12) * r + dice.gauss(0, 0.5 if split == "val" else 1.6), 2) for r in rise]
        loss: list[float | None] = [round(2.3 - 0.7 * r + dice.gauss(0, 0.03), 4) for r in rise]
        if status == "diverged":
            loss[-1] = None
        curves[split] = {"steps": at, "accuracy": accuracy, "loss": loss}
    return curves
