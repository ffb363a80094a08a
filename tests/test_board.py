"""What the dashboard takes from the folders of runs, without trackio: the page is in tests/browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from lra import board
from lra.shown import summary
from lra.tracker import charted
from lra.trackio_store import Point, View, demand
from lra.words import WordError
from tests.board_runs import config_of, record, result_of, write_run
from tests.runs import environment

WITHOUT = "import sys; sys.modules['trackio'] = None; from {0} import main; sys.exit(main())"


def refused(folder: Path, module: str, *words: str) -> str:
    """What a command says without trackio; it must write nothing."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(module), *words],
        cwd=folder, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert list(folder.iterdir()) == []
    return done.stderr


def test_a_run_that_asks_for_trackio_without_it_is_refused_in_one_line(tmp_path: Path) -> None:
    said = refused(tmp_path, "lra.train", "tracker=trackio")
    assert said == "error: tracker=trackio needs trackio: make dashboard view=trackio installs it\n"


def test_the_page_without_trackio_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(WordError, match="^view=trackio needs trackio: make dashboard view=trackio installs it$"):
        board.show(tmp_path)
    with pytest.raises(WordError, match=r"^lra\.board needs"):
        demand("lra.board")
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_is_read_under_the_names_of_its_tracker(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mra2", 1)
    result = json.loads((folder / "result.json").read_text())
    view, points = board.read_view(folder, tmp_path), board.read_points(folder)
    (folder / "tracker.id").write_text("0123456789abcdef\n")
    assert board.read_view(folder, tmp_path).run_id == "0123456789abcdef"
    assert (view.group, view.name, view.project) == ("mlpen/listops", "mra2/seed1", "mlpen-listops")
    assert view.run_id == result["config_sha256"][:16]
    assert view.final
    # What a reader groups by is plain text, as it is while a run trains.
    assert (view.config["attn"], view.config["task"], view.config["seed"]) == ("mra2", "listops", 1)
    assert view.config["device"] == "a CPU"
    assert view.config["status"] == "finished"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(point.step, point.values) for point in points[:-1]] == [(line["step"], charted(line)) for line in lines]
    accuracy = result["test"]["accuracy"]
    assert points[-1][:2] == (400, {"test/accuracy": accuracy, "val/best_accuracy": accuracy})


@pytest.mark.parametrize(("status", "failed"), [("finished", 0), ("diverged", 1), ("out_of_memory", 1)])
def test_the_summary_of_a_result_has_the_keys_that_dashboards_rely_on(status: str, failed: int) -> None:
    shown = summary(result_of(config_of("mra2", 0), status, 0.35))
    always = {"status", "val/best_accuracy", "speed/tokens_per_s", "memory/peak_mb", "model/params", "run/failed"}
    assert shown.keys() == always | ({"test/accuracy"} if status == "finished" else set())
    assert (shown["status"], shown["run/failed"]) == (status, failed)


def test_a_run_in_training_is_named_by_its_path(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "soft", 0, status="")
    folder = folder.rename(tmp_path / "mlpen" / "listops" / "soft_conv")
    (folder / "seed0").mkdir()
    for name in ("config.yaml", "metrics.jsonl"):
        (folder / name).rename(folder / "seed0" / name)
    view, points = board.read_view(folder / "seed0", tmp_path), board.read_points(folder / "seed0")
    assert view.name == "soft_conv/seed0"
    assert view.config["attn"] == "soft_conv"
    assert not view.final
    assert points[-1].step == 400
    elsewhere = board.read_view(folder / "seed0", tmp_path / "mlpen")
    assert elsewhere.config["attn"] == "soft"


def test_points_stand_at_the_seconds_of_their_records(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mra2", 0)
    lines = [{**record(step, "train", 0.1), "seconds": 2.0 * step} for step in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(folder / "metrics.jsonl", (1000.0, 1000.0))
    assert [point.at for point in board.read_points(folder)] == [960.0, 980.0, 1000.0, 1000.0]
    del lines[1]["seconds"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    os.utime(folder / "metrics.jsonl", (1000.0, 1000.0))
    assert {point.at for point in board.read_points(folder)} == {1000.0}


def test_a_last_line_that_is_still_being_written_is_left_for_the_next_look(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "mra2", 0, status="")
    whole = len(board.read_points(folder))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 410, "spl')
    assert len(board.read_points(folder)) == whole


class Kept:
    """A store that remembers what it was given."""

    def __init__(self) -> None:
        self.held: dict[str, list[Point]] = {}

    def hold(self, run: View, read: board.Callable[[], list[Point]]) -> int:
        before = len(self.held.get(run.name, []))
        self.held[run.name] = read()
        return len(self.held[run.name]) - before

    def keep(self, project: str, names: dict[str, set[str]]) -> None:
        self.kept = {project: names}


@pytest.fixture
def kept(tmp_path: Path) -> tuple[board.Board, Kept]:
    store = Kept()
    return board.Board(tmp_path, store), store  # type: ignore[arg-type]


def test_a_look_takes_what_has_changed_and_nothing_else(kept: tuple[board.Board, Kept], tmp_path: Path) -> None:
    looked, store = kept
    folder = write_run(tmp_path, "mra2", 0, status="")
    assert looked.look() == 48
    store.held.clear()
    assert looked.look() == 0
    assert store.held == {}
    write_run(tmp_path, "softmax", 0, task="text")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(record(410, "train", 0.3)) + "\n")
    looked.look()
    assert {name: len(points) for name, points in store.held.items()} == {"mra2/seed0": 49, "softmax/seed0": 49}
    assert looked.projects() == {"mlpen-listops": 1, "mlpen-text": 1}


BROKEN = {
    "tracker.id": ["no hash", "' OR 1 --aaaaaaa", "\xff"],
    "metrics.jsonl": ["no json\n", "[]\n", '{"split": "val"}\n', '{"step": 1e400}\n', '{"step": true}\n', "\xff\n"],
    "result.json": ["", "{", "[]", '{"schema": 2}', "null", '{"schema": 1, "status": "finished"}'],
    "config.yaml": ["", "- a\n", "a: [\n", "task: listops\n", "task: {}\nattn: {}\n"],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in BROKEN.items() for text in texts])
def test_a_broken_run_is_a_line_and_the_others_are_shown(
    kept: tuple[board.Board, Kept], tmp_path: Path, name: str, text: str
) -> None:
    looked, store = kept
    write_run(tmp_path, "softmax", 0)
    broken = write_run(tmp_path, "mra2", 0, status="finished" if name in ("result.json", "tracker.id") else "")
    (broken / name).write_text(text, encoding="latin-1")
    looked.look()
    assert list(store.held) == ["softmax/seed0"]
    assert len(looked.problems) == 1
    assert looked.problems[0].startswith("left out mlpen/listops/mra2/seed0: ")
    assert "\n" not in looked.problems[0]
    looked.look()
    assert len(looked.problems) == 1
    (broken / name).unlink()
    (broken / "config.yaml").write_text(yaml.safe_dump(config_of("mra2", 0)))
    (broken / "metrics.jsonl").write_text(json.dumps(record(10, "train", 0.3)) + "\n")
    looked.look()
    assert looked.problems == []
    assert sorted(store.held) == ["mra2/seed0", "softmax/seed0"]


def test_two_folders_of_one_configuration_are_not_laid_over_each_other(
    kept: tuple[board.Board, Kept], tmp_path: Path
) -> None:
    looked, store = kept
    for root in (tmp_path, tmp_path / "copy"):
        write_run(root, "mra2", 0)
    looked.look()
    assert list(store.held) == ["mra2/seed0"]
    assert looked.problems == [
        "left out mlpen/listops/mra2/seed0: the same configuration as copy/mlpen/listops/mra2/seed0"
    ]


@pytest.mark.parametrize("word", ["port=x", "port=-1", "port=70000", "runs=nowhere", "prot=1"])
def test_wrong_words_are_answered_in_one_line(capsys: pytest.CaptureFixture[str], word: str) -> None:
    assert board.main([word]) == 2
    said = capsys.readouterr().err
    assert word.partition("=")[0] in said
    assert said.count("\n") == 1
