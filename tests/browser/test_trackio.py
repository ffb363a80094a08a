"""tracker=trackio: what a run that trains leaves in trackio's files."""

from __future__ import annotations

import contextlib
import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.runs import command, environment

RUN = "runs/mlpen/listops/mra2/seed0"
RUN_ID = "0123456789abcdef"
# A chart that only points of the split have.
SPLITS = {"train": "train/loss", "val": "val/loss", "end": "val/best_accuracy"}
ORDERED = "SELECT metrics FROM metrics ORDER BY step, id"


def program(folder: Path, text: str, code: int = 0, **variables: str) -> tuple[str, str]:
    """What a Python program says on stdout and stderr, in `folder`."""
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, env={**environment(), **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout.strip(), done.stderr


def view(steps: range, history: range = range(0), speed: float = 1.0) -> str:
    """A program that opens a view with a history and logs steps, as training does."""
    return f"""
import os, pathlib, signal, time
from lra.tracker import open_tracker
def record(step, speed):
    return {{"step": step, "split": "train", "loss": 1 / (step + 1), "tokens_per_s": speed}}
config, history = {{"attn": "mra2"}}, [record(step, 1.0) for step in {history}]
names = ("mlpen/listops", "mra2/seed0", [])
tracker = open_tracker("trackio", pathlib.Path("runs"), "{RUN_ID}", "lra", *names, config, history)
for step in {steps}:
    tracker.log(step, record(step, {speed}))
"""


def rows(folder: Path, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(folder / "runs" / "trackio" / "mlpen-listops.db")) as database:
        return database.execute(query).fetchall()


def steps(folder: Path) -> list[tuple[int, str]]:
    """Each point's step and the split that it is of, sorted."""
    found = [(step, json.loads(values)) for step, values in rows(folder, "SELECT step, metrics FROM metrics")]
    return sorted((step, split) for step, values in found for split in SPLITS if SPLITS[split] in values)


def board(folder: Path) -> str:
    """How many points the dashboard finds new."""
    look = "from lra import board; from lra.trackio_store import Store; from pathlib import Path\n"
    return program(folder, look + "print(board.Board(Path('runs'), Store(Path('runs/trackio'))).look())")[0]


def test_a_run_is_in_trackio_as_it_is_on_disk_and_the_dashboard_finds_nothing_new(tmp_path: Path) -> None:
    words = ("tracker=trackio", f"run_dir={RUN}", "train.eval_every=10", "train.steps=20", "train.warmup=5")
    # Names that would send points elsewhere, were they heard.
    elsewhere = {"TRACKIO_SPACE_ID": "someone/space", "TRACKIO_SERVER_URL": "https://example.com/?write_token=1"}
    done = subprocess.run(
        command(tmp_path, *words), cwd=tmp_path, env=environment() | elsewhere,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / RUN / "result.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / RUN / "metrics.jsonl").read_text().splitlines()]
    known_as = (tmp_path / RUN / "tracker.id").read_text().strip()
    assert rows(tmp_path, "SELECT DISTINCT run_id, run_name FROM metrics") == [(known_as, "mra2/seed0")]
    assert steps(tmp_path) == sorted([*((line["step"], line["split"]) for line in lines), (20, "end")])
    ((config,),) = rows(tmp_path, "SELECT config FROM configs")
    shown = json.loads(config)
    assert (shown["attn"], shown["_Group"], shown["status"]) == ("mra2", "mlpen/listops", "finished")
    assert shown["test/accuracy"] == result["test"]["accuracy"]
    assert board(tmp_path) == "0"
    assert rows(tmp_path, "SELECT config FROM configs") == [(config,)]


def test_a_run_that_was_killed_and_goes_on_has_every_step_once(tmp_path: Path) -> None:
    killed = view(range(40)) + "time.sleep(3); os.kill(os.getpid(), signal.SIGKILL)"
    program(tmp_path, killed, code=-signal.SIGKILL)
    assert [step for step, _ in steps(tmp_path)] == list(range(40))
    # The last checkpoint was at step 25; what is repeated takes another time.
    again = view(range(25, 60), history=range(25), speed=2.0) + "tracker.finish({'val/best_accuracy': 0.5}, 0)"
    assert program(tmp_path, again) == ("", "")
    assert [step for step, _ in steps(tmp_path)] == [*range(60), 59]
    speeds = [json.loads(values).get("speed/tokens_per_s") for (values,) in rows(tmp_path, ORDERED)]
    assert speeds == [1.0] * 25 + [2.0] * 35 + [None]


def test_many_processes_write_at_once(tmp_path: Path) -> None:
    programs = [
        view(range(200)).replace(RUN_ID, f"{RUN_ID[:-1]}{k}") + "tracker.finish({'val/best_accuracy': 0.5}, 0)"
        for k in range(4)
    ]
    started = [subprocess.Popen([sys.executable, "-c", text], cwd=tmp_path, env=environment()) for text in programs]
    assert [process.wait(120) for process in started] == [0, 0, 0, 0]
    assert rows(tmp_path, "SELECT COUNT(*) FROM metrics GROUP BY run_id") == [(201,)] * 4


def warning(said: str) -> str:
    """The reason in the one line that a lost view prints."""
    head, _, rest = said.partition("tracker=trackio: ")
    reason, _, outcome = rest.partition("; the run goes on without it; ")
    assert (head, outcome) == ("warning: ", "make dashboard view=trackio shows it from its metrics.jsonl\n")
    return reason


def test_what_trackio_cannot_do_is_one_line_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "trackio").write_text("no folder")
    out, said = program(tmp_path, view(range(5)) + "tracker.finish({'val/best_accuracy': 0.5}, 0); print('went on')")
    assert out == "went on"
    assert "trackio" in warning(said)


def test_a_network_file_system_is_left_to_the_dashboard(tmp_path: Path) -> None:
    finish = "tracker.finish({'val/best_accuracy': 0.5}, 0)"
    _, said = program(tmp_path, view(range(5)) + finish, TRACKIO_STORAGE_MODE="jsonl")
    assert "is on a network file system" in warning(said)
    assert not list((tmp_path / "runs").rglob("*.db"))
