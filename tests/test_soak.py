"""What the soak measures and how it judges; the soak itself takes minutes (make bench name=soak)."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from benchmarks import soak
from benchmarks.rows import save_rows
from benchmarks.soaked import Sample, draw, ends, read, verdicts


def samples(minutes: int, leak: float = 0.0) -> list[Sample]:
    """A sample each 10 s, with a memory that grows by `leak` MB a sample."""
    return [
        Sample(
            10.0 * k, 100 * k, 10.0, 90.0, 400.0 + leak * k, 19, 4, 45.0, 28, 18.0, 5, k // 3, 25.0, 300.0, 40,
            1.0, 0.1 * k, 0.2 * k, 0.5, 8, 0, "mra2", "a CPU", "3.11", "2.13.0", "c" * 40,
        )
        for k in range(1, 6 * minutes + 1)
    ]  # fmt: skip


def line(lines: list[str], name: str) -> list[str]:
    (found,) = (each.split() for each in lines if each.startswith(f"{name} "))
    return found


def test_what_stays_is_no_change_and_what_grows_shows() -> None:
    flat, growing = verdicts(samples(45)), verdicts(samples(45, leak=1.0))
    assert line(flat, "trainer_mb") == ["trainer_mb", "400.00", "400.00", "+0.0%", "MB"]
    assert line(growing, "trainer_mb") == ["trainer_mb", "415.50", "655.50", "+57.8%", "MB"]
    assert line(flat, "left") == ["left", "0.00", "0.00", "+0"]


def test_the_ends_are_the_first_and_the_last_five_of_45_minutes() -> None:
    first, last = ends(samples(45))
    assert [part[0].seconds for part in (first, last)] == [10, 2410]
    assert [part[-1].seconds for part in (first, last)] == [300, 2700]


def test_samples_come_back_from_their_file_and_are_drawn_alike(tmp_path: Path) -> None:
    taken = samples(4)
    save_rows(str(tmp_path / "soak.csv"), Sample._fields, taken)
    assert read(tmp_path / "soak.csv") == taken
    for name in ("one.svg", "two.svg"):
        draw(taken, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()


def test_memory_handles_and_threads_of_a_process_are_seen_and_none_of_one_that_is_gone(tmp_path: Path) -> None:
    mb, handles, threads = soak.held(os.getpid())
    assert mb > 10
    assert threads >= 1
    with (tmp_path / "more").open("w"):
        assert soak.held(os.getpid())[1] == handles + 1
    process = soak.started(("timeit", "-n1", "pass"), tmp_path, dict(os.environ), sys.stdout.fileno())
    process.wait()
    assert soak.held(process.pid) == (0, 0, 0)


def test_a_command_that_fails_ends_the_rounds_with_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "round").mkdir()
    (tmp_path / "round" / "wrong.py").write_text("raise SystemExit('error: no such thing')")
    rounds = soak.Rounds(tmp_path, os.environ)
    with pytest.raises(soak.Broken, match=r"python -m wrong a=1 ended with code 1: error: no such thing"):
        rounds._command(("wrong", "a=1"))


def test_an_end_of_the_soak_ends_a_round_under_way(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "round").mkdir()
    (tmp_path / "round" / "slow.py").write_text("import time; time.sleep(600)")
    rounds = soak.Rounds(tmp_path, os.environ)
    rounds._stop.set()
    start = time.monotonic()
    rounds._command(("slow",))
    assert time.monotonic() - start < 60


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["minutes=0"], "minutes=0 must be an integer of at least 1"),
        (["minutes=1", "every=5"], "every=5 gives fewer than 18 samples in 1 min"),
        (["minute=3"], "did you mean 'minutes'"),
    ],
)
def test_a_wrong_word_is_one_line(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(words) == 2
    error = capsys.readouterr().err
    assert says in error
    assert len(error.splitlines()) == 1
