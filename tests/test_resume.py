"""A run that is killed and started again ends with the bits of one that never was."""

import os
import signal
from pathlib import Path

import pytest

from tests.forks import Started
from tests.runs import arguments, assert_same_run, environment, records, result, train


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    train(folder)
    return folder / "run"


def start_and_signal(folder: Path, signums: int | tuple[int, ...], line: str, *words: str) -> tuple[int, str]:
    """Start the run, send signals the moment it prints a line with `line` in it; exit code and what it printed."""
    with Started(arguments(folder, *words), folder, environment()) as process:
        seen = ""
        for printed in process.stdout:
            seen += printed
            if line in printed:
                for signum in (signums,) if isinstance(signums, int) else signums:
                    os.kill(process.pid, signum)
                break
        else:
            pytest.fail(f"no line with {line!r} in:\n{seen}")
        seen += process.stdout.read()
    return process.code, seen


@pytest.mark.parametrize(
    ("signums", "code"),
    # The second is what a cluster sends: one signal where the time is nearly over, and the others on top of it.
    [(signal.SIGINT, 130), ((signal.SIGUSR2, signal.SIGTERM, signal.SIGTERM), 140)],
)
def test_a_signal_saves_everything_and_exits_with_its_code(
    tmp_path: Path, undisturbed: Path, signums: int | tuple[int, ...], code: int
) -> None:
    ended, seen = start_and_signal(tmp_path, signums, "step 17/40")
    assert ended == code, seen
    assert "with everything saved" in seen
    assert "Traceback" not in seen
    stopped = result(tmp_path / "run")
    assert stopped["status"] == "interrupted"
    assert records(tmp_path / "run")[-1]["step"] == stopped["steps"]
    again = train(tmp_path)
    assert f"going on from step {stopped['steps']}" in again.stdout
    assert_same_run(tmp_path / "run", undisturbed)


def test_what_training_draws_at_random_is_drawn_again_after_a_kill(tmp_path: Path) -> None:
    """YOSO's hash functions are new in every step, and a resumed step has those of the step that was killed."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    train(whole, "attn=yoso", "attn.bits=3")
    code, seen = start_and_signal(killed, signal.SIGKILL, "step 21/40", "attn=yoso", "attn.bits=3")
    assert code == -signal.SIGKILL, seen
    train(killed, "attn=yoso", "attn.bits=3")
    assert_same_run(killed / "run", whole / "run")


def test_a_signal_during_evaluation_repeats_the_evaluation(tmp_path: Path, undisturbed: Path) -> None:
    ended, seen = start_and_signal(tmp_path, signal.SIGTERM, "step 30/40")
    assert ended == 143, seen
    train(tmp_path)
    assert_same_run(tmp_path / "run", undisturbed)


def test_the_same_words_again_report_the_finished_run_and_do_nothing(undisturbed: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in undisturbed.rglob("*") if path.name not in (".lock", "config.yaml")
    }
    again = train(undisturbed.parent)
    assert "is finished: test accuracy" in again.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_broken_checkpoint_without_a_spare_is_one_line_that_names_it(tmp_path: Path, undisturbed: Path) -> None:
    start_and_signal(tmp_path, signal.SIGTERM, "step 9/40")
    last = tmp_path / "run" / "checkpoint" / "last.pt"
    last.write_bytes(last.read_bytes()[:1000])
    last.with_name("last.spare.pt").unlink()
    failed = train(tmp_path, code=1)
    assert len(failed.stderr.splitlines()) == 1
    assert "last.pt is not a whole checkpoint" in failed.stderr
    assert "fresh=true" in failed.stderr
    train(tmp_path, "fresh=true")
    assert_same_run(tmp_path / "run", undisturbed)


def test_another_set_of_words_for_the_same_directory_is_refused_by_key(undisturbed: Path) -> None:
    refused = train(undisturbed.parent, "train.lr=0.5", "train.log_every=3", code=2)
    assert "train.lr=0.5 (there 0.001)" in refused.stderr
    assert "log_every" not in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
