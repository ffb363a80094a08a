"""`python -m benchmarks.report`: how long `make compare` takes, and how large its page is, over made-up runs.

The runs are 18 attentions x 5 tasks x seeds, each with 100 lines of validation and 500 of training, a configuration, a
result and predictions, as a real run of 5,000 steps leaves them.
"""

from __future__ import annotations

import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import spread, whole_number, write_rows
from lra.command import command
from lra.commit import git_commit
from lra.config import Model, Train, digest, flat, identity

ATTENTIONS = (
    *("softmax", "mra2", "mra2_s", "mra", "performer", "linformer", "soft", "soft_conv", "nystromformer"),
    *("nystromformer_conv", "yoso", "yoso_conv", "reformer", "longformer", "bigbird", "h_transformer_1d"),
    *("scatterbrain", "adamra"),
)
SOURCES = {"listops": "generated", "text": "imdb", "retrieval": "aan", "image": "cifar10", "pathfinder": "generated"}
STEPS, EVERY, LOG = 5000, 50, 10
TEST = 2000
HEAD = ("runs", "lines", "seconds", "seconds_iqr", "cpu_s", "page_mb", "markdown_kb", "csv_kb", "python", "commit")

KEYS = {
    "runs": ("100,500", "how many runs, a list with commas"),
    "repeats": ("5", "times that each is measured"),
    "out": ("benchmarks/results/report.csv", "the CSV file"),
}


def make_runs(root: Path, count: int, steps: int = STEPS) -> None:
    """Write `count` runs below `root`: the same ones for the same numbers."""
    cells = [(task, attn) for task in SOURCES for attn in ATTENTIONS]
    dice = random.Random(0)
    for i in range(count):
        seed, place = divmod(i, len(cells))
        task, attn = cells[place]
        make_run(root / "mlpen" / task / attn / f"seed{seed}", task, attn, seed, dice, steps)


def make_run(folder: Path, task: str, attn: str, seed: int, dice: random.Random, steps: int) -> None:
    """Write one run's result.json, metrics.jsonl and predictions.npz."""
    folder.mkdir(parents=True)
    config = flat(
        {
            "task": {"name": task, "source": SOURCES[task], "version": "1.0.0"},
            "attn": {"name": attn, "conv": 0, "grid": None, "tile": None},
            "protocol": "mlpen",
            "model": vars(Model()),
            "train": vars(Train(steps=steps, warmup=max(steps // 5, 2))),
            "seed": seed,
        }
    )
    speed = dice.uniform(5_000, 50_000)
    lines = [line for step in range(LOG, steps + 1, LOG) for line in _lines(step, steps, speed, dice)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    accuracy = dice.randrange(TEST) / TEST
    result: dict[str, Any] = {
        "schema": 1, "status": "finished", "protocol": "mlpen", "task": task, "source": SOURCES[task], "attn": attn,
        "seed": seed, "deviations": {}, "declared": {"attn.first_blocks": 1} if attn.startswith("mra2") else {},
        "params": 208_778, "params_softmax": 208_778, "device": "a CPU, 2 threads", "dtype": "float32", "kernel": "cpu",
        "processes": 1, "data_sha256": f"{task:a<64}", "config_sha256": digest(config), "git_commit": "c" * 40,
        "versions": {}, "val": {"accuracy": accuracy, "n": TEST, "best_step": steps},
        "test": {"accuracy": accuracy, "n": TEST, "ci95": [0.0, 1.0]}, "train": {"accuracy": accuracy},
        "steps": steps, "tokens_per_s": speed, "train_seconds": 100.0, "seconds": 120.0, "peak_memory_mb": 800.0,
        "config": identity(config),
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result, indent=1))
    np.savez(folder / "predictions.npz", predictions=np.zeros(TEST, np.int64))


def _lines(step: int, steps: int, speed: float, dice: random.Random) -> list[dict[str, Any]]:
    count = {"steps": steps, "seconds": step * 0.024 + dice.random()}
    cost = {"lr": 1e-4 * step / steps, "tokens_per_s": speed + dice.random(), "peak_memory_mb": 800.12890625}
    loss = 2.3 - 1.9 * step / steps + dice.gauss(0, 0.05)
    train = {"step": step, "split": "train", "loss": loss, "accuracy": dice.random(), **cost, **count}
    val = {"step": step, "split": "val", "loss": loss + 0.1, "accuracy": dice.random(), **count}
    return [train, val] if step % EVERY == 0 else [train]


def measure(count: int, repeats: int) -> tuple[Any, ...]:
    """A row of HEAD: wall clock and processor time of the whole command, Python's start and imports included."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_runs(root, count)
        lines = sum(path.read_bytes().count(b"\n") for path in root.rglob("metrics.jsonl"))
        times, busy = [], []
        for _ in range(repeats):
            start, before = time.perf_counter(), processor_time()
            words = [sys.executable, "-m", "lra.results", f"runs={root}"]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": os.getcwd()})
            times.append(time.perf_counter() - start)
            busy.append(processor_time() - before)
        sizes = [(root / "report" / name).stat().st_size for name in ("index.html", "compare.md", "compare.csv")]
    median, between = spread(times)
    page, markdown, csv = sizes
    return (
        *(count, lines, round(median, 2), round(between, 2), round(statistics.median(busy), 2)),
        *(round(page / 1e6, 2), round(markdown / 1e3, 1), round(csv / 1e3, 1), sys.version.split()[0], git_commit()),
    )


def processor_time() -> float:
    """Seconds that the processes started here have computed."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run(options: dict[str, str]) -> int:
    """Measure, print, write, with a value for each of KEYS; returns the exit code."""
    counts = [whole_number("runs", text, least=1) for text in options["runs"].split(",")]
    repeats = whole_number("repeats", options["repeats"], least=1)
    rows = []
    for count in counts:
        rows.append(measure(count, repeats))
        _, lines, seconds, between, busy, page, *_ = rows[-1]
        print(f"{count:5} runs, {lines:,} lines: {seconds:.2f} +- {between:.2f} s ({busy:.2f} s of processor)", end="")
        print(f", page {page:.2f} MB", flush=True)
    write_rows(options["out"], HEAD, rows)
    return 0


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("benchmarks.report", "Time of make compare and size of its page.", KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
