"""Our own table: what it may say, in which words, and what its predictions are held to."""

from __future__ import annotations

import csv
import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from lra import ours

LABELS = np.arange(20, dtype=np.uint8) % 10
SAID = ours.Predictions(np.where(np.arange(20) < 7, LABELS, 9 - LABELS).astype(np.uint8), LABELS)
FINISHED = {
    "protocol": "mlpen", "task": "listops", "source": "generated", "attn": "mra2", "seed": "0", "status": "finished",
    "accuracy": "0.350000", "correct": "7", "n": "20", "best_step": "4000", "steps": "5000",
    "declared": "attn.first_blocks=1", "params": "208778", "tokens_per_s": "17697.3", "peak_memory_mb": "1372.5",
    "train_seconds": "9000.0", "seconds": "9500.5", "device": "a processor, 2 threads", "processes": "1",
    "dtype": "float32", "kernel": "cpu", "versions": "torch 2.13.0; python 3.11.7", "data_sha256": "a" * 64,
    "config_sha256": "b" * 64, "kernel_sha256": "c" * 64, "git_commit": "d" * 40, "result_sha256": "e" * 64,
    "predictions_sha256": hashlib.sha256(ours.packed(SAID)).hexdigest(), "date": "2026-11-23",
}  # fmt: skip
STOPPED = {"status": "interrupted", "steps": "997"} | dict.fromkeys(("accuracy", "correct", "n"), "")
STOPPED["predictions_sha256"] = ""


def write(folder: Path, *rows: dict[str, str], header: str = ",".join(ours.COLUMNS)) -> Path:
    """A table of FINISHED with the changes of each row."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([(FINISHED | row).values() for row in rows])
    folder.mkdir(exist_ok=True)
    (folder / "ours.csv").write_text(f"{header}\n{text.getvalue()}")
    return folder


def test_columns_are_those_that_are_promised() -> None:
    assert tuple(FINISHED) == ours.COLUMNS


def test_what_is_read_is_written_again_byte_for_byte(tmp_path: Path) -> None:
    folder = write(
        tmp_path, {"attn": "softmax", "declared": "", "kernel": "", "kernel_sha256": ""}, {}, STOPPED | {"seed": "1"}
    )
    text = (folder / "ours.csv").read_bytes()
    rows = ours.read(folder)
    ours.write(folder, reversed(rows))
    assert (folder / "ours.csv").read_bytes() == text
    assert (rows[1].accuracy, rows[1].correct, rows[1].n, rows[1].seed) == (0.35, 7, 20, 0)
    assert (rows[2].accuracy, rows[2].correct, rows[2].steps) == (None, None, 997)
    assert rows[2].name == "mlpen/listops/mra2/seed1"


def test_rows_stand_by_protocol_task_attention_and_seed_softmax_first(tmp_path: Path) -> None:
    cells = [
        ("mlpen", "listops", "generated", "softmax", "0"), ("mlpen", "listops", "generated", "mra2", "2"),
        ("mlpen", "listops", "generated", "yoso", "10"), ("mlpen", "listops", "generated", "yoso_conv", "0"),
        ("mlpen", "text", "imdb", "bigbird", "0"), ("mlpen", "pathfinder", "generated", "bigbird", "0"),
        ("google", "listops", "release", "softmax", "0"),
    ]  # fmt: skip
    rows = [dict(zip(("protocol", "task", "source", "attn", "seed"), cell, strict=True)) for cell in cells]
    in_order = ours.read(write(tmp_path, *rows))
    ours.write(tmp_path, in_order[::-1])
    assert ours.read(tmp_path) == in_order


def test_a_header_alone_is_no_rows_and_no_file_is_a_line(tmp_path: Path) -> None:
    assert ours.read(write(tmp_path)) == []
    with pytest.raises(ValueError, match=r"ours\.csv is missing; make collect writes it$"):
        ours.read(tmp_path / "no")


WRONG = {
    "accuracy": ({"accuracy": "0.36"}, "accuracy 0.360000 is not correct / n = 0.350000"),
    "decimals": ({"accuracy": "0.35"}, "accuracy '0.35' is not written as '0.350000'"),
    "percent": ({"accuracy": "35 %"}, "accuracy '35 %' is not a number with 6 decimals"),
    "correct": ({"correct": "21", "accuracy": "1.050000"}, "correct 21 is not between 0 and n 20"),
    "n": ({"n": "0"}, "correct 7 is not between 0 and n 0"),
    "whole": ({"seed": "1.0"}, "seed '1.0' is not a whole number"),
    "leading": ({"seed": "01"}, "seed '01' is not written as '1'"),
    "missing": ({"steps": ""}, "steps is empty"),
    "finished": ({"accuracy": ""}, "accuracy is empty, and the run is finished"),
    "no hash": ({"predictions_sha256": ""}, "predictions_sha256 is empty, and the run is finished"),
    "stopped": (STOPPED | {"correct": "7"}, "correct 7 is of a run that is interrupted"),
    "status": ({"status": "done"}, "status 'done' is not one of finished, diverged, out_of_memory, interrupted"),
    "task": ({"task": "chess"}, "task 'chess' is not one of listops, "),
    "toy": ({"source": "synthetic"}, "source 'synthetic' is not a real one of listops: release, generated"),
    "path": ({"attn": "../mra2"}, "attn '../mra2' is not a name of small letters, digits and _"),
    "hash": ({"result_sha256": "E" * 64}, f"result_sha256 {'E' * 12}"),
    "empty hash": ({"data_sha256": ""}, "data_sha256 '' is not a sha256 in hex"),
    "date": ({"date": "23.11.2026"}, "date '23.11.2026' is not a day of the form YYYY-MM-DD"),
    "control": ({"device": "a\tb"}, r"device 'a\tb' is not one line that can be printed"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_row_that_no_run_has_is_named_by_file_line_value_and_rule(what: str, tmp_path: Path) -> None:
    changes, rule = WRONG[what]
    with pytest.raises(ValueError, match=r"ours\.csv, line 3: ") as caught:
        ours.read(write(tmp_path, {"attn": "softmax"}, changes))
    said = str(caught.value).partition("line 3: ")[2]
    assert said.replace("'", "").startswith(rule.replace("'", "")), said
    assert "\n" not in said


def test_a_cell_comes_once_and_in_its_place(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"line 3: mlpen/listops/mra2/seed0 must come once"):
        ours.read(write(tmp_path, {}, {}))
    with pytest.raises(ValueError, match=r"line 3: mlpen/listops/mra2/seed0 must come once, and .*seed1 before it"):
        ours.read(write(tmp_path, {"seed": "1"}, {}))


@pytest.mark.parametrize("header", ["", "protocol,task", ",".join(reversed(ours.COLUMNS))])
def test_other_columns_are_refused(header: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ours\.csv, line 1: the columns are not protocol, task, "):
        ours.read(write(tmp_path, {}, header=header))


def test_an_empty_file_and_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ours.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ours\.csv is empty; its first line must be protocol,task,"):
        ours.read(tmp_path)
    (tmp_path / "ours.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not text in UTF-8: byte 0"):
        ours.read(tmp_path)


def test_predictions_are_those_of_the_row_by_hash_number_and_count(tmp_path: Path) -> None:
    (row,) = ours.read(write(tmp_path, {}))
    with pytest.raises(ValueError, match=r"mlpen-listops-mra2-seed0\.npz is missing$"):
        ours.predictions(tmp_path, row)
    ours.write_predictions(tmp_path, row, SAID)
    for mine, given in zip(ours.predictions(tmp_path, row), SAID, strict=True):
        np.testing.assert_array_equal(mine, given)
    for other, line in (
        (row._replace(correct=8), "has 7 right, its row says 8"),
        (row._replace(n=40), r"expected uint8 \(40,\)"),
    ):
        with pytest.raises(ValueError, match=line):
            ours.predictions(tmp_path, other)
    file = ours.file_of(tmp_path, row)
    file.write_bytes(file.read_bytes() + b"0")
    with pytest.raises(ValueError, match=r"mlpen-listops-mra2-seed0\.npz is damaged$"):
        ours.predictions(tmp_path, row)
    (stopped,) = ours.read(write(tmp_path / "other", STOPPED))
    with pytest.raises(ValueError, match="mlpen/listops/mra2/seed0 is interrupted and has no predictions"):
        ours.predictions(tmp_path, stopped)


def test_the_same_predictions_are_the_same_bytes_without_a_time_in_them() -> None:
    packed = ours.packed(SAID)
    assert ours.packed(ours.Predictions(*(array.copy() for array in SAID))) == packed
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        assert [(entry.filename, entry.date_time[0]) for entry in archive.infolist()] == [
            ("predictions.npy", 1980), ("labels.npy", 1980),
        ]  # fmt: skip
    with np.load(io.BytesIO(packed)) as arrays:
        assert {name: arrays[name].dtype for name in arrays} == {"predictions": np.uint8, "labels": np.uint8}


def test_the_table_of_the_repository_and_every_file_beside_it_hold() -> None:
    folder = Path(__file__).resolve().parents[1] / "runs" / "published"
    rows = ours.read(folder)
    finished = [row for row in rows if row.status == "finished"]
    for row in finished:
        assert len(ours.predictions(folder, row).labels) == row.n
    assert {file.name for file in (folder / "ours").glob("*")} == {ours.file_of(folder, row).name for row in finished}
