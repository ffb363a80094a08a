"""A run's directory: one holder, one configuration, whole files."""

import os
from pathlib import Path
from typing import IO, Any

import pytest

from lra.files import remove_parts, write_atomically, write_text
from lra.run import Busy, Run
from lra.words import WordError

CONFIG: dict[str, Any] = {"seed": 0, "fresh": False, "device": "auto", "train": {"lr": 1e-4, "log_every": 10}}


def test_a_second_process_is_refused_with_the_number_of_the_first(tmp_path: Path) -> None:
    first = Run(tmp_path / "run", CONFIG)
    with pytest.raises(Busy, match=f"is being trained by process {os.getpid()}"):
        Run(tmp_path / "run", CONFIG)
    first.close()
    Run(tmp_path / "run", CONFIG).close()


def test_another_configuration_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    Run(tmp_path / "run", CONFIG).close()
    with pytest.raises(WordError, match=r"train\.lr=0\.1 \(there 0\.0001\).*fresh=true"):
        Run(tmp_path / "run", {**CONFIG, "train": {"lr": 0.1}})


def test_a_run_that_fails_before_it_has_anything_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data"), Run(tmp_path / "a" / "b" / "run", CONFIG):
        raise ValueError("no data")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_later_keeps_what_it_has(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", CONFIG)
    run.metrics.write_text("{}\n")
    with pytest.raises(ValueError, match="late"), run:
        raise ValueError("late")
    assert {file.name for file in run.path.iterdir()} == {".lock", "config.yaml", "metrics.jsonl"}


def test_a_directory_that_was_there_stays(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no data"), Run(tmp_path, CONFIG):
        raise ValueError("no data")
    assert (tmp_path / "config.yaml").exists()


def test_a_fresh_run_that_fails_at_once_gives_the_old_one_back(tmp_path: Path) -> None:
    old = Run(tmp_path / "run", CONFIG)
    old.metrics.write_text("the old run\n")
    old.close()
    with pytest.raises(ValueError, match="wrong"), Run(tmp_path / "run", {**CONFIG, "seed": 1, "fresh": True}):
        raise ValueError("wrong")
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == "the old run\n"
    Run(tmp_path / "run", CONFIG).close()


def test_other_circumstances_are_welcome(tmp_path: Path) -> None:
    Run(tmp_path / "run", CONFIG).close()
    run = Run(tmp_path / "run", {**CONFIG, "device": "cpu", "train": {"lr": 1e-4, "log_every": 1}})
    assert "device: cpu" in (run.path / "config.yaml").read_text()
    run.close()


def test_an_unreadable_configuration_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [")
    with pytest.raises(WordError, match=r"config\.yaml is not readable as a configuration; fresh=true"):
        Run(tmp_path, CONFIG)


def test_fresh_keeps_every_old_run_aside(tmp_path: Path) -> None:
    for content in ("one", "two", "three"):
        run = Run(tmp_path / "seed0", {**CONFIG, "fresh": True})
        assert not (run.path / "mark").exists()
        (run.path / "mark").write_text(content)
        run.close()
    kept = [(tmp_path / f"seed0.old-{k}" / "mark").read_text() for k in (1, 2)]
    assert kept == ["one", "two"]


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "\x00\xff"])
def test_a_result_that_is_not_whole_counts_as_none(tmp_path: Path, text: str) -> None:
    run = Run(tmp_path, CONFIG)
    (tmp_path / "result.json").write_text(text, encoding="latin-1")
    assert run.result() is None
    run.finish({"status": "finished"})
    told = run.result()
    assert told is not None
    assert told["status"] == "finished"
    assert told["files"] == {}
    run.close()


def test_a_write_that_fails_leaves_the_old_file_and_no_remnant(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    write_text(file, "old")

    def fail(out: IO[bytes]) -> None:
        out.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"No space left on device: '.*result\.json'"):
        write_atomically(file, fail)
    assert file.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_parts_of_a_killed_writer_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in (".last.pt.abc.part", "last.pt", ".lock"):
        (tmp_path / name).write_text("x")
    remove_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".lock", "last.pt"]


def test_a_run_is_known_by_one_id_through_every_resume_and_by_another_when_it_starts_over(tmp_path: Path) -> None:
    known = []
    for fresh in (False, False, True, False):
        run = Run(tmp_path / "run", {**CONFIG, "fresh": fresh})
        known.append(run.tracker_id())
        run.close()
    assert known[0] == known[1] != known[2] == known[3]


def test_an_id_that_is_not_whole_is_drawn_again(tmp_path: Path) -> None:
    with Run(tmp_path / "run", CONFIG) as run:
        (run.path / "tracker.id").write_text("../half")
        assert run.tracker_id() == run.tracker_id() == (run.path / "tracker.id").read_text().strip() != "../half"
