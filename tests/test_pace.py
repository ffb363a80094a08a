"""How long a run will take is said from runs like it, with what it rests on, or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lra.pace import Estimate, Pace

LAPTOP, GPU = "Some CPU, 2 threads", "Some GPU"
WORDS = ("mlpen", "listops", "generated", "mra2")


def write(
    root: Path, name: str = "seed0", *, step: int = 100, at: float | None = 50.0, when: float = 1e9,
    attn: str = "mra2", source: str | None = None, **changes: Any,
) -> Path:  # fmt: skip
    """A run whose record ends at `step` after `at` seconds; finished after 60 s, or with `changes` to its result."""
    folder = root / "mlpen" / "listops" / attn / name
    folder.mkdir(parents=True)
    last = {"step": step, "split": "val", "loss": 1.0, "accuracy": 0.5}
    last |= {} if at is None else {"steps": 100, "seconds": at}
    (folder / "metrics.jsonl").write_text(json.dumps(last) + "\n")
    if source:
        (folder / "config.yaml").write_text(f"task: {{source: {source}}}\n")
        return folder
    result = {
        "schema": 1, "status": "finished", "protocol": "mlpen", "task": "listops", "source": "generated", "attn": attn,
        "seed": 0, "deviations": {}, "steps": step, "device": LAPTOP, "dtype": "float32", "kernel": "cpu",
        "train_seconds": 40.0, "seconds": 60.0,
    } | changes  # fmt: skip
    file = folder / "result.json"
    file.write_text(json.dumps({key: value for key, value in result.items() if value is not None}))
    os.utime(file, (when, when))
    return folder


def test_a_run_takes_its_steps_at_the_pace_of_earlier_ones_and_one_test(tmp_path: Path) -> None:
    write(tmp_path, "seed0")
    write(tmp_path, "seed1", at=150.0, seconds=180.0)
    assert Pace.read(tmp_path).estimate(*WORDS, 1000) == Estimate(1000 * 1.0 + 20, "2 earlier runs", True)


def test_what_was_never_run_has_no_estimate(tmp_path: Path) -> None:
    write(tmp_path)
    pace = Pace.read(tmp_path)
    for words in (("google", *WORDS[1:]), (*WORDS[:2], "release", "mra2"), (*WORDS[:3], "softmax")):
        assert pace.seconds(*words, 100) is None
    assert pace.seconds(*WORDS, 100, processes=2) is None
    assert Pace.read(tmp_path / "nowhere").seconds(*WORDS, 100) is None


def test_changes_that_cost_time_keep_runs_apart_and_others_do_not(tmp_path: Path) -> None:
    write(tmp_path, "model.seq_len=4096,train.lr=0.1,seed0", deviations={"model.seq_len": 4096, "train.lr": 0.1})
    pace = Pace.read(tmp_path)
    assert pace.seconds(*WORDS, 100) is None
    assert pace.seconds(*WORDS, 100, deviations={"model.seq_len": 4096, "train.lr": 0.5}) == 60.0
    assert pace.seconds(*WORDS, 100, deviations={"model.seq_len": 4096, "train.batch_size": 8}) is None


def test_an_estimate_from_another_device_says_so_and_is_no_plain_number(tmp_path: Path) -> None:
    write(tmp_path)
    pace = Pace.read(tmp_path)
    for device in ("cuda", GPU):
        found = pace.estimate(*WORDS, 100, device)
        assert found == Estimate(60.0, f"1 earlier run, another device ({LAPTOP})", False)
        assert pace.seconds(*WORDS, 100, device) is None
    assert pace.seconds(*WORDS, 100, "cpu") == pace.seconds(*WORDS, 100, LAPTOP) == 60.0


def test_of_two_devices_the_one_asked_for_counts_or_the_newest(tmp_path: Path) -> None:
    write(tmp_path, "seed0")
    write(tmp_path, "seed1", at=5.0, seconds=6.0, device=GPU, kernel="cuda", when=2e9)
    pace = Pace.read(tmp_path)
    assert pace.estimate(*WORDS, 100, "cpu") == Estimate(60.0, f"1 earlier run, on {LAPTOP}", True)
    assert pace.estimate(*WORDS, 100, "auto") == Estimate(6.0, f"1 earlier run, on {GPU}", True)


def test_a_slow_kernel_is_not_averaged_with_a_fast_one(tmp_path: Path) -> None:
    write(tmp_path, "seed0", at=500.0, seconds=600.0, kernel="reference", when=1e9)
    write(tmp_path, "seed1", when=2e9)
    assert Pace.read(tmp_path).seconds(*WORDS, 100) == 60.0


@pytest.mark.parametrize(
    ("run", "seconds", "basis"),
    [
        ({"status": "interrupted", "step": 50, "seconds": 51.0}, 100.0, "1 unfinished run, without the test"),
        ({"at": None, "seconds": None}, 40.0, "1 earlier run, training steps alone, without evaluations"),
        ({"at": None}, 60.0, "1 earlier run"),
    ],
)
def test_what_a_run_does_not_know_is_left_out_and_named(
    tmp_path: Path, run: dict[str, Any], seconds: float, basis: str
) -> None:
    write(tmp_path, **run)
    assert Pace.read(tmp_path).estimate(*WORDS, 100) == Estimate(seconds, basis, True)


def test_a_run_without_a_result_counts_where_its_path_and_configuration_name_it(tmp_path: Path) -> None:
    write(tmp_path, "train.lr=0.1,seed0", step=10, source="generated")
    write(tmp_path, "mine", step=10, at=1.0, source="generated")
    pace = Pace.read(tmp_path)
    assert pace.estimate(*WORDS, 100) == Estimate(500.0, "1 unfinished run, device not known, without the test", False)
    assert pace.seconds(*WORDS, 100) is None


def test_broken_runs_are_left_out(tmp_path: Path) -> None:
    for i, text in enumerate(("", "[]", "{", '{"protocol": 3}', '{"deviations": []}', "[" * 100_000)):
        write(tmp_path, f"seed{i}").joinpath("result.json").write_text(text)
    write(tmp_path, "seed7", steps=0, step=0)
    write(tmp_path, "seed8", at=-1.0, seconds=-1.0)
    folder = write(tmp_path, "seed9", source="generated")
    folder.joinpath("config.yaml").write_text("task: [")
    assert Pace.read(tmp_path).runs == {}
    write(tmp_path, "seed10")
    assert Pace.read(tmp_path).seconds(*WORDS, 100) == 60.0
