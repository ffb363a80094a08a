"""The benchmark of convergence: budgets end at softmax, draws approach what they estimate."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks.convergence import Row, main


def test_errors_fall_to_rounding_or_with_the_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, figure = tmp_path / "errors.csv", tmp_path / "errors.svg"
    assert main(["length=64", "draws=2", f"out={out}", f"figure={figure}"]) == 0
    assert f"written: {out}\nwritten: {figure}\n" in capsys.readouterr().out
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert tuple(rows[0]) == Row._fields
    for name in {row["attn"] for row in rows}:
        errors = [float(row["error"]) for row in rows if row["attn"] == name]
        kind = next(row["kind"] for row in rows if row["attn"] == name)
        assert errors[-1] < (1e-5 if kind == "choosing" else max(1e-5, errors[0] / 2)), name
    assert figure.read_text().count("<path") > 20


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("length=100", "error: length=100 must be a power of two of at least 64"),
        ("draws=0", "error: draws=0 must be an integer of at least 1"),
        ("drawn=3", "error: unknown key 'drawn'"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(word: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    said = capsys.readouterr().err
    assert said.startswith(answer)
    assert said.count("\n") == 1
