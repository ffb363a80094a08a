"""Rows of ours.csv and their predictions, made up for the tests of what reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lra import ours
from lra.ours import Predictions, Row
from lra.published import PUBLISHED

CPU, GPU = "A processor, 1 threads", "A GPU"


def row(**changes: Any) -> Row:
    """A finished run of MRA-2 on ListOps, right on 740 of 2,000 items, with `changes`."""
    facts: dict[str, Any] = {
        "protocol": "mlpen",
        "task": "listops",
        "source": "generated",
        "attn": "mra2",
        "seed": 0,
        "status": "finished",
        "correct": 740,
        "n": 2000,
        "best_step": 4000,
        "steps": 5000,
        "declared": "",
        "params": 208_778,
        "tokens_per_s": 40_000.0,
        "peak_memory_mb": 1300.0,
        "train_seconds": 3600.0,
        "seconds": 4500.0,
        "device": CPU,
        "processes": 1,
        "dtype": "float32",
        "kernel": "cpu",
        "versions": "torch 2.13.0; python 3.11.7",
        "data_sha256": "d" * 64,
        "config_sha256": "c" * 64,
        "kernel_sha256": "",
        "git_commit": "1" * 40,
        "result_sha256": "e" * 64,
        "predictions_sha256": "f" * 64,
        "date": "2026-11-23",
    } | changes
    finished = facts["status"] == "finished"
    gone = {} if finished else dict.fromkeys(("correct", "n", "best_step")) | {"predictions_sha256": ""}
    facts |= gone
    return Row(**facts, accuracy=round(facts["correct"] / facts["n"], 6) if finished else None)


def guesses(one: Row, shift: int = 0) -> Predictions:
    """Predictions of a row: its `correct` items are right, those from `shift` on and around the end."""
    assert one.n is not None
    assert one.correct is not None
    labels = (np.arange(one.n) % 2).astype(np.uint8)
    wrong = np.ones(one.n, dtype=bool)
    wrong[(np.arange(one.correct) + shift) % one.n] = False
    return Predictions(np.where(wrong, 1 - labels, labels).astype(np.uint8), labels)


def folder_of(folder: Path, rows: Sequence[Row]) -> Path:
    """A folder of published values like the project's, with these rows as its ours.csv and their predictions."""
    (folder / "ours").mkdir(parents=True)
    for file in PUBLISHED.glob("*.csv"):
        if file.name != ours.OURS:
            (folder / file.name).write_bytes(file.read_bytes())
    held = []
    for shift, one in enumerate(rows):
        if one.status == "finished":
            content = ours.packed(guesses(one, shift=50 * shift))
            one = one._replace(predictions_sha256=hashlib.sha256(content).hexdigest())
            ours.file_of(folder, one).write_bytes(content)
        held.append(one)
    ours.write(folder, held)
    return folder
