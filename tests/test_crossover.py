"""Laws of the crossover: what was measured is told, and nothing beyond it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed import CORE, YARDSTICK, Row
from lra import crossover as module
from lra.crossover import MEASURED, ahead_from, crossover


def row(attn: str, n: int, ratio: float, peak: float, **changes: Any) -> dict[str, Any]:
    facts = dict.fromkeys(Row._fields, "") | {
        "attn": attn, "implementation": CORE, "n": n, "step_ratio": ratio, "peak_mb": peak, "batch": 4, "heads": 2,
        "head_dim": 32, "dtype": "float32", "device": "a CPU", "torch": "2", "commit": "0" * 40,
    }  # fmt: skip
    return facts | changes


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, Row._fields)
        writer.writeheader()
        writer.writerows(rows)
    return file


YARD = [row(YARDSTICK, n, 1.0, 10.0) for n in (1024, 2048, 4096)]


@pytest.mark.parametrize(
    ("ratios", "start"),
    [
        ({1024: 0.5, 2048: 0.4}, 1024),
        ({1024: 1.5, 2048: 0.4}, 2048),
        ({1024: 0.5, 2048: 1.4, 4096: 0.9}, 4096),
        ({1024: 0.5, 2048: 1.0}, None),
        ({1024: 0.5, 2048: float("nan")}, None),
        ({}, None),
    ],
)
def test_ahead_is_ahead_at_every_longer_measured_length(ratios: dict[int, float], start: int | None) -> None:
    assert ahead_from(ratios) == start


def test_ratios_are_those_to_softmax_and_what_was_not_measured_is_none(tmp_path: Path) -> None:
    rows = [*YARD, row("mra2", 1024, 1.2, 5.0), row("mra2", 4096, 0.5, 12.0), row("yoso", 1024, 3.0, 30.0)]
    found, problems = crossover(write(tmp_path / "speed.csv", rows))
    assert problems == []
    assert found is not None
    assert found["lengths"] == [1024, 2048, 4096]
    mra2, yoso = found["rows"]
    assert mra2 == {
        "attention": "mra2", "time": [1.2, None, 0.5], "memory": [0.5, None, 1.2],
        "ahead_from": 4096, "memory_ahead_from": None,
    }  # fmt: skip
    assert (yoso["ahead_from"], yoso["time"]) == (None, [3.0, None, None])
    assert "forward and backward of the attention alone (4 x 2 heads x 32, float32)" in found["source"]
    assert "a CPU" in found["source"]


def test_rows_of_another_device_or_of_a_whole_layer_are_never_set_beside(tmp_path: Path) -> None:
    strangers = [row("mra2", 1024, 0.1, 1.0, device="H100"), row("mra2", 1024, 0.1, 1.0, implementation="zoo layer")]
    found, problems = crossover(write(tmp_path / "speed.csv", [*YARD, *strangers]))
    assert found is not None
    assert found["rows"] == []
    assert len(problems) == 1
    assert problems[0].startswith("crossover: 1 rows of ")


def test_only_the_attentions_that_were_asked_for_are_told(tmp_path: Path) -> None:
    rows = [*YARD, row("mra2", 1024, 0.5, 1.0), row("yoso", 1024, 0.5, 1.0)]
    found, _ = crossover(write(tmp_path / "speed.csv", rows), ["yoso", "softmax"])
    assert found is not None
    assert [line["attention"] for line in found["rows"]] == ["yoso"]


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\xff\xfe", b"attn,implementation,n\nsoftmax,zoo core,x\n"])
def test_a_file_that_is_no_measurement_is_a_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "speed.csv").write_bytes(content)
    found, problems = crossover(tmp_path / "speed.csv")
    assert found is None
    assert len(problems) == 1
    assert problems[0].startswith("no crossover: ")


def test_without_measurements_nothing_is_told(tmp_path: Path) -> None:
    assert crossover(tmp_path / "speed.csv") == (None, [])


def test_the_committed_measurements_are_read_with_the_day_of_their_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "commit_date", lambda commit: "2026-11-22")
    found, problems = crossover()
    assert problems == []
    assert found is not None
    assert found["source"].startswith("benchmarks/results/speed.csv, 2026-11-22, ")
    assert {"mra2", "linformer"} <= {line["attention"] for line in found["rows"]}
    assert MEASURED.exists()
