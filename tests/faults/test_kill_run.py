"""A run that is killed at any instant, and given again, ends as one that never was."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults import FULL, amount, draws
from tests.faults.injection import Operation
from tests.faults.kills import (
    DIFFERENT,
    HALF,
    LOST,
    REMNANTS,
    SIGNALS,
    Ended,
    again,
    assert_ended_well,
    at_operation,
    copied,
    faults,
    files,
    finished,
    half_written,
    heeds_signals,
    note,
    operations,
)
from tests.forks import Started
from tests.offline import Offline
from tests.runs import arguments, assert_same_run, command, environment, records, result, train

pytestmark = pytest.mark.usefixtures("with_injector")

WORDS = ("train.steps=12", "train.eval_every=5", "train.checkpoint_every=4")
# By what a run does to its files: which names show that a phase has begun.
PHASES = {
    "a run's start": r"\.lock|config\.yaml|tracker\.id",
    "training": r"metrics\.jsonl",
    "a checkpoint": "checkpoint",
    "a run's result": "predictions|result",
}


class Undisturbed(NamedTuple):
    """A run that nothing happened to: its folder, the numbers of its file operations by phase, its seconds."""

    folder: Path
    numbers: dict[str, list[int]]
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    first = tmp_path_factory.mktemp("first")
    train(first, *WORDS)
    # What preparing the data does to files is for another test.
    folder = copied(first, tmp_path_factory.mktemp("undisturbed"))
    began = time.monotonic()
    done = operations(arguments(folder, *WORDS), folder)
    return Undisturbed(folder, by_phase(done), time.monotonic() - began)


def by_phase(done: Sequence[Operation]) -> dict[str, list[int]]:
    """The numbers of operations by PHASES; what is done to a folder belongs to what was done before it."""
    numbers: dict[str, list[int]] = {phase: [] for phase in PHASES}
    current = next(iter(PHASES))
    for operation in done:
        names = "/".join(operation.path.parts[-2:])
        current = next((phase for phase, begins in PHASES.items() if re.search(begins, names)), current)
        numbers[current].append(operation.number)
    return numbers


def folder_of(undisturbed: Undisturbed, tmp_path: Path, name: object) -> Path:
    """A folder for a run that finds its data."""
    folder = tmp_path / str(name)
    folder.mkdir()
    return copied(undisturbed.folder, folder)


def look(folder: Path, tally: Counter[str]) -> bytes | None:
    """Nothing that a killed run left is half a file under the name of a whole one; its result, if it has one."""
    half = half_written(folder)
    tally[HALF] += len(half)
    assert half == []
    return finished(folder)


def give_again(folder: Path, undisturbed: Undisturbed, before: bytes | None, tally: Counter[str], *words: str) -> None:
    """The same words come to what the undisturbed run came to, keep a result that was there, and clean up."""
    again(arguments(folder, *WORDS, *words), folder)
    lost = before is not None and finished(folder) != before
    tally[LOST] += lost
    assert not lost
    tally[DIFFERENT] += 1
    assert_same_run(folder / "run", undisturbed.folder / "run")
    tally[DIFFERENT] -= 1
    remnants = files(folder) ^ files(undisturbed.folder)
    tally[REMNANTS] += len(remnants)
    assert remnants == set()


@pytest.mark.parametrize("part", range(amount(1, 8)))
def test_a_run_killed_at_any_file_operation_ends_as_if_nothing_had_happened(
    tmp_path: Path, undisturbed: Undisturbed, part: int, tally: Counter[str]
) -> None:
    draw = draws("run", part)
    attacks = [(phase, fault) for phase in PHASES for fault in SIGNALS]
    for phase, fault in attacks if FULL else draw.sample(attacks, 2):
        number = draw.choice(undisturbed.numbers[phase])
        folder = folder_of(undisturbed, tmp_path, f"{fault}-{number}")
        ended = at_operation(arguments(folder, *WORDS), folder, number, fault)
        assert ended, f"no operation {number}"
        note(tally, fault, phase)
        assert_ended_well(ended, fault)
        give_again(folder, undisturbed, look(folder, tally), tally)


@pytest.mark.parametrize("part", range(amount(1, 8)))
def test_a_run_killed_three_times_in_a_row_ends_as_if_nothing_had_happened(
    tmp_path: Path, undisturbed: Undisturbed, part: int, tally: Counter[str]
) -> None:
    draw = draws("chain", part)
    folder = folder_of(undisturbed, tmp_path, "run of four starts")
    # A resumed run does less: what is drawn from these numbers happens in it too.
    numbers = range(1, sum(map(len, undisturbed.numbers.values())) // 3)
    before = None
    for fault in faults(draw, 3):
        ended = at_operation(arguments(folder, *WORDS), folder, draw.choice(numbers), fault)
        if ended:
            note(tally, fault, "a chain of three")
            assert_ended_well(ended, fault)
        before = look(folder, tally)
    give_again(folder, undisturbed, before, tally)


# What a run prints the moment before it scores a split.
SCORING = ("step 5/12  loss", "step 12/12  loss", "step 12/12  val")


@pytest.mark.parametrize("part", range(amount(1, 6)))
def test_a_run_killed_while_it_evaluates_ends_as_if_nothing_had_happened(
    tmp_path: Path, undisturbed: Undisturbed, part: int, tally: Counter[str]
) -> None:
    draw = draws("evaluation", part)
    for fault in faults(draw, 3) if FULL else [draw.choice(list(SIGNALS))]:
        folder = folder_of(undisturbed, tmp_path, fault)
        ended = at_line(folder, draw.choice(SCORING), draw.uniform(0, 0.1), fault)
        note(tally, fault, "evaluation")
        assert_ended_well(ended, fault)
        give_again(folder, undisturbed, look(folder, tally), tally)


def at_line(folder: Path, line: str, seconds: float, fault: str, *words: str) -> Ended:
    """Run, and send a signal so many seconds after the run has printed `line`."""
    complaints = folder.with_name(f"{folder.name}-notes")
    with Started(arguments(folder, *WORDS, *words), folder, environment(), str(complaints)) as process:
        said = ""
        for printed in process.stdout:
            said += printed
            if line in printed:
                break
        time.sleep(seconds)
        with suppress(ProcessLookupError):
            os.kill(process.pid, SIGNALS[fault])
        said += process.stdout.read()
    return Ended(process.code, said, complaints.read_text())


@pytest.mark.parametrize("part", range(amount(1, 8)))
def test_a_users_command_killed_at_any_moment_ends_as_if_nothing_had_happened(
    tmp_path: Path, undisturbed: Undisturbed, part: int, tally: Counter[str]
) -> None:
    """Alone or with all processes of its terminal, with data to prepare or without, while imports run or later."""
    draw = draws("moment", part)
    for fault in faults(draw, 3) if FULL else [draw.choice(list(SIGNALS))]:
        folder = tmp_path / fault
        folder.mkdir()
        prepared = draw.random() < 0.5
        if prepared:
            copied(undisturbed.folder, folder)
        alone = draw.random() < 0.5
        seconds = draw.uniform(0, undisturbed.seconds + (3 if prepared else 6))
        ended = at_moment(folder, seconds, fault, alone)
        note(tally, fault, f"a command at a moment, {'alone' if alone else 'with its group'}")
        if fault == "kill" and ended.code == 0:
            # It was faster than the moment.
            assert ended.complaint == ""
        else:
            assert_ended_well(ended, fault)
        give_again(folder, undisturbed, look(folder, tally), tally)


def at_moment(folder: Path, seconds: float, fault: str, alone: bool) -> Ended:
    """Start the command as a user does, in a group of its own, and send a signal to it or to the group."""
    with subprocess.Popen(
        command(folder, *WORDS), cwd=folder, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    ) as process:  # fmt: skip
        if fault != "kill":
            heeds_signals(process)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        with suppress(ProcessLookupError):
            (os.kill if alone else os.killpg)(process.pid, SIGNALS[fault])
        said, complaint = process.communicate()
    return Ended(process.returncode, said, complaint)


@pytest.mark.parametrize("part", range(amount(1, 6)))
def test_an_offline_view_is_whole_when_its_run_is_killed_and_given_again(
    tmp_path: Path, undisturbed: Undisturbed, part: int, tally: Counter[str]
) -> None:
    """Killed at a file operation, W&B's own among them; or alone or with W&B's process after training."""
    draw = draws("view", part)
    for fault in faults(draw, 3) if FULL else ["kill"]:
        folder = folder_of(undisturbed, tmp_path, fault)
        words = ("tracker=offline", f"tracker_dir={folder / 'views'}")
        numbers = undisturbed.numbers["a run's result"]
        if FULL and draw.random() < 0.5:
            ended = at_operation(arguments(folder, *WORDS, *words), folder, draw.randint(1, 2 * max(numbers)), fault)
        else:
            ended = at_line(folder, SCORING[-1], draw.uniform(0, 2), fault, *words)
        if ended:
            note(tally, fault, "writing a view of W&B")
            if ended.code:
                assert_ended_well(ended, fault)
        before = look(folder, tally)
        give_again(folder, undisturbed, before, tally, *words)
        (path,) = (folder / "views" / "wandb").glob("offline-run-*/run-*.wandb")
        view = Offline(path)
        assert [row["step"] for row in view.history] == [record["step"] for record in records(folder / "run")]
        assert view.exit_codes == [0]
        assert view.summary["test/accuracy"] == result(folder / "run")["test"]["accuracy"]
        assert "test/per_class" in view.summary
