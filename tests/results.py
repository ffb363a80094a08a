"""Results as runs leave them, and the cells that they make."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from lra.cells import Cell, cells
from lra.outcomes import collect
from lra.published import Published
from lra.table import show

MRA = "https://arxiv.org/abs/2207.10284"


def write_run(folder: Path, **changes: Any) -> Path:
    """A finished ListOps run of 2,000 test items in `folder`, with `changes` to its result.json; None removes a key."""
    accuracy = changes.pop("accuracy", 0.372)
    result = {
        "schema": 1,
        "status": "finished",
        "protocol": "mlpen",
        "task": "listops",
        "source": "generated",
        "attn": "mra2",
        "seed": 0,
        "test": {"accuracy": accuracy, "n": 2000, "ci95": [0.0, 1.0]},
        "val": {"accuracy": 0.38, "n": 2000, "best_step": 4000},
        "train": {"accuracy": 0.39},
        "params": 216_138,
        "steps": 5000,
        "tokens_per_s": 20_000.0,
        "train_seconds": 100.0,
        "peak_memory_mb": 800.0,
        "device": "cpu",
        "dtype": "float32",
        "kernel": "reference",
        "data_sha256": "a" * 64,
        "config_sha256": "b" * 64,
        "git_commit": "",
        "versions": {},
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.json"
    path.write_text(json.dumps({key: value for key, value in result.items() if value is not None}))
    np.savez(folder / "predictions.npz", predictions=np.zeros(2000, np.int8))
    return path


def published(**changes: Any) -> Published:
    facts: dict[str, Any] = {
        "source": "A paper",
        "url": MRA,
        "protocol": "mlpen",
        "model": "MRA-2",
        "attn": "mra2",
        "task": "listops",
    }
    return Published(**(facts | {"accuracy": 37.2, "status": "unverified", "note": ""} | changes))


def table_of(root: Path, *values: Published) -> list[Cell]:
    runs, problems = collect(root)
    assert problems == []
    return cells(runs, values)


def printed(table: list[Cell], **console: Any) -> str:
    out = io.StringIO()
    show(Console(file=out, highlight=False, **console), table)
    return out.getvalue()


def some_table(root: Path) -> list[Cell]:
    write_run(root / "mlpen/listops/mra2/seed0", accuracy=0.372)
    write_run(root / "mlpen/listops/mra2/seed1", accuracy=0.3615, seed=1)
    write_run(root / "mlpen/listops/mra2_s/seed0", attn="mra2_s", accuracy=0.301)
    write_run(root / "mlpen/listops/softmax/seed0", attn="softmax", status="diverged", test=None, train=None)
    write_run(
        root / "google/text/bigbird/train.steps=9,seed0", protocol="google", task="text", source="imdb", attn="bigbird"
    )
    return table_of(root, published(), published(attn="mra2_s", accuracy=37.4, status="read"))
