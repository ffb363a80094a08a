"""The same words are the same numbers: again, after a kill, and with as many threads as before."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.faults import amount, draws
from tests.faults.trials import VARIANTS, Ended, configured, data_for, documents, killed_at, paired, start, threads
from tests.runs import arguments, environment, logits, records

# Ways of a run, each with what it changes of model and training.
WAYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "bfloat16": ({}, {"dtype": "bfloat16"}),
    "parts": ({}, {"micro_batch": 3, "clip": 0.5}),
    "dropout": ({"dropout": 0.3}, {"padding": "fixed"}),
    "pairs": ({"dropout": 0.1}, {"select": "last", "weight_decay": 0.1}),
    "first": ({"pooling": "first", "positions": "sinusoidal", "init": "xavier", "bias": False}, {"micro_batch": 5}),
}
COMBINED = [(variant, way) for variant in VARIANTS for way in WAYS]
DRAWN = sorted(draws("ways").sample(COMBINED, amount(1, len(COMBINED))))
# Large enough for torch to share the work of nearly every operation among its threads.
LONG = 400


def run_once(variant: str, way: str, folder: Path, seed: int = 0, kill: int = 0) -> Ended:
    """A run of 10 steps; killed at a step and started again where `kill` says so."""
    model, train = WAYS[way]
    given, data = configured(variant, seed, model, **train), data_for(variant)
    data = paired(data) if way == "pairs" else data
    if kill:
        assert start(given, data, folder, killed_at(kill)).why
    return start(given, data, folder)


@pytest.mark.parametrize(("variant", "way"), DRAWN)
def test_a_run_repeats_bit_for_bit_after_a_kill_and_with_one_thread_and_with_two(
    tmp_path: Path, tally: Counter[str], variant: str, way: str
) -> None:
    drawn = draws("kill", variant, way)
    by_threads = []
    for count in (1, 2):
        with threads(count):
            first = run_once(variant, way, tmp_path / f"first{count}").bits()
            killed = run_once(variant, way, tmp_path / f"killed{count}", kill=drawn.randint(1, 10)).bits()
        assert killed == first
        by_threads.append(first)
    other = run_once(variant, way, tmp_path / "other", seed=1).bits()
    assert all(ours != theirs for ours, theirs in zip(other, by_threads[0], strict=True))
    tally["numbers: small runs killed, and the same bit for bit"] += 2
    tally["numbers: small runs that differ between 1 and 2 threads"] += by_threads[0] != by_threads[1]


def large(variant: str, folder: Path, name: str, count: int) -> Any:
    """A run within this process, on so many threads; one that is not the first is killed and goes on."""
    model = {"seq_len": LONG, "dim": 64, "head_dim": 32, "ffn": 64, "dropout": 0.1}
    given = configured(variant, 0, model, steps=4, warmup=2, eval_every=4, checkpoint_every=3)
    if variant.endswith("_tiled"):
        given.attn.update(grid=[20, 20], tile=[2, 4])
    data = documents((1, LONG), train=16)
    with threads(count):
        if name != "first":
            assert start(given, data, folder / f"{name} {count}", killed_at(4)).why
        return start(given, data, folder / f"{name} {count}").bits()


PROGRAM = """
import runpy, sys, torch
torch.set_num_threads(int(sys.argv.pop(1)))
runpy.run_module("lra.train", run_name="__main__", alter_sys=True)
"""


def command(attn: str, folder: Path, name: str, count: int) -> Any:
    """A run of a process of its own, on so many threads."""
    path = folder / f"{name} {count}"
    path.mkdir()
    words = [f"attn={attn}", "train.steps=8", "train.warmup=3", "train.eval_every=4", "model.dropout=0.1"]
    _, _, *given = arguments(path, *words, f"data_dir={folder / 'data'}")
    done = forks.run(["-c", PROGRAM, f"{count}", *given], path, environment())
    assert done.returncode == 0, done.stdout + done.stderr
    return json.dumps(records(path / "run")), logits(path / "run").tobytes()


BY_COMMAND = ("mra2", "yoso", "reformer", "softmax")
LARGE = [*((large, variant) for variant in VARIANTS), *((command, attn) for attn in BY_COMMAND)]


@pytest.mark.parametrize(("act", "variant"), draws("large").sample(LARGE, amount(1, len(LARGE))))
def test_a_run_repeats_bit_for_bit_where_threads_share_each_operation(
    tmp_path: Path, tally: Counter[str], act: Callable[[str, Path, str, int], Any], variant: str
) -> None:
    by_threads = []
    for count in (1, 2):
        first = act(variant, tmp_path, "first", count)
        assert act(variant, tmp_path, "again", count) == first
        by_threads.append(first)
    tally["numbers: large runs and commands repeated bit for bit"] += 2
    tally["numbers: large runs and commands that differ between 1 and 2 threads"] += by_threads[0] != by_threads[1]
