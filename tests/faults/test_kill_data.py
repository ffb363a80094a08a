"""A preparation of data that is killed at any instant leaves whole data or none, and the next one makes them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults import FULL, amount, draws
from tests.faults.injection import Operation
from tests.faults.kills import (
    DIFFERENT,
    HALF,
    REMNANTS,
    SIGNALS,
    again,
    assert_ended_well,
    at_operation,
    faults,
    files,
    half_prepared,
    note,
    operations,
)
from tests.runs import environment

Undisturbed = tuple[Path, list[Operation]]
# Its last operations put the data in place: each of them is attacked as often as hundreds of others together.
PLACING = 8
# What a preparation that was asked to stop leaves beside empty folders: its lock, and what TFDS keeps of its own.
NOTHING = {"data/.listops-synthetic.lock", "data/tfds/lra_listops/.config/metadata.json"}


def words(folder: Path) -> list[str]:
    return ["-m", "lra.prepare", "task=listops", "task.source=synthetic", f"data_dir={folder / 'data'}"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, operations(words(folder), folder)


def arrays(folder: Path) -> dict[str, bytes]:
    """The prepared data, by file."""
    found = (folder / "data" / "listops-synthetic").glob("*/*")
    return {path.name: path.read_bytes() for path in found}


def look_and_give_again(folder: Path, undisturbed: Undisturbed, tally: Counter[str]) -> str:
    """What is there is whole, and the same words make what the undisturbed preparation made, and nothing else."""
    half = half_prepared(folder / "data")
    tally[HALF] += len(half)
    assert half == []
    said = again(words(folder), folder)
    differ = arrays(folder) != arrays(undisturbed[0])
    tally[DIFFERENT] += differ
    assert not differ
    remnants = files(folder) ^ files(undisturbed[0])
    tally[REMNANTS] += len(remnants)
    assert remnants == set()
    return said


@pytest.mark.parametrize("part", range(amount(1, 6)))
def test_a_preparation_killed_at_any_file_operation_is_made_anew(
    tmp_path: Path, undisturbed: Undisturbed, part: int, tally: Counter[str]
) -> None:
    draw = draws("data", part)
    last = len(undisturbed[1])
    for k, fault in enumerate(faults(draw, 6) if FULL else [draw.choice(list(SIGNALS))]):
        number = draw.randint(1, last - PLACING) if k % 2 else draw.randint(last - PLACING + 1, last)
        folder = tmp_path / str(k)
        folder.mkdir()
        ended = at_operation(words(folder), folder, number, fault)
        assert ended, f"no operation {number}"
        note(tally, fault, "preparing data")
        assert_ended_well(ended, fault)
        if fault != "kill" and ended.code:
            assert files(folder) <= NOTHING or files(folder) == files(undisturbed[0])
        look_and_give_again(folder, undisturbed, tally)


def test_a_preparation_killed_three_times_in_a_row_is_made_anew(
    tmp_path: Path, undisturbed: Undisturbed, tally: Counter[str]
) -> None:
    for chain in range(amount(0, 3)):
        draw = draws("data, three times", chain)
        folder = tmp_path / str(chain)
        folder.mkdir()
        for fault in faults(draw, 3):
            ended = at_operation(words(folder), folder, draw.randint(1, len(undisturbed[1]) - 1), fault)
            assert ended
            note(tally, fault, "preparing data, three in a row")
            assert_ended_well(ended, fault)
        look_and_give_again(folder, undisturbed, tally)


def test_what_a_killed_run_was_preparing_is_awaited_and_not_made_twice(
    tmp_path: Path, undisturbed: Undisturbed, tally: Counter[str]
) -> None:
    """The run is killed alone: its preparation goes on without it, and the next one waits for that."""
    hold = "import time; from lra.tasks import listops; made = listops.synthesize\n"
    hold += "def wait(*given): print('holding', flush=True, file=sys.__stdout__); time.sleep(1); return made(*given)"
    code = f"import sys\n{hold}\nlistops.synthesize = wait\nfrom lra.prepare import main\nsys.exit(main(sys.argv[1:]))"
    parent = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"
    command = [sys.executable, "-c", parent, "-c", code, *words(tmp_path)[2:]]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout
        while run.stdout.readline() != "holding\n":
            assert run.poll() is None
        os.kill(run.pid, signal.SIGKILL)
        note(tally, "kill", "preparing data, of the run alone")
        said = look_and_give_again(tmp_path, undisturbed, tally)
        assert "is being prepared by another process: waiting for it" in said
        assert "is prepared in" in said
        run.stdout.read()


def test_a_preparation_killed_at_any_moment_is_made_anew(
    tmp_path: Path, undisturbed: Undisturbed, tally: Counter[str]
) -> None:
    for moment in range(amount(0, 6)):
        folder = tmp_path / str(moment)
        folder.mkdir()
        with subprocess.Popen(
            [sys.executable, *words(folder)], env=environment(), stdout=subprocess.DEVNULL
        ) as process:
            time.sleep(draws("data, moment", moment).uniform(0, 6))
            process.kill()
        note(tally, "kill", "preparing data, at a moment")
        look_and_give_again(folder, undisturbed, tally)
