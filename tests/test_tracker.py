"""The record of a run is whole whatever its view does; the view holds config, history and summary."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, ClassVar

import pytest
import wandb
from hypothesis import given
from hypothesis import strategies as st

from lra import tracker
from lra.tracker import BEST, TRACKERS, Metrics, Table, Tracker, charted, open_tracker, read_metrics
from tests.offline import Offline

TRAIN = {
    "step": 10,
    "split": "train",
    "loss": 2.5,
    "accuracy": 0.25,
    "lr": 1e-3,
    "tokens_per_s": 5e4,
    "peak_memory_mb": 512.0,
}
VAL = {"step": 10, "split": "val", "loss": 2.25, "accuracy": 0.375}
TABLES = {"test/per_class": Table(("class", "n", "accuracy"), [("cat", 2, 0.5), ("dog", 0, None)])}
SUMMARY = {"status": "finished", "test/accuracy": 0.36, "val/best_accuracy": 0.375, "model/params": 1234}


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


def opened(kind: str, folder: Path, history: tuple[dict[str, Any], ...] = ()) -> Tracker:
    config = {"attn": {"name": "mra2", "block_size": 32}, "seed": 3}
    return open_tracker(
        kind, folder, "abc123", "lra", "mlpen/listops", "mra2/seed3", ["listops", "mra2"], config, history
    )


def offline_runs(folder: Path) -> list[Offline]:
    return [Offline(path) for path in sorted(folder.glob("wandb/offline-run-*/run-abc123.wandb"))]


# The record.


@given(st.floats())
def test_a_float_survives_the_record_bit_for_bit_unless_json_has_no_such_number(value: float) -> None:
    read = json.loads(json.dumps(tracker.finite({"loss": value}), allow_nan=False))["loss"]
    assert read is None if not math.isfinite(value) else struct.pack("d", read) == struct.pack("d", value)


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for record in (TRAIN, VAL):
        metrics.write(record)
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == [TRAIN, VAL]
    metrics.close()


def test_a_loss_that_is_not_finite_is_null(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.write({"step": 1, "loss": math.nan, "accuracy": math.inf})
    metrics.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null, "accuracy": null}\n'


def test_a_resumed_record_keeps_what_the_checkpoint_knew_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.write(TRAIN)
    metrics.sync()
    known = metrics.position
    metrics.write(VAL)
    metrics.close()
    assert known == len(path.read_bytes().splitlines(keepends=True)[0])
    resumed = Metrics(path, keep=known)
    assert resumed.position == known
    resumed.write({"step": 20})
    resumed.close()
    assert list(read_metrics(path)) == [TRAIN, {"step": 20}]


def test_a_new_record_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("left over\n")
    Metrics(path).close()
    assert path.read_bytes() == b""


def test_a_record_shorter_than_its_checkpoint_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"has 12 bytes.* at byte 13"):
        Metrics(path, keep=13)
    assert path.read_text() == '{"step": 1}\n'


def test_a_torn_last_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step"')
    assert list(read_metrics(path)) == [{"step": 1}, {"step": 2}]


def test_a_broken_line_within_the_record_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 2}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is not JSON"):
        list(read_metrics(path))


def test_no_file_is_no_records(tmp_path: Path) -> None:
    assert list(read_metrics(tmp_path / "metrics.jsonl")) == []


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_process_leaves_every_line_that_it_wrote(tmp_path: Path, signum: int) -> None:
    path = tmp_path / "metrics.jsonl"
    program = (
        "import os, sys; from pathlib import Path; from lra.tracker import Metrics\n"
        "metrics = Metrics(Path(sys.argv[1]))\n"
        "for step in range(100): metrics.write({'step': step})\n"
        "os.kill(os.getpid(), int(sys.argv[2]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path), str(int(signum))], check=False, timeout=60)
    assert done.returncode == -signum
    assert [record["step"] for record in read_metrics(path)] == list(range(100))


# The view.


def test_charts_are_named_by_split_except_speed_and_memory() -> None:
    assert charted(TRAIN) == {
        "train/loss": 2.5,
        "train/accuracy": 0.25,
        "train/lr": 1e-3,
        "speed/tokens_per_s": 5e4,
        "memory/peak_mb": 512.0,
    }
    assert charted(VAL | {"loss": None}) == {"val/accuracy": 0.375}
    assert charted(VAL | {"steps": 5000, "seconds": 1.5}) == charted(VAL) | {"time/seconds": 1.5}


def test_jsonl_writes_nothing_beyond_the_record(tmp_path: Path) -> None:
    view = opened("jsonl", tmp_path)
    view.log(10, TRAIN)
    view.tables(TABLES)
    view.finish(SUMMARY, 0)
    assert list(tmp_path.iterdir()) == []
    assert "jsonl" in TRACKERS


def test_an_offline_run_holds_config_history_and_summary(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    view = opened("offline", tmp_path)
    view.log(10, TRAIN)
    view.log(10, VAL)
    view.finish(SUMMARY, 0)
    (run,) = offline_runs(tmp_path)
    assert (run.run.project, run.run.run_group, run.run.display_name) == ("lra", "mlpen/listops", "mra2/seed3")
    assert run.run.job_type == "train"
    assert list(run.run.tags) == ["listops", "mra2"]
    assert run.config["attn"] == {"name": "mra2", "block_size": 32}
    assert run.config["seed"] == 3
    assert [{key: row[key] for key in row if not key.startswith("_")} for row in run.history] == [
        {"step": 10, **charted(TRAIN)},
        {"step": 10, **charted(VAL)},
    ]
    assert SUMMARY.items() <= run.summary.items()
    assert run.exit_codes == [0]
    assert handlers == {number: signal.getsignal(number) for number in handlers}
    assert capfd.readouterr() == ("", "")


def test_a_resumed_offline_run_holds_the_whole_curve_under_the_same_id(tmp_path: Path) -> None:
    view = opened("offline", tmp_path, history=(TRAIN, VAL))
    view.log(20, TRAIN | {"step": 20})
    view.finish(SUMMARY, 143)
    (run,) = offline_runs(tmp_path)
    assert run.run.run_id == "abc123"
    assert [row["step"] for row in run.history] == [10, 10, 20]
    assert run.exit_codes == [143]


def test_a_resumed_offline_run_puts_aside_what_its_earlier_start_wrote_and_nothing_else(tmp_path: Path) -> None:
    for folder in ("offline-run-20260101_000000-abc123", "offline-run-20260101_000000-other"):
        (tmp_path / "wandb" / folder).mkdir(parents=True)
    opened("offline", tmp_path, history=(TRAIN,)).finish(SUMMARY, 0)
    assert [path.name for path in (tmp_path / "wandb" / "superseded").iterdir()] == [
        "offline-run-20260101_000000-abc123"
    ]
    assert len(offline_runs(tmp_path)) == 1
    assert (tmp_path / "wandb" / "offline-run-20260101_000000-other").exists()


def test_every_curve_runs_over_our_own_step_and_keeps_its_best_value_beside_its_last(tmp_path: Path) -> None:
    view = opened("offline", tmp_path)
    for step, loss, accuracy in ((10, 2.0, 0.5), (20, 1.0, 0.75), (30, 1.5, 0.25)):
        view.log(step, {"split": "val", "loss": loss, "accuracy": accuracy})
    view.finish(SUMMARY, 0)
    (run,) = offline_runs(tmp_path)
    assert {name for name, metric in run.metrics.items() if metric.step_metric == "step"} == {"*", *BEST}
    assert run.metrics["step"].options.hidden
    assert run.summary["val/loss"] == {"min": 1.0, "last": 1.5}
    assert run.summary["val/accuracy"] == {"max": 0.75, "last": 0.25}
    assert {key: run.summary[key] for key in SUMMARY} == SUMMARY


def test_a_run_is_sampled_for_what_it_takes_of_the_machine(tmp_path: Path) -> None:
    opened("offline", tmp_path).finish(SUMMARY, 0)
    (run,) = offline_runs(tmp_path)
    assert "proc.memory.rssMB" in {item.key for sample in run.stats for item in sample.item}


def test_tables_reach_the_folder_of_an_offline_run_and_draw_no_curves(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    view = opened("offline", tmp_path)
    view.log(10, VAL)
    view.tables(TABLES)
    view.finish(SUMMARY, 0)
    (file,) = tmp_path.glob("wandb/offline-run-*/files/media/table/test/per_class_*.table.json")
    assert json.loads(file.read_text()) == {
        "columns": ["class", "n", "accuracy"],
        "data": [["cat", 2, 0.5], ["dog", 0, None]],
    }
    (run,) = offline_runs(tmp_path)
    assert run.summary["test/per_class"]["_type"] == "table-file"
    assert {key: run.summary[key] for key in SUMMARY} == SUMMARY
    assert not any(key.startswith("test/per_class") for row in run.history for key in row)
    # Nothing of it waits in the user's home.
    assert any(path.is_file() for path in (tmp_path / "wandb" / "staged").rglob("*"))
    assert capfd.readouterr() == ("", "")


def test_a_table_that_cannot_be_made_is_one_warning_and_the_run_keeps_its_summary(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    view = opened("offline", tmp_path)
    view.tables({"test/broken": Table(("one", "two"), [(1,)])})
    view.finish(SUMMARY, 0)
    assert "the tables are left out" in one_warning(capfd)
    (run,) = offline_runs(tmp_path)
    assert {key: run.summary[key] for key in SUMMARY} == SUMMARY
    assert run.exit_codes == [0]


class Server:
    """A W&B run that was online before, up to a step."""

    def __init__(self, resumed: bool, step: int) -> None:
        self.resumed, self.id, self.dir = resumed, "abc123", "nowhere"
        self.summary: dict[str, Any] = {"step": step} if resumed else {}
        self.rows: list[dict[str, Any]] = []

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def define_metric(self, *_: object, **__: object) -> None: ...

    def finish(self, exit_code: int) -> None: ...


@pytest.mark.parametrize(("resumed", "sent"), [(True, [20, 20, 30]), (False, [10, 20, 20, 30])])
def test_a_resumed_online_run_sends_what_the_server_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumed: bool, sent: list[int]
) -> None:
    run = Server(resumed, 20)
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    view = opened("wandb", tmp_path, history=(TRAIN, TRAIN | {"step": 20}))
    view.log(20, VAL | {"step": 20})
    view.log(30, TRAIN | {"step": 30})
    view.finish(SUMMARY, 0)
    assert [row["step"] for row in run.rows] == sent


def test_under_an_agent_of_a_sweep_the_run_has_the_agents_id_and_our_group(tmp_path: Path) -> None:
    parameters = tmp_path / "parameters.yaml"
    parameters.write_text("wandb_version: 1\nseed:\n  value: 3\ntrain.lr:\n  value: 0.0003\n")
    program = (
        "import sys; from pathlib import Path; from lra.tracker import open_tracker\n"
        "view = open_tracker('offline', Path(sys.argv[1]), 'ours', 'p', 'g', 'n', [], {'seed': 3}, [])\n"
        "view.finish({'test/accuracy': 0.5}, 0)\n"
    )
    agent = {"WANDB_SWEEP_ID": "swp12345", "WANDB_RUN_ID": "abc123", "WANDB_SWEEP_PARAM_PATH": str(parameters)}
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **agent})
    (line,) = done.stderr.splitlines()
    assert line.endswith("the sweep hears nothing of this run, tracker=wandb tells it")
    (run,) = offline_runs(tmp_path)
    assert (run.run.run_id, run.run.sweep_id, run.run.run_group) == ("abc123", "swp12345", "g")
    assert {"seed": 3, "train.lr": 0.0003}.items() <= run.config.items()
    assert run.summary["test/accuracy"] == 0.5


def test_online_without_a_key_goes_on_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    view = opened("wandb", tmp_path, history=(TRAIN,))
    view.log(10, VAL)
    view.finish(SUMMARY, 0)
    (warning,) = capfd.readouterr().err.splitlines()
    assert warning.startswith("warning: tracker=wandb: ")
    assert "goes on offline" in warning
    (run,) = offline_runs(tmp_path)
    assert len(run.history) == 2


def broken(*_: object, **__: object) -> Any:
    raise RuntimeError("broken\non purpose")


class Broken:
    """A W&B run that cannot log."""

    summary: ClassVar[dict[str, Any]] = {}
    id, dir = "abc123", "nowhere"
    log = finish = broken

    def define_metric(self, *_: object, **__: object) -> None: ...


class Hanging:
    """A W&B run that comes back from its first log when it is let go."""

    id, dir = "abc123", "nowhere"

    def __init__(self) -> None:
        self.summary: dict[str, Any] = {}
        self.reached, self.let_go = threading.Event(), threading.Event()

    def log(self, _: object) -> None:
        self.reached.set()
        self.let_go.wait()

    def define_metric(self, *_: object, **__: object) -> None: ...

    def finish(self, exit_code: int) -> None: ...


def one_warning(capfd: pytest.CaptureFixture[str]) -> str:
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("warning: tracker=offline: ")
    return line


def used(view: Tracker) -> None:
    for step in range(5):
        view.log(step, TRAIN)
    view.finish(SUMMARY, 0)


def test_a_tracker_that_cannot_start_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb, "init", broken)
    used(opened("offline", tmp_path))
    assert "broken on purpose; the run goes on" in one_warning(capfd)


def test_a_tracker_that_cannot_log_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: Broken())
    used(opened("offline", tmp_path))
    assert "broken on purpose" in one_warning(capfd)


def test_a_tracker_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Hanging()
    monkeypatch.setattr(wandb, "init", lambda **_: run)
    monkeypatch.setattr(tracker, "FINISH_SECONDS", 0)
    view = opened("offline", tmp_path)
    view.log(10, TRAIN)
    assert run.reached.wait(60)
    view.finish(SUMMARY, 0)
    assert "did not finish" in one_warning(capfd)
    run.let_go.set()


def test_a_file_in_the_place_of_the_folder_warns_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").touch()
    used(opened("offline", tmp_path / "runs"))
    assert "Not a directory" in one_warning(capfd)


def test_a_folder_that_cannot_be_written_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Permissions do not bind every user that runs the tests.
    monkeypatch.setattr(tracker.os, "access", lambda *_: False)
    used(opened("offline", tmp_path))
    assert "is not writable" in one_warning(capfd)


def test_a_full_disk_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracker, "ROOM", 2**80)
    used(opened("offline", tmp_path))
    assert "bytes left" in one_warning(capfd)


def test_a_lost_service_process_neither_stops_nor_prints_more_than_a_line(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path\n"
        "from wandb.sdk import wandb_setup\n"
        "from lra.tracker import open_tracker\n"
        "view = open_tracker('offline', Path(sys.argv[1]), 'id', 'p', 'g', 'n', [], {}, [])\n"
        "view._call(lambda run: os.kill(wandb_setup.singleton()._connection._proc._process.pid, signal.SIGKILL))\n"
        "for step in range(200): view.log(step, {'loss': 1.0})\n"
        "view.finish({}, 0)\n"
        "print('done')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n")
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("warning: tracker=offline: ")


def test_wandb_is_imported_only_when_a_run_asks_for_it() -> None:
    program = "import sys, lra.tracker as t; print('wandb' in sys.modules, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "False False\n"
