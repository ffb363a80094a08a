"""The view of the runs under way: what it says, that it fits, and that no file can break it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from lra.records import Follower, name_of
from lra.screen import ago, clock, draw
from lra.underway import Row, Snapshot, UnderWay
from lra.watch import main
from tests.runs import ROOT, environment

NOW = 2e9


def line(step: int, split: str = "train", *, steps: int | None = 100, pace: float = 2.0, **changes: Any) -> str:
    """A line of a record that takes `pace` seconds a step."""
    record: dict[str, Any] = {"step": step, "split": split, "loss": 1.0, "accuracy": step / 1000}
    if split == "train":
        record |= {"lr": 1e-3, "tokens_per_s": 1000.0, "peak_memory_mb": 200.0}
    if steps is not None:
        record |= {"steps": steps, "seconds": step * pace}
    return json.dumps(record | changes) + "\n"


def write(
    root: Path, *lines: str, name: str = "seed0", attn: str = "mra2", task: str = "listops", age: float = 1.0
) -> Path:
    """A record of `lines`, the last of them `age` seconds old."""
    folder = root / "mlpen" / task / attn / name
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "metrics.jsonl"
    file.write_text("".join(lines))
    os.utime(file, (NOW - age, NOW - age))
    return file


def end(record: Path, age: float) -> None:
    """A result beside a record; what it says is nobody's business here."""
    result = record.with_name("result.json")
    result.write_text("")
    os.utime(result, (NOW - age, NOW - age))


def look(root: Path) -> Snapshot:
    return UnderWay(root, {}).read(NOW)


def screen(shot: Snapshot, width: int | None = None, height: int | None = None) -> str:
    """The lines that are drawn, as plain text."""
    return "\n".join(text.plain for text in draw(shot, width, height, ""))


def only(root: Path) -> Row:
    (row,) = look(root).rows
    return row


# What a row says.


def test_a_row_says_how_far_how_good_how_fast_and_how_long_still(tmp_path: Path) -> None:
    write(tmp_path, line(10), line(10, "val", accuracy=0.5), line(20), line(20, "val", accuracy=0.25), age=4.0)
    row = only(tmp_path)
    assert (row.state, row.step, row.steps, row.loss, row.val, row.best) == ("running", 20, 100, 1.0, 0.25, 0.5)
    assert (row.tokens_per_s, row.peak_memory_mb, row.curve) == (1000.0, 200.0, (0.5, 0.25))
    assert row.left == 80 * 2.0 - 4.0


def test_the_time_left_follows_the_pace_of_late(tmp_path: Path) -> None:
    slow = [line(step, pace=10.0) for step in range(10, 70, 10)]
    fast = [line(step, seconds=600.0 + step - 60) for step in range(70, 90, 10)]
    write(tmp_path, *slow, *fast, age=0.0)
    assert only(tmp_path).left == 20.0


def test_a_run_without_a_line_is_starting(tmp_path: Path) -> None:
    write(tmp_path)
    assert only(tmp_path).state == "starting"


def test_a_record_of_before_steps_and_seconds_has_no_total_and_no_time_left(tmp_path: Path) -> None:
    write(tmp_path, line(10, steps=None), line(10, "val", steps=None))
    row = only(tmp_path)
    assert (row.state, row.step, row.steps, row.left) == ("running", 10, None, None)


@pytest.mark.parametrize(
    ("pace", "age", "state"),
    [(1.0, 59.0, "running"), (1.0, 61.0, "silent"), (5.0, 149.0, "running"), (5.0, 151.0, "silent")],
)
def test_a_run_is_silent_by_its_own_rhythm(tmp_path: Path, pace: float, age: float, state: str) -> None:
    write(tmp_path, *(line(step, pace=pace) for step in (10, 20)), line(20, "val", pace=pace), age=age)
    assert only(tmp_path).state == state


def test_before_its_first_validation_a_run_may_be_still_for_long(tmp_path: Path) -> None:
    write(tmp_path, line(10, pace=0.1), age=500.0)
    assert only(tmp_path).state == "running"
    write(tmp_path, line(10, pace=0.1), age=700.0)
    assert only(tmp_path).state == "silent"


def test_a_run_at_its_last_step_is_testing_until_its_result_is_there(tmp_path: Path) -> None:
    record = write(tmp_path, line(100))
    assert only(tmp_path).state == "running"
    write(tmp_path, line(100), line(100, "val"))
    assert only(tmp_path).state == "testing"
    end(record, age=0.5)
    assert look(tmp_path).rows == []


def test_an_ended_run_counts_and_one_that_goes_on_again_is_under_way(tmp_path: Path) -> None:
    end(write(tmp_path, line(10), name="seed0", age=100), age=99)
    end(write(tmp_path, line(10), name="seed1", age=8000), age=7999)
    end(write(tmp_path, line(10), name="seed2", age=5), age=4000)
    write(tmp_path, line(10), name="seed3", age=100_000)
    shot = look(tmp_path)
    assert (shot.ended, shot.ended_lately, shot.abandoned) == (2, 1, 1)
    assert [row.folder.name for row in shot.rows] == ["seed2"]


def test_what_is_no_run_or_was_put_aside_is_not_looked_at(tmp_path: Path) -> None:
    for name in ("wandb", ".sweep", "report"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(line(10))
    write(tmp_path, line(10), name="seed0.old-1")
    assert look(tmp_path) == Snapshot(seen={"protocol": set(), "task": set(), "attn": set()})


# Records that grow, shrink, break and vanish.


def followed(file: Path, follower: Follower | None = None) -> Follower:
    follower = follower or Follower(file)
    follower.read(file.stat())
    return follower


def facts(follower: Follower) -> tuple[Any, ...]:
    return follower.last, follower.train, follower.val, follower.validations, follower.times, list(follower.recent)


def test_a_record_read_in_pieces_says_what_it_says_at_once(tmp_path: Path) -> None:
    lines = [line(step, split) for step in range(1, 100) for split in ("train", "val")[: 2 - step % 2]]
    whole = "".join(lines).encode()
    file = tmp_path / "metrics.jsonl"
    pieces = Follower(file)
    for size in range(0, len(whole) + 97, 97):
        file.write_bytes(whole[:size])
        pieces.read(file.stat())
    assert facts(pieces) == facts(followed(file))
    assert pieces.last == json.loads(lines[-1])
    assert len(pieces.validations) == 49


def test_what_was_read_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(line(10))
    follower, taken = followed(file), []
    monkeypatch.setattr(Follower, "take", lambda self, lines: taken.extend(lines))
    followed(file, follower)
    assert taken == []
    with file.open("a") as opened:
        opened.write(line(20))
    followed(file, follower)
    assert taken == [line(20).strip().encode()]


@pytest.mark.parametrize("behind", [1, 5])
def test_a_resumed_run_that_cut_its_record_is_read_anew(tmp_path: Path, behind: int) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text(line(10) + line(20, "val", accuracy=0.9) + line(30))
    follower = followed(file)
    file.write_text(line(10) + "".join(line(20 + i, "val", accuracy=0.1, loss=0.123456) for i in range(behind)))
    assert facts(followed(file, follower)) == facts(followed(file))
    assert max(accuracy for _, accuracy in follower.validations) == 0.1


def test_lines_that_are_no_records_are_counted_and_left_out(tmp_path: Path) -> None:
    wrong = ('{"step": "x", "split": "val"}', '{"step": -1, "split": "val"}', '{"step": 1}')
    broken = [f"{text}\n" for text in ("nonsense", "[]", "\xff", "[" * 9999, *wrong)]
    odd = line(20, loss=None, tokens_per_s="fast", peak_memory_mb=float("nan"))
    write(tmp_path, line(10, "val"), *broken, odd, "{")
    shot = look(tmp_path)
    (row,) = shot.rows
    assert (shot.broken, row.step) == (len(broken), 20)
    assert (row.loss, row.tokens_per_s, row.peak_memory_mb) == (None, None, None)
    assert f"{len(broken)} unreadable lines" in screen(shot)


def test_a_record_that_is_no_file_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    write(tmp_path, line(10), name="seed0")
    for name, make in (("seed1", os.mkfifo), ("seed2", os.mkdir)):
        record = write(tmp_path, name=name)
        record.unlink()
        make(record)
    now = time.time()
    shot = UnderWay(tmp_path, {}).read(now)
    assert shot.abandoned + len(shot.rows) == 1
    assert len(shot.problems) == 2
    assert "not shown: mlpen/listops/mra2/seed1/metrics.jsonl: " in screen(shot)


def test_a_run_that_vanishes_between_two_looks_is_gone(tmp_path: Path) -> None:
    record = write(tmp_path, line(10))
    under_way = UnderWay(tmp_path, {})
    assert len(under_way.read(NOW).rows) == 1
    record.unlink()
    assert under_way.read(NOW).rows == []
    assert under_way.followers == {}


# How it looks.


def many(count: int) -> list[Row]:
    shot = Snapshot()
    for i in range(count):
        path = Path("runs/mlpen/listops/mra2") / f"attn.block_size={i},train.lr=0.001,seed{i}"
        shot.rows.append(
            Row(path, name_of(path, Path("runs")), "silent" if i % 7 == 3 else "running", 3.0 * i, 10 * i, 12_000,
                1.25, 0.5, 0.75, (0.1, 0.2, 0.75, 0.5), 123_456.7, 1_234.5, 4_000.0)
        )  # fmt: skip
    return shot.rows


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120, 200])
@pytest.mark.parametrize("count", [0, 1, 5, 340])
def test_every_screen_is_as_wide_and_as_high_as_the_terminal_at_most(width: int, count: int) -> None:
    for height in (1, 5, 10, 40):
        lines = draw(Snapshot(many(count)), width, height, "no runs under way in a folder with a long name")
        assert len(lines) <= height
        assert max(cell_len(text.plain) for text in lines) <= width


def test_what_has_no_room_is_left_out_in_order_and_what_names_a_run_stays() -> None:
    shot = Snapshot(many(2))
    headers = {width: draw(shot, width, None, "")[1].plain.split() for width in (200, 100, 80, 50)}
    assert {"loss", "curve", "tokens/s", "peak", "left"} <= set(headers[200])
    assert "curve" not in headers[100]
    assert "tokens/s" in headers[100]
    for header in headers.values():
        assert {"attention", "step", "best", "left"} <= set(header)
    assert set(headers[50]) < set(headers[80]) < set(headers[100]) < set(headers[200])


def test_the_most_recently_active_runs_that_fit_are_shown_and_the_others_counted() -> None:
    text = screen(Snapshot(many(340)), 120, 16)
    assert "and 330 more" in text
    assert "block_size=0 " in text
    assert "block_size=100 " not in text
    assert "block_size=3 " not in text


def test_words_that_all_rows_share_are_said_once() -> None:
    text = [line.plain for line in draw(Snapshot(many(2)), None, None, "")]
    assert text[0] == "mlpen, listops, train.lr=0.001"
    assert "mra2 block_size=1 " in text[3]
    assert "lr" not in text[3]


def test_a_terminal_without_unicode_gets_none() -> None:
    assert all(line.plain.isascii() for line in draw(Snapshot(many(9)), 80, 12, "", ascii_only=True))


def test_times_are_said_in_units_that_a_person_reads() -> None:
    ages = [ago(seconds) for seconds in (0, 59, 60, 3599, 7200, 90_000)]
    assert ages == ["0 s", "59 s", "1 min", "59 min", "2 h", "1 d"]
    assert [clock(seconds) for seconds in (0, 61, 3661, 360_000)] == ["0:00:00", "0:01:01", "1:01:01", "4 d 4 h"]


# The command.


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no runs under way in {root}; make lra task=listops attn=mra2"),
        (("task=listop",), "none has task=listop; did you mean 'listops'?"),
        (("runs={root}/later",), "there is no folder {root}/later yet"),
    ],
)
def test_where_nothing_is_under_way_one_line_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    end(write(tmp_path, line(10)), age=0)
    assert main([f"runs={tmp_path}", *(word.format(root=tmp_path) for word in words)]) == 0
    assert says.format(root=tmp_path) in capsys.readouterr().out.splitlines()[0]


def test_words_choose_the_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for attn in ("mra2", "softmax", "linformer"):
        record = write(tmp_path, line(10), attn=attn)
        os.utime(record)
    assert main([f"runs={tmp_path}", "attn=mra2,softmax", "once=true"]) == 0
    shown = capsys.readouterr().out
    assert "mra2" in shown
    assert "softmax" in shown
    assert "linformer" not in shown
    assert "2 running" in shown


@pytest.mark.parametrize("word", ["every=0", "every=nan", "every=fast", "once=yes", "rusn=x", "watch", "runs={file}"])
def test_a_wrong_word_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    (tmp_path / "file").write_text("")
    assert main([word.format(file=tmp_path / "file")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1


# The first terminal that the leader of a session opens is its own: Ctrl-C reaches it.
ON_TERMINAL = """
import os, sys
terminal = os.open(sys.argv[1], os.O_RDWR)
for descriptor in range(3): os.dup2(terminal, descriptor)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def marks(root: Path) -> dict[Path, tuple[int, int]]:
    """When and how large each file was written."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


@pytest.mark.parametrize("way", ["q", "\x03", "SIGTERM"])
def test_on_a_terminal_it_follows_the_runs_until_it_is_left_and_writes_nothing(tmp_path: Path, way: str) -> None:
    record = write(tmp_path, line(10), line(10, "val"))
    os.utime(record)
    before = marks(tmp_path)
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    words = [sys.executable, "-c", ON_TERMINAL, os.ttyname(inner), "-m", "lra.watch", f"runs={tmp_path}", "every=0.1"]
    process = subprocess.Popen(words, cwd=ROOT, env=environment() | {"TERM": "xterm"}, start_new_session=True)
    shown = read_until(terminal, b"10/100")
    assert marks(tmp_path) == before
    with record.open("a") as opened:
        opened.write(line(20))
    shown += read_until(terminal, b"20/100")
    if way == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    else:
        os.write(terminal, way.encode())
    # The old screen comes back, and so does the cursor.
    read_until(terminal, b"\x1b[?25h")
    assert process.wait(60) == (143 if way == "SIGTERM" else 0), shown
    os.close(terminal)
    os.close(inner)


def read_until(terminal: int, wanted: bytes) -> bytes:
    """What the terminal shows until `wanted` is there."""
    seen, due = b"", time.monotonic() + 60
    while wanted not in seen:
        assert time.monotonic() < due, seen
        if select.select([terminal], [], [], 1)[0]:
            seen += os.read(terminal, 4096)
    return seen


def test_without_a_terminal_it_prints_how_things_stand_and_ends(tmp_path: Path) -> None:
    os.utime(write(tmp_path, line(10)))
    words = [sys.executable, "-m", "lra.watch", f"runs={tmp_path}"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=True, env=environment())
    assert "10/100" in done.stdout
    assert "\x1b" not in done.stdout
