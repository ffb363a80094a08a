"""Small real runs for the tests: synthetic ListOps, a tiny model, the command line of a user."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tests import forks

ROOT = Path(__file__).resolve().parent.parent
SPEED = ("tokens_per_s", "peak_memory_mb", "seconds")
TINY = (
    "task.source=synthetic", "model.seq_len=64", "model.dim=16", "model.head_dim=8", "model.ffn=16",
    "attn.block_size=8",
    "train.steps=40", "train.warmup=10", "train.batch_size=8", "train.eval_every=15", "train.checkpoint_every=4",
    "train.log_every=1", "train.lr=1e-3", "tracker=jsonl", "device=cpu",
)  # fmt: skip


def environment() -> dict[str, str]:
    """The tests' environment with one thread, and without what would change a run's output."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def command(folder: Path, *words: str) -> list[str]:
    """The command line of a tiny run whose data and results stay in `folder`; later words win."""
    return [sys.executable, *arguments(folder, *words)]


def arguments(folder: Path, *words: str) -> list[str]:
    """That command line without the Python at its beginning."""
    chosen = dict(
        word.partition("=")[::2] for word in (*TINY, f"data_dir={folder / 'data'}", f"run_dir={folder / 'run'}", *words)
    )
    if not chosen.get("attn", "mra2").startswith("mra2"):
        del chosen["attn.block_size"]
    return ["-m", "lra.train", *(f"{key}={value}" for key, value in chosen.items())]


def train(folder: Path, *words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command to its end and check its exit code."""
    done = forks.run(arguments(folder, *words), folder, environment())
    assert done.returncode == code, done.stdout + done.stderr
    return done


def records(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the machine's mood."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in SPEED} for line in lines]


def logits(run: Path) -> np.ndarray:
    """The test split's logits."""
    with np.load(run / "predictions.npz") as arrays:
        return arrays["logits"]


def result(run: Path) -> dict[str, Any]:
    """result.json."""
    return json.loads((run / "result.json").read_text())


def assert_same_run(run: Path, undisturbed: Path) -> None:
    """Fail unless two runs have the same records, test scores and results, bit for bit."""
    assert records(run) == records(undisturbed)
    np.testing.assert_array_equal(logits(run), logits(undisturbed))
    ours, theirs = result(run), result(undisturbed)
    for key in ("status", "test", "val", "train", "steps", "data_sha256", "params"):
        assert ours[key] == theirs[key]
