"""The losses of our trainer and of the plain loop, from the same weights on the same batches.

ListOps in short: documents cut to 1,024 tokens, 8 a batch, and a rate at which something is learned in so few steps.
Without dropout the two compute the same but for rounding. With it each draws its own, and the question is whether they
differ by more than draws do.
"""

from __future__ import annotations

import itertools
import math
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.baseline_loop import OURS, PLAIN, build, take

WORDS = "model.seq_len=1024 train.batch_size=8 train.lr=1e-3"
LAST = 20


class LossRow(NamedTuple):
    """A line of the CSV file: the mean loss of a batch, before its step, by both loops."""

    attn: str
    dropout: str
    seed: int
    step: int
    ours: float
    plain: float
    threads: int
    device: str
    torch: str
    commit: str
    date: str


def losses(options: dict[str, str], attn: str, words: Sequence[str]) -> tuple[list[float], list[float]]:
    """The loss of each step of both loops, with these words beside those of `options`."""
    import torch

    given = options | {"words": " ".join([options["words"], *words])}
    with tempfile.TemporaryDirectory() as folder:
        pair = build(given, "listops", attn, Path(folder) / "run")
        trainer = pair.bench.trainer
        order = [trainer.sampler.batch(step) for step in range(trainer.options.steps)]
        ours = take(pair, OURS, order)[1]
        # Draws of its own, whatever ours has left.
        torch.manual_seed(trainer.config.seed + 1)
        plain = take(pair, PLAIN, order)[1]
        pair.bench.close()
    return ours, plain


def compare(options: dict[str, str], attn: str, stamp: dict[str, Any]) -> list[LossRow]:
    """Both loops without dropout, and with it for each seed."""
    steps = int(options["losses"])
    words = [*WORDS.split(), f"train.steps={steps}", f"train.warmup={max(2, steps // 5)}"]
    off = ["model.dropout=0.0", *(["attn.dropout=0.0"] if attn == "softmax" else [])]
    rows = []
    for dropout, seed in [("off", 0), *(("on", seed) for seed in range(int(options["seeds"])))]:
        both = losses(options, attn, [*words, f"seed={seed}", *(off if dropout == "off" else [])])
        rows += [
            LossRow(attn, dropout, seed, step, ours, plain, **stamp)
            for step, (ours, plain) in enumerate(zip(*both, strict=True), 1)
        ]
    return rows


def differences(rows: Sequence[LossRow]) -> tuple[float, float, float]:
    """The largest difference of a step without dropout; the mean one of the last steps with it, and its standard error.

    Over all seeds and the last 20 steps; two losses of one batch are a pair.
    """
    largest = max(abs(row.plain - row.ours) for row in rows if row.dropout == "off")
    dropped = [row for row in rows if row.dropout == "on"]
    last = [[row.plain - row.ours for row in its][-LAST:] for _, its in itertools.groupby(dropped, lambda r: r.seed)]
    each = list(itertools.chain(*last))
    error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else math.inf
    return largest, statistics.mean(each), error


def told(rows: Sequence[LossRow]) -> str:
    """What the losses of one attention say."""
    largest, mean, error = differences(rows)
    off = [row.ours for row in rows if row.dropout == "off"]
    fell = f"{statistics.mean(off[:5]):.4f} to {statistics.mean(off[-5:]):.4f}"
    noise = "within" if abs(mean) <= 2 * error else "beyond"
    dropped = f"with dropout {mean:+.4f} +- {error:.4f} over the last {LAST}: {noise} two standard errors"
    return f"losses   {rows[0].attn:14} {fell} in {len(off)} steps; largest difference {largest:.1e}; {dropped}"
