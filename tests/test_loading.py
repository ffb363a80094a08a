"""The benchmarks of data run to their ends on tiny data sets and write what they say."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data as loading
from benchmarks import preparing
from lra import data
from lra.data import Sampler, Split, collate
from lra.tasks import TASKS, listops
from tests.test_data import make_split, store


def read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def test_loading_is_measured_for_every_task_with_the_prepared_data_where_there_is_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = {name: make_split([5, 3, 9, 1, 7, 2], seed) for seed, name in enumerate(data.SPLITS)}
    facts = {"task": "listops", "source": "synthetic", "vocabulary": list(listops.VOCABULARY), "max_len": 2000}
    store(data.folder(tmp_path, TASKS["listops"](), "synthetic"), splits, **facts)
    out = tmp_path / "deep" / "data.csv"
    words = ["batch_size=2", "batches=2", "repeats=2", "examples=6", f"data_dir={tmp_path}", f"out={out}"]
    cores = os.sched_getaffinity(0)
    assert loading.main(words) == 0
    assert os.sched_getaffinity(0) == cores
    rows = read(out)
    assert tuple(rows[0]) == loading.Row._fields
    assert [(row["task"], row["source"]) for row in rows[::3]] == [
        ("listops", "synthetic"),
        *((name, "made up") for name in loading.SHAPES if name != "listops"),
    ]
    assert [(row["loader"], row["workers"]) for row in rows[:3]] == [
        ("ours", "0"),
        ("torch DataLoader", "0"),
        ("torch DataLoader", "2"),
    ]
    for row in rows:
        assert min(float(row[key]) for key in ("examples_per_s", "tokens_per_s", "ratio", "real_share")) > 0
        assert (row["epoch_ms"] != "") == (row["loader"] == "ours")
        assert row["examples"] == "6"
        assert row["workers"] != "0" or row["cores"] == "1"
    assert {float(row["ratio"]) for row in rows[::3]} == {1.0}
    assert f"written: {out}" in capsys.readouterr().out


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_both_loaders_make_the_same_batches(workers: int, pairs: bool) -> None:
    both = [(0, 3), (1, 1), (2, 0), (4, 5)] if pairs else None
    found = loading.Found("toy", "made", 8, make_split([5, 40, 9, 1, 7, 2], pairs=both))
    sampler = Sampler(np.minimum(found.split.lengths, 8), 2, seed=0)
    theirs = list(loading.theirs(found, sampler, workers))
    assert len(theirs) == sampler.batches_per_epoch
    for step, (tokens, mask, labels) in enumerate(theirs):
        batch = collate(found.split, sampler.batch(step), 8)
        size = tokens.shape[1]
        assert batch.tokens.flatten(0, -2)[:, :size].tolist() == tokens.tolist()
        assert batch.mask.flatten(0, -2)[:, :size].tolist() == mask.tolist()
        assert batch.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("name", loading.SHAPES)
def test_made_up_arrays_have_the_shape_of_their_task(tmp_path: Path, name: str) -> None:
    found, shape = loading.made_up(name, 300, tmp_path), loading.SHAPES[name]
    split: Split = found.split
    lengths = np.diff(split.offsets)
    assert shape.shortest <= lengths.min()
    assert lengths.max() <= shape.longest == found.max_len
    assert (split.pairs is not None) == shape.pairs
    assert split.offsets[-1] == len(split.tokens)
    assert len(split.labels) == 300
    assert not split.tokens.flags.writeable


def test_preparing_is_measured_in_a_process_of_its_own(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out, data_dir = tmp_path / "deep" / "preparing.csv", tmp_path / "data"
    words = ["tasks=listops", "sources=synthetic", f"data_dir={data_dir}", f"out={out}"]
    assert preparing.main(words) == 0
    (row,) = read(out)
    assert tuple(row) == preparing.Row._fields
    manifest = data.load(data_dir, TASKS["listops"](), "synthetic").manifest
    assert (row["examples"], row["sha256"]) == ("1536", manifest["sha256"])
    assert 50 < float(row["peak_rss_mb"]) < 1_500
    assert float(row["arrays_mb"]) > float(row["tokens"]) / 1e6
    assert min(float(row[key]) for key in ("wall_s", "cpu_s", "records_mb")) > 0
    assert f"written: {out}" in capfd.readouterr().out
    assert preparing.main(words) == 2
    assert "has listops (synthetic) already" in capfd.readouterr().err


def test_a_preparation_that_fails_ends_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "preparing.csv"
    assert preparing.main(["tasks=listops", "sources=synthetic", f"data_dir={tmp_path / 'file'}", f"out={out}"]) == 1
    assert "error: preparing listops (synthetic) ended with exit code 1" in capfd.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("main", "word", "answer"),
    [
        (loading.main, "tasks=texts", "error: tasks=texts is not one of listops, text, "),
        (loading.main, "repeats=0", "error: repeats=0 must be an integer of at least 1"),
        (loading.main, "examples=3", "error: examples=3 must be at least batch_size=32"),
        (loading.main, "task=text", "error: unknown key 'task'"),
        (preparing.main, "tasks=texts", "error: tasks=texts is not one of listops"),
        (preparing.main, "sources=release", "error: sources=release is not one of generated, synthetic"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(
    main: object, word: str, answer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(main)
    assert main([word]) == 2
    said = capsys.readouterr().err
    assert said.startswith(answer)
    assert said.count("\n") == 1
