"""`make compare` as a user meets it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from lra.results import main
from tests.results import some_table

REPOSITORY = Path(__file__).resolve().parents[1]


def test_compare_prints_the_table_and_names_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_table(tmp_path)
    assert main([f"runs={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    report = tmp_path / "report"
    assert lines[-1] == f"written: {report / 'compare.md'}, {report / 'compare.csv'}, {report / 'index.html'}"
    assert sorted(path.name for path in report.iterdir()) == ["compare.csv", "compare.md", "index.html"]
    assert any("mra2_s" in line and "37.4?" in line for line in lines)


def test_the_same_runs_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.0)
    some_table(tmp_path)
    contents = []
    for _ in range(2):
        assert main([f"runs={tmp_path}"]) == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()})
    assert contents[0] == contents[1]


def test_filters_choose_rows_and_are_named_in_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_table(tmp_path)
    assert main([f"runs={tmp_path}", "attn=mra2,softmax", "protocol=mlpen"]) == 0
    assert "mra2_s" not in capsys.readouterr().out.split("written:")[0]
    assert "Only attn=mra2,softmax protocol=mlpen." in (tmp_path / "report/compare.md").read_text()


def test_no_runs_is_one_friendly_line_and_the_published_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"runs={tmp_path}", "task=listops"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith("yet: make lra task=listops attn=mra2")
    assert "MRA-2-s" in out
    assert "pathfinder" not in out
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("tsk=listops", "unknown key 'tsk', known are runs, task, attn, protocol; did you mean 'task'?"),
        ("listops", "'listops' is not of the form key=value; keys: runs, task, attn, protocol"),
        ("task=listop", "did you mean 'listops'?"),
        ("runs=no/such/folder", "runs=no/such/folder is not a folder"),
        ("--tasks", "unrecognized arguments: --tasks"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(word: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lra.results", word], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert out.startswith("usage: python -m lra.results")
    assert all(f"{key}=" in out for key in ("runs", "task", "attn"))


def test_comparing_loads_neither_torch_nor_hydra_nor_trackers() -> None:
    heavy = "torch, hydra, wandb, tensorflow_datasets, matplotlib, numpy"
    code = f"import lra.results, sys; print([name for name in '{heavy}'.split(', ') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
