"""A disk that fails under a sweep: its folder, the logs of its cells, the place of its locks."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lra import job
from lra.outcome import verdict
from lra.plan import standing
from tests.faults import FULL, draws
from tests.faults.injection import Injection
from tests.faults.nursery import Nursery, nursery
from tests.faults.test_disk_run import SAYS, WORDS
from tests.runs import arguments, result

NO_ROOM = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "log.txt")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a sweep of two cells."""
    cells = [{"words": [f"seed={seed}"], "path": str(tmp_path / f"seed{seed}")} for seed in range(2)]
    sheet = {"pid": os.getpid(), "local": False, "cwd": str(tmp_path), "threads": 1, "pin": False, "cells": cells}
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "cells.json").write_text(json.dumps(sheet))
    return tmp_path / "sweep"


def test_a_cell_without_room_for_its_log_fails_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tally: Counter[str]
) -> None:
    codes: Iterator[OSError | int] = iter([NO_ROOM, 0])

    def run_cell(*given: object) -> int:
        if isinstance(code := next(codes), OSError):
            raise code
        return code

    monkeypatch.setattr(job, "run_cell", run_cell)
    for cell in range(2):
        job.work(SimpleNamespace(folder=folder, cell=cell))
    first, second = (json.loads((folder / f"{cell}.ended").read_text())["outcome"] for cell in range(2))
    assert (first, second) == (str(NO_ROOM), 0)
    path = folder.parent / "seed0"
    assert verdict(standing(path), path, first) == ("failed", str(NO_ROOM))
    tally["disk: cells of a sweep"] += 2


def test_a_folder_taken_away_under_a_sweep_is_not_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tally: Counter[str]
) -> None:
    def run_cell(*given: object) -> int:
        shutil.rmtree(folder)
        return 0

    monkeypatch.setattr(job, "run_cell", run_cell)
    with pytest.raises(OSError, match=r"the folder of the sweep has been removed or renamed: '.*sweep/0.ended'"):
        job.work(SimpleNamespace(folder=folder, cell=0))
    assert not folder.exists()
    tally["disk: cells of a sweep"] += 1


def test_cores_without_a_place_for_their_locks_are_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(job.tempfile, "gettempdir", lambda: str(tmp_path / "file"))
    with job.cores(1) as mine:
        assert mine == []


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory, with_injector: None) -> Iterator[Nursery]:
    modules = ("lra.compose", "lra.plan", "lra.launch", "lra.outcome")
    with nursery(tmp_path_factory.mktemp("disk") / "nursery", *modules) as processes:
        yield processes


if FULL:

    @pytest.mark.parametrize("fault", ["full", "broken", "gone", "readonly"])
    def test_a_sweep_whose_disk_fails_ends_in_a_line_and_goes_on(
        commands: Nursery, tmp_path: Path, tally: Counter[str], fault: str
    ) -> None:
        swept = tmp_path / "runs" / ".sweep"
        tiny = [word for word in arguments(tmp_path, *WORDS)[2:] if not word.startswith("run_dir=")]
        words = ["-m", "lra.sweep", *tiny, "seed=0,1"]
        # Two cells of cells.json, 0.begun, 0.ended, 1.begun, 1.ended: five files, each with a few operations.
        for at in draws("sweep", fault).sample(range(4, 20), 2):
            shutil.rmtree(swept, ignore_errors=True)
            swept.mkdir(parents=True)
            done = commands.run(words, tmp_path, Injection(swept, tmp_path / "notes", at, fault).environ)
            tally[f"disk: {fault}, operations of a sweep"] += 1
            assert done.returncode in (0, 1), done.stdout + done.stderr
            assert "Traceback" not in done.stderr
            if done.returncode:
                assert len(done.stderr.splitlines()) == 1, done.stderr
                wanted = "has been removed or renamed" if fault == "gone" else SAYS[fault]
                assert wanted in done.stderr or "No such file" in done.stderr
            again = commands.run(words, tmp_path)
            assert (again.returncode, again.stderr) == (0, "")
            runs = sorted((tmp_path / "runs").rglob("result.json"))
            assert [result(run.parent)["status"] for run in runs] == ["finished"] * 2
            for run in runs:
                shutil.rmtree(run.parent)
