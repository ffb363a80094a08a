"""Laws of the learning curves: read what is whole, draw it the same way every time, keep text as text."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from lra.curves import Curve, read_curves, windows
from lra.report import main
from tests.results import write_run


def write_metrics(folder: Path, steps: int = 200, tail: str = "") -> None:
    lines = []
    for step in range(50, steps + 1, 50):
        lines.append({"step": step, "split": "train", "loss": 2.3 - step / 1000, "accuracy": step / 1000, "lr": 1e-4})
        lines.append({"step": step, "split": "val", "loss": 2.2 - step / 1000, "accuracy": step / 1100})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)


def some_runs(root: Path) -> None:
    for attn in ("softmax", "mra2"):
        for seed in (0, 1):
            folder = root / f"mlpen/listops/{attn}/seed{seed}"
            write_run(folder, attn=attn, seed=seed, steps=200)
            write_metrics(folder)
    folder = root / "mlpen/listops/mra2/train.lr=1.0,seed0"
    write_run(folder, status="diverged", test=None, train=None)
    write_metrics(folder, tail='{"step": 250, "split": "train", "loss": NaN, "accuracy": null}\n')


def words_of(svg: Path) -> str:
    texts = ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")
    return "\n".join("".join(text.itertext()) for text in texts)


def test_curves_come_back_by_split(tmp_path: Path) -> None:
    write_metrics(tmp_path, steps=100)
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert curves["train"].steps == [50, 100]
    assert curves["train"].loss == pytest.approx([2.25, 2.2])
    assert curves["train"].accuracy == pytest.approx([5.0, 10.0])
    assert curves["val"].steps == [50, 100]
    assert curves["val"].accuracy == pytest.approx([100 * 50 / 1100, 100 * 100 / 1100])


@pytest.mark.parametrize("tail", ["", '{"step": 150, "split"', '{"step": 150, "split": "train", "loss": 1.0}'])
def test_a_torn_last_line_is_left_out(tmp_path: Path, tail: str) -> None:
    write_metrics(tmp_path, steps=100, tail=tail)
    assert read_curves(tmp_path / "metrics.jsonl")["train"].steps == [50, 100]


@pytest.mark.parametrize("line", ["", "{}", "[]", "3", '{"step": "x", "split": "train"}', '{"step": 1, "spl'])
def test_a_broken_line_in_the_middle_is_named(tmp_path: Path, line: str) -> None:
    write_metrics(tmp_path, steps=50, tail=f'{line}\n{{"step": 100, "split": "train", "loss": 1.0}}\n')
    with pytest.raises(ValueError, match="line 3 is not a metrics line"):
        read_curves(tmp_path / "metrics.jsonl")


def test_windows_are_means_and_keep_the_last_step() -> None:
    curve = Curve(list(range(1, 11)), [float(i) for i in range(10)], [0.0] * 10)
    assert windows(curve, most=5) == Curve([2, 4, 6, 8, 10], [0.5, 2.5, 4.5, 6.5, 8.5], [0.0] * 5)
    assert windows(curve, most=4) == Curve([3, 6, 9, 10], [1.0, 4.0, 7.0, 9.0], [0.0] * 4)
    assert windows(curve, most=10) == curve
    assert windows(Curve([], [], [])) == Curve([], [], [])


def test_a_window_with_a_loss_that_is_no_number_is_no_number() -> None:
    (loss,) = windows(Curve([1, 2], [1.0, math.nan], [0.0, 0.0]), most=1).loss
    assert math.isnan(loss)


def test_the_picture_names_runs_and_floors_as_text(tmp_path: Path) -> None:
    some_runs(tmp_path)
    out = tmp_path / "curves.svg"
    assert main([f"runs={tmp_path}", f"out={out}"]) == 0
    words = words_of(out)
    for name in ("listops (generated), protocol mlpen", "softmax: 37.2% (mean of 2)", "mra2, train.lr=1.0", "step"):
        assert name in words
    assert "36.2%" in words
    assert "17.1%" in words


def test_a_long_deviation_is_shortened_in_the_legend(tmp_path: Path) -> None:
    folder = (
        tmp_path / "model.dim=16,model.ffn=16,model.head_dim=8,model.seq_len=64,train.batch_size=8,train.steps=40,seed0"
    )
    write_run(folder)
    write_metrics(folder)
    out = tmp_path / "curves.svg"
    assert main([f"runs={tmp_path}", f"out={out}"]) == 0
    assert "mra2, model.dim=16, model.ffn=16, model.head_dim=8, [...]: 37.2%" in words_of(out)


def test_floors_are_drawn_for_listops_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0", task="text", source="imdb")
    write_metrics(tmp_path / "seed0")
    out = tmp_path / "curves.svg"
    assert main([f"runs={tmp_path}", f"out={out}"]) == 0
    assert "text, protocol mlpen" in words_of(out)
    assert "36.2%" not in words_of(out)


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    some_runs(tmp_path)
    pictures = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for out in pictures:
        assert main([f"runs={tmp_path}", f"out={out}"]) == 0
    first, second = (out.read_bytes() for out in pictures)
    assert first == second
    assert b"<dc:date>" not in first


def test_a_run_without_curves_is_named_and_hurts_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_runs(tmp_path)
    write_run(tmp_path / "mlpen/listops/mra2/seed7", seed=7)
    out = tmp_path / "curves.svg"
    assert main([f"runs={tmp_path}", f"out={out}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("no curves of ")
    assert "seed7" in lines[0]
    assert lines[1] == f"written: {out}"


def test_without_runs_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "curves.svg"
    assert main([f"runs={tmp_path}", f"out={out}"]) == 0
    assert not out.exists()
    assert capsys.readouterr().out.endswith("yet: make lra task=listops attn=mra2\n")


@pytest.mark.parametrize(
    ("word", "message"), [("out=curves.gif", "does not end in .svg or .png"), ("task=txt", "not one of listops")]
)
def test_a_wrong_word_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str, message: str) -> None:
    some_runs(tmp_path)
    assert main([f"runs={tmp_path}", word]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
