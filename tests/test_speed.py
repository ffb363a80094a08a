"""The speed benchmark runs, writes what it says, and answers wrong words in one line."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.speed import Row, main
from benchmarks.tables import PAGES, written
from benchmarks.tables import main as tables


def test_the_growth_is_to_the_step_at_half_the_length(tmp_path: Path) -> None:
    out = tmp_path / "speed.csv"
    assert main(["lengths=8,16,31", "repeats=1", "attn=softmax", "device=cpu", f"out={out}"]) == 0
    eight, sixteen, odd = csv.DictReader(out.read_text().splitlines())
    assert float(sixteen["step_growth"]) == round(float(sixteen["step_ms"]) / float(eight["step_ms"]), 3)
    assert (eight["step_growth"], odd["step_growth"]) == ("", "")


def test_speed_writes_a_row_per_attention_and_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "speed.csv"
    assert main(["lengths=5,9", "repeats=2", "attn=mra2", "device=cpu", f"out={out}"]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert {row["implementation"] for row in rows} == {"zoo core"}
    assert [(row["attn"], row["n"]) for row in rows] == [
        ("softmax", "5"),
        ("mra2", "5"),
        ("softmax", "9"),
        ("mra2", "9"),
    ]
    assert tuple(rows[0]) == Row._fields
    assert {row["against"] for row in rows} == {"softmax, zoo core"}
    assert [row["kernel"] for row in rows[:2]] == ["", "cpu"]
    for row in rows:
        assert min(float(row[key]) for key in ("forward_ms", "step_ms", "forward_ratio", "step_ratio")) > 0
        assert float(row["peak_mb"]) >= 0
    assert all(float(row["step_ratio"]) == 1 for row in rows if row["attn"] == "softmax")
    assert f"written: {out}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("lengths=12,x", "error: lengths=x must be an integer of at least 1"),
        ("repeats=0", "error: repeats=0 must be an integer of at least 1"),
        ("attn=mra3", "error: attn=mra3 is not one of softmax, "),
        ("peers=some", "error: peers=some is not one of none, all, only"),
        ("length=12", "error: unknown key 'length'"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(word: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    said = capsys.readouterr().err
    assert said.startswith(answer)
    assert said.count("\n") == 1


@pytest.mark.parametrize("name", PAGES)
def test_a_page_has_the_tables_of_the_measured_files(name: str) -> None:
    page = (Path(__file__).resolve().parent.parent / "docs" / name).read_text()
    assert written(name, page) == page, "make bench name=tables"


def test_a_page_without_marks_is_answered_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in PAGES:
        (tmp_path / name).write_text("no marks")
    assert tables([f"docs={tmp_path}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert {file.read_text() for file in tmp_path.iterdir()} == {"no marks"}
