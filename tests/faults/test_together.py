"""Several processes that want the same thing at once: one does the work, and nobody sees a half of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import pytest

import lra.results
import lra.watch
from csrc import build
from lra import data, lock, report
from lra.outcomes import collect
from lra.run import Run
from lra.tasks import TASKS
from tests import forks
from tests.faults import FULL, amount, draws
from tests.faults.in_process import called
from tests.runs import arguments, environment, logits, records, result, train

SOURCE = "task.source=synthetic"


class Ended(NamedTuple):
    """A process that has come to its end."""

    pid: int
    code: int
    stdout: str
    stderr: str


class Crowd:
    """Processes that run beside one another. Leaving the `with` waits for all; `ended` is what became of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started, self.ended = folder, list[forks.Started](), list[Ended]()
        self.complaints: list[Path] = []
        self.held = ExitStack()

    def start(self, arguments: Sequence[str], **environ: str) -> forks.Started:
        handle, name = tempfile.mkstemp()
        os.close(handle)
        self.complaints.append(Path(name))
        self.started.append(
            self.held.enter_context(forks.Started(arguments, self.folder, environment() | environ, name))
        )
        return self.started[-1]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *error: object) -> None:
        said = [process.stdout.read() for process in self.started]
        self.held.close()
        for process, out, complaints in zip(self.started, said, self.complaints, strict=True):
            self.ended.append(Ended(process.pid, process.code, out, complaints.read_text()))
            complaints.unlink()


def until(holds: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)


def holder_of(file: Path) -> int:
    """The number of the process that has the lock on `file`, 0 where none has."""
    if not file.exists():
        return 0
    inode = file.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if words[1] == "FLOCK" and words[3] == "WRITE" and words[5].endswith(f":{inode}"):
            return int(words[4])
    return 0


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody disturbed, and its data."""
    folder = tmp_path_factory.mktemp("alone")
    train(folder)
    return folder


def same_run(folder: Path, alone: Path, *words: str) -> list[str]:
    """The words of that run in another folder, with its data."""
    return arguments(folder, f"data_dir={alone / 'data'}", *words)


def assert_same(folder: Path, alone: Path) -> None:
    run, undisturbed = folder / "run", alone / "run"
    assert records(run) == records(undisturbed)
    np.testing.assert_array_equal(logits(run), logits(undisturbed))
    ours, theirs = result(run), result(undisturbed)
    assert [ours[key] for key in ("status", "test", "val", "steps")] == [
        theirs[key] for key in ("status", "test", "val", "steps")
    ]


def assert_refused(process: Ended, trainers: Sequence[int]) -> None:
    """One line that names the process that trains."""
    assert process.code == 1, process
    assert process.stdout == ""
    (line,) = process.stderr.splitlines()
    assert any(f"is being trained by process {pid}; wait for it or stop it" in line for pid in trainers), line


@pytest.mark.parametrize("part", range(amount(1, 6)))
def test_of_the_same_run_started_many_times_one_trains_and_the_others_name_it(
    tmp_path: Path, alone: Path, tally: Counter[str], part: int
) -> None:
    rng = draws("same run", part)
    with Crowd(tmp_path) as crowd:
        for _ in range(amount(2, 5)):
            crowd.start(same_run(tmp_path, alone))
            # Every other round all of them begin at one instant.
            time.sleep(part % 2 * rng.uniform(0, 0.5))
    trained = [each for each in crowd.ended if "step 40/40" in each.stdout]
    told = [each for each in crowd.ended if "is finished: test accuracy" in each.stdout]
    others = [each for each in crowd.ended if each not in trained + told]
    assert [each.code for each in trained + told] == [0] * len(trained + told)
    assert len(trained) == 1
    for each in others:
        assert_refused(each, [trained[0].pid])
    assert_same(tmp_path, alone)
    tally["together: starts of a run that another process has or had"] += len(others) + len(told)
    tally["together: runs that two processes trained"] += len(trained) - 1


def paused(process: forks.Started, line: str) -> None:
    """Let a process come as far as to say `line`, and stop it there."""
    for printed in process.stdout:
        if line in printed:
            os.kill(process.pid, signal.SIGSTOP)
            return
    pytest.fail(f"no line with {line!r}")


def test_whoever_only_looks_at_a_lock_keeps_nobody_from_taking_it(tmp_path: Path, tally: Counter[str]) -> None:
    """`make watch` and a sweep that plans look at locks; a run that begins meanwhile is not refused."""
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            lock.holder(tmp_path)
            time.sleep(0.0005)

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for each in lookers:
        each.start()
    try:
        for _ in range(amount(100, 1000)):
            lock.take(tmp_path).close()
            tally["together: locks taken while others look"] += 1
    finally:
        over.set()
        for each in lookers:
            each.join()


def test_a_holder_elsewhere_is_named_with_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: "node7")
        held = lock.take(tmp_path)
    with pytest.raises(lock.Held, match=rf"^{os.getpid()} on node7$"):
        lock.take(tmp_path)
    held.close()
    with lock.take(tmp_path), pytest.raises(lock.Held, match=rf"^{os.getpid()}$"):
        lock.take(tmp_path)


def test_a_lock_of_a_folder_that_was_put_aside_is_not_the_lock_of_the_new_one(tmp_path: Path) -> None:
    """Many threads take, put aside and remove one folder; at no time do two of them have it."""
    config = {"seed": 0, "fresh": True}
    inside, most, errors = Counter[str](), Counter[str](), list[BaseException]()

    def hold() -> None:
        for k in range(amount(10, 60)):
            try:
                run = Run(tmp_path / "run", config)
            except RuntimeError:
                continue
            except BaseException as error:
                errors.append(error)
                raise
            inside["now"] += 1
            most["held"] = max(most["held"], inside["now"])
            if k % 3:
                (run.path / "metrics.jsonl").write_text("{}\n")
            inside["now"] -= 1
            if k % 2 and run.is_empty():
                run.withdraw()
            run.close()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert errors == []
    assert most["held"] == 1


def hashes_are_right(data_dir: Path, task: str) -> str:
    """The identity of a data set whose arrays are what its manifest says."""
    loaded = data.load(data_dir, TASKS[task](), "synthetic")
    for name in data.SPLITS:
        held = loaded.manifest["splits"][name]["sha256"]
        split = getattr(loaded, name)._asdict()
        assert {key: data.content_sha256(split[key]) for key in held} == held
    return str(loaded.manifest["sha256"])


def left_over(data_dir: Path) -> list[str]:
    return [path.name for path in data_dir.iterdir() if path.name.endswith((".partial", ".scratch"))]


@pytest.mark.parametrize("kill", [True, *[False] * FULL])
def test_of_many_preparations_one_works_and_all_find_the_data(
    tmp_path: Path, alone: Path, tally: Counter[str], kill: bool
) -> None:
    words = ["-m", "lra.prepare", "task=listops", SOURCE, f"data_dir={tmp_path}"]
    killed = 0
    with Crowd(tmp_path) as crowd:
        for _ in range(amount(3, 8)):
            crowd.start(words)
        if kill:
            file = tmp_path / ".listops-synthetic.lock"
            until(lambda: (tmp_path / ".listops-synthetic-1.0.0.scratch").exists() and holder_of(file))
            killed = holder_of(file)
            os.kill(killed, signal.SIGKILL)
    assert killed in [0, *(each.pid for each in crowd.ended)]
    survivors = [each for each in crowd.ended if each.pid != killed]
    assert [(each.code, each.stderr) for each in survivors] == [(0, "")] * len(survivors)
    worked = [each for each in survivors if " prepared in " in each.stdout and " is prepared in " not in each.stdout]
    found = [each for each in survivors if " is prepared in " in each.stdout]
    assert len(worked) == 1
    assert len(found) == len(survivors) - 1
    assert hashes_are_right(tmp_path, "listops") == hashes_are_right(alone / "data", "listops")
    assert left_over(tmp_path) == []
    tally["together: preparations of one data set at once"] += len(crowd.ended)
    tally["together: preparations killed among others"] += bool(killed)
    tally["together: data sets made twice"] += len(worked) - 1


BUILDING = (
    "import pathlib, sys; from csrc import build; build.BUILDS = pathlib.Path(sys.argv[1]); "
    "print(build.library('answer', (pathlib.Path(sys.argv[2]),)))"
)


@pytest.mark.parametrize("kill", [True, *[False] * FULL])
def test_of_many_builds_one_compiles_and_all_get_the_library(tmp_path: Path, tally: Counter[str], kill: bool) -> None:
    source, log, slow = tmp_path / "answer.cpp", tmp_path / "compiled", tmp_path / "slow"
    source.write_text('extern "C" int answer() { return 42; }\n')
    count = f'case "$*" in *" -c "*) echo >> {log}; sleep 0.5;; esac'
    slow.write_text(f'#!/bin/sh\n{count}; exec {build._compiler()[0]} "$@"\n')
    slow.chmod(0o755)
    killed = 0
    with Crowd(tmp_path) as crowd:
        for _ in range(amount(3, 8)):
            crowd.start(["-c", BUILDING, str(tmp_path / "build"), str(source)], CXX=str(slow))
        if kill:
            until(log.exists)
            (file,) = (tmp_path / "build").glob("*/lock")
            killed = holder_of(file)
            os.kill(killed, signal.SIGKILL)
    survivors = [each for each in crowd.ended if each.pid != killed]
    assert len(survivors) == len(crowd.ended) - bool(killed)
    assert [(each.code, each.stderr) for each in survivors] == [(0, "")] * len(survivors)
    assert len({each.stdout for each in survivors}) == 1
    asked = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).answer())"
    done = forks.run(["-c", asked, survivors[0].stdout.strip()], tmp_path, environment())
    assert done.stdout == "42\n"
    compiled = len(log.read_text())
    assert compiled == 1 + bool(killed)
    tally["together: builds of one library at once"] += len(crowd.ended)
    tally["together: builders killed among others"] += bool(killed)
    tally["together: libraries compiled twice by the living"] += compiled - 1 - bool(killed)


def read_all(runs: Path, folder: Path) -> tuple[set[str], int]:
    """Everything that reads runs, once; the runs that count as finished, and how many readings that was."""
    found, problems = collect(runs) if runs.exists() else ([], [])
    assert all(problem.startswith("no result yet") for problem in problems), problems
    assert {run.status for run in found} <= {"finished"}
    for run in found:
        told = json.loads((runs / run.name / "result.json").read_text())
        assert told["test"]["accuracy"] == run.accuracy
        with np.load(runs / run.name / "predictions.npz") as arrays:
            assert len(arrays["logits"]) == told["test"]["n"]
    readers: list[tuple[Callable[[list[str]], int], list[str]]] = [
        (lra.results.main, []), (lra.watch.main, ["once=true"]), (report.main, [f"out={folder / 'curves.svg'}"]),
    ]  # fmt: skip
    for main, words in readers if runs.exists() else []:
        answer = called(main, [f"runs={runs}", *words], folder)
        assert (answer.code, answer.stderr) == (0, ""), answer
    return {run.name for run in found}, len(readers) + 1


def read_until_over(over: Callable[[], bool], runs: Path, folder: Path, tally: Counter[str]) -> set[str]:
    """Read again and again, and once more at the end; whole runs only ever become more."""
    seen: set[str] = set()
    while True:
        last = over()
        now, count = read_all(runs, folder)
        assert seen <= now
        seen = now
        tally["together: readings of runs under way"] += count
        tally["together: whole runs that a later reading lacked"] += len(seen - now)
        if last:
            return seen


def running(process: forks.Started) -> bool:
    return Path(f"/proc/{process.pid}/cmdline").exists() and bool(Path(f"/proc/{process.pid}/cmdline").read_bytes())


def sweeping(alone: Path, *words: str) -> list[str]:
    """A sweep of tiny cells."""
    tiny = [word for word in same_run(alone, alone)[2:] if not word.startswith("run_dir=")]
    return ["-m", "lra.sweep", *tiny, *words, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def start_sweep(folder: Path, words: Sequence[str], said: IO[str]) -> subprocess.Popen[str]:
    """As users do: joblib's workers end with a process that exits, and a fork of the server does not."""
    command = [sys.executable, *words]
    return subprocess.Popen(command, cwd=folder, env=environment(), text=True, stdout=said, stderr=said)


if FULL:
    # Whole runs, which take seconds each.

    @pytest.mark.parametrize(
        ("line", "first", "second"),
        [
            ("step 10/40", (), ()), ("step 40/40", (), ("fresh=true",)), ("step 15/40", (), ()),
            ("step 30/40", (), ("fresh=true",)), ("step 3/40", ("fresh=true",), ()),
        ],
    )  # fmt: skip
    def test_a_run_under_way_is_refused_at_every_stage_and_goes_on_as_if_alone(
        tmp_path: Path, alone: Path, tally: Counter[str], line: str, first: tuple[str, ...], second: tuple[str, ...]
    ) -> None:
        if first:
            train(tmp_path, f"data_dir={alone / 'data'}")
        with Crowd(tmp_path) as crowd:
            one = crowd.start(same_run(tmp_path, alone, *first))
            paused(one, line)
            try:
                done = forks.run(same_run(tmp_path, alone, *second), tmp_path, environment())
            finally:
                os.kill(one.pid, signal.SIGCONT)
            assert_refused(Ended(0, done.returncode, done.stdout, done.stderr), [one.pid])
        assert crowd.ended[0].code == 0, crowd.ended[0]
        assert_same(tmp_path, alone)
        assert [path.name for path in tmp_path.iterdir() if ".old-" in path.name] == ["run.old-1"] * len(first)
        tally["together: starts of a run that another process has or had"] += 1

    @pytest.mark.parametrize("preparing", ["data", "result"])
    def test_a_run_is_refused_while_its_data_are_made_and_while_its_result_is_written(
        tmp_path: Path, alone: Path, tally: Counter[str], preparing: str
    ) -> None:
        """There is no line to wait for, but there are files."""
        with Crowd(tmp_path) as crowd:
            one = crowd.start(arguments(tmp_path))
            file = tmp_path / ("data/.listops-synthetic.lock" if preparing == "data" else "run/predictions.npz")
            until(file.exists)
            os.kill(one.pid, signal.SIGSTOP)
            try:
                done = forks.run(arguments(tmp_path), tmp_path, environment())
            finally:
                os.kill(one.pid, signal.SIGCONT)
            assert_refused(Ended(0, done.returncode, done.stdout, done.stderr), [one.pid])
        assert crowd.ended[0].code == 0, crowd.ended[0]
        assert_same(tmp_path, alone)
        tally["together: starts of a run that another process has or had"] += 1

    def test_the_lock_of_a_killed_process_is_no_lock(tmp_path: Path, alone: Path) -> None:
        with Crowd(tmp_path) as crowd:
            one = crowd.start(same_run(tmp_path, alone))
            paused(one, "step 20/40")
            os.kill(one.pid, signal.SIGKILL)
        assert crowd.ended[0].code == -signal.SIGKILL
        assert (tmp_path / "run" / lock.NAME).read_text().split()[0] == str(one.pid)
        done = forks.run(same_run(tmp_path, alone), tmp_path, environment())
        assert (done.returncode, done.stderr) == (0, "")
        assert_same(tmp_path, alone)

    def test_preparations_of_different_tasks_share_a_folder(tmp_path: Path, alone: Path, tally: Counter[str]) -> None:
        names = ["listops", "text", "retrieval", "image", "pathfinder"]
        with Crowd(tmp_path) as crowd:
            for name in names:
                crowd.start(["-m", "lra.prepare", f"task={name}", SOURCE, f"data_dir={tmp_path / 'data'}"])
        assert [(each.code, each.stderr) for each in crowd.ended] == [(0, "")] * len(names)
        assert hashes_are_right(tmp_path / "data", "listops") == hashes_are_right(alone / "data", "listops")
        for name in names[1:]:
            lone = tmp_path / f"{name} alone"
            done = forks.run(["-m", "lra.prepare", f"task={name}", SOURCE, f"data_dir={lone}"], tmp_path, environment())
            assert done.returncode == 0, done.stderr
            assert hashes_are_right(tmp_path / "data", name) == hashes_are_right(lone, name)
        assert left_over(tmp_path / "data") == []
        tally["together: preparations of different data sets at once"] += len(names)

    def test_whoever_reads_while_runs_end_sees_whole_runs_and_ever_more(
        tmp_path: Path, alone: Path, tally: Counter[str]
    ) -> None:
        runs = tmp_path / "runs"
        seeds = range(6)
        with Crowd(tmp_path) as crowd:
            for seed in seeds:
                words = same_run(
                    tmp_path, alone, f"seed={seed}", f"run_dir={runs / 'mlpen/listops/mra2' / f'seed{seed}'}"
                )
                crowd.start(words)
            seen = read_until_over(lambda: not any(map(running, crowd.started)), runs, tmp_path, tally)
        assert [(each.code, each.stderr) for each in crowd.ended] == [(0, "")] * len(seeds)
        assert seen == {f"mlpen/listops/mra2/seed{seed}" for seed in seeds}

    @pytest.mark.parametrize("part", range(3))
    def test_comparisons_at_once_write_one_whole_report(
        tmp_path: Path, alone: Path, tally: Counter[str], part: int
    ) -> None:
        run = tmp_path / "runs/mlpen/listops/mra2/seed0"
        run.mkdir(parents=True)
        for file in (alone / "run").iterdir():
            if file.is_file():
                (run / file.name).write_bytes(file.read_bytes())
        written = []
        for count in (1, 6):
            with Crowd(tmp_path) as crowd:
                for _ in range(count):
                    crowd.start(["-m", "lra.results"])
            assert [(each.code, each.stderr) for each in crowd.ended] == [(0, "")] * count
            report_folder = tmp_path / "runs" / "report"
            assert sorted(path.name for path in report_folder.iterdir()) == ["compare.csv", "compare.md", "index.html"]
            written.append([(report_folder / name).read_bytes() for name in ("compare.csv", "compare.md")])
            assert (report_folder / "index.html").read_text().rstrip().endswith("</html>")
            tally["together: comparisons at once"] += count * (count > 1)
        assert written[0] == written[1]

    def test_a_sweep_can_be_read_while_it_goes_on(tmp_path: Path, alone: Path, tally: Counter[str]) -> None:
        with (tmp_path / "said").open("w") as said:
            one = start_sweep(tmp_path, sweeping(alone, "seed=0,1,2"), said)
            seen = read_until_over(lambda: one.poll() is not None, tmp_path / "runs", tmp_path, tally)
        assert one.returncode == 0, (tmp_path / "said").read_text()
        assert len(seen) == 3

    def test_two_sweeps_of_the_same_cells_train_each_once(tmp_path: Path, alone: Path, tally: Counter[str]) -> None:
        codes = []
        with (tmp_path / "one").open("w") as one, (tmp_path / "two").open("w") as two:
            for sweep in [start_sweep(tmp_path, sweeping(alone, "seed=0,1"), file) for file in (one, two)]:
                codes.append(sweep.wait())
        for code, name in zip(codes, ("one", "two"), strict=True):
            said = (tmp_path / name).read_text()
            assert "Traceback" not in said
            assert code == 0 or (code == 1 and ("trains it" in said or "is being trained by process" in said)), said
        assert 0 in codes
        logs = list(tmp_path.glob("runs/mlpen/listops/mra2/*/log.txt"))
        assert len(logs) == 2
        assert [log.read_text().count("test   accuracy") for log in logs] == [1, 1]
        tally["together: cells that two sweeps wanted"] += 2
