"""A disk that fails under a run: one line, code 1, nothing half-written; the same words go on to the same bits."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.faults import amount, draws
from tests.faults.injection import Injection, Operation
from tests.faults.nursery import Nursery, nursery
from tests.runs import arguments, records
from tests.test_resume import assert_same_run

pytestmark = pytest.mark.usefixtures("with_injector")

# Three evaluations and five checkpoints in half a second.
WORDS = (
    "attn=softmax", "train.steps=12", "train.warmup=3", "train.eval_every=5", "train.checkpoint_every=3",
    "train.log_every=4", "train.batch_size=64",
)  # fmt: skip
SAYS = {
    "full": "No space left on device",
    "once": "No space left on device",
    "quota": "Disk quota exceeded",
    "broken": "Input/output error",
    "readonly": "Read-only file system",
}
# Each test draws this many operations of the run, and each attack stands alone: any worker can make it.
SHARES = [("full", share) for share in range(amount(1, 4))] + [
    (fault, 0) for fault in ("once", "quota", "broken")[: amount(0, 3)]
]
TAKEN = ("gone", "away", "replaced")


class Base:
    """A whole run, what it did to files, and the processes that make more of its kind."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self.nursery, self.whole, self.data = nursery, folder / "whole" / "run", folder / "data"
        (folder / "whole").mkdir()
        injection = Injection(folder / "whole", folder / "notes")
        done = self.train(folder / "whole", injection)
        assert done.returncode == 0, done.stderr
        self.operations = injection.operations()

    def train(
        self, folder: Path, injection: Injection | None = None, *words: str, limits: dict[str, int] | None = None
    ) -> CompletedProcess[str]:
        words = (*WORDS, f"data_dir={self.data}", *words)
        return self.nursery.run(arguments(folder, *words), folder, injection.environ if injection else None, limits)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, with_injector: None) -> Iterator[Base]:
    folder = tmp_path_factory.mktemp("disk")
    with nursery(folder / "nursery", "lra.session", "lra.compose", "lra.trackio_store") as processes:
        yield Base(processes, folder)


def said_in_one_line(done: CompletedProcess[str], *parts: str) -> str:
    """The line by which a command failed, with code 1 and nothing beside it."""
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert part in lines[0]
    return lines[0]


def whole_files(run: Path) -> dict[str, bytes]:
    """What is there under the names of whole files."""
    names = ("config.yaml", "predictions.npz", "result.json", "checkpoint/best.pt", "checkpoint/last.pt")
    return {name: (run / name).read_bytes() for name in names if (run / name).exists()}


@pytest.mark.parametrize(("fault", "share"), SHARES)
def test_a_run_whose_disk_fails_says_so_and_ends_with_the_same_bits_when_it_is_mended(
    base: Base, tmp_path: Path, tally: Counter[str], fault: str, share: int
) -> None:
    random = draws("run", fault, share)
    for at in sorted(random.sample(range(1, len(base.operations) + 1), amount(1, 20))):
        folder = tmp_path / str(at)
        folder.mkdir()
        operation = base.operations[at - 1]
        injection = Injection(folder, tmp_path / "notes", at, fault)
        done = base.train(folder, injection)
        tally[f"disk: {fault}, operations of a run"] += 1
        if done.returncode == 0:
            # It asked for no room, or nothing was left to write.
            assert fault != "broken", operation
            assert not done.stderr
        else:
            line = said_in_one_line(done, SAYS[fault], str(folder))
            assert ".part" not in line
        left = whole_files(folder / "run")
        for name in ("predictions.npz", "config.yaml"):
            if name in left:
                assert left[name].startswith(b"PK" if name.endswith("npz") else b"task:")
        again = base.train(folder)
        assert again.returncode == 0, again.stderr
        # The disk was full between the two renamings of a checkpoint, and when the first was to be taken back.
        renamed = "last.pt is missing: going on from step" in again.stderr and len(again.stderr.splitlines()) == 1
        assert not again.stderr or (renamed and operation.name == "rename"), again.stderr
        assert_same_run(folder / "run", base.whole)
        assert not list(folder.rglob("*.part"))
        tally["disk: runs that did not end with the bits of an undisturbed one"] += 0
        shutil.rmtree(folder)


@pytest.mark.parametrize("fault", ["full", "broken", "readonly"][: amount(1, 3)])
def test_a_finished_run_is_left_as_it_is(base: Base, tmp_path: Path, fault: str) -> None:
    shutil.copytree(base.whole, tmp_path / "run")
    # Two folders are made first, if they are not there; then comes the lock.
    done = base.train(tmp_path, Injection(tmp_path, tmp_path.parent / "notes", 3, fault))
    said_in_one_line(done, SAYS[fault], f"{tmp_path}/run/.lock")
    kept = whole_files(tmp_path / "run")
    assert kept == whole_files(base.whole)
    again = base.train(tmp_path)
    assert again.returncode == 0, again.stderr
    assert "is finished: test accuracy" in again.stdout


@pytest.mark.parametrize("fault", TAKEN[: amount(1, 3)])
def test_a_directory_taken_away_ends_its_run_and_nothing_is_written_in_its_place(
    base: Base, tmp_path: Path, tally: Counter[str], fault: str
) -> None:
    held = [at for at, operation in enumerate(base.operations, 1) if operation.path.name != "run"]
    first = next(at for at, operation in enumerate(base.operations, 1) if operation.path.name == "config.yaml")
    for at in sorted(draws("taken", fault).sample([at for at in held if at > first], amount(1, 14))):
        folder = tmp_path / str(at)
        (folder / "run").mkdir(parents=True)
        # The directory itself is what goes: its own making is not counted.
        done = base.train(folder, Injection(folder / "run", tmp_path / "notes", within(base.operations, at), fault))
        tally[f"disk: {fault}, instants of a run"] += 1
        if done.returncode:
            line = said_in_one_line(done, f"error: {folder}/run ")
            wanted = "is another directory now" if fault == "replaced" else "has been removed or renamed"
            assert wanted in line, line
            # At the very instant of the exchange an empty folder may be made in what is there instead.
            written = [path for path in (folder / "run").rglob("*") if path.is_file()]
            tally["disk: files written in place of a directory that was taken"] += len(written)
            assert not written
        else:
            # The last word had been written.
            assert base.operations[at - 1] == base.operations[-1]
        again = base.train(folder)
        assert (again.returncode, again.stderr) == (0, "")
        assert "going on" not in again.stdout
        assert_same_run(folder / "run", base.whole)
        shutil.rmtree(folder)


def within(operations: list[Operation], at: int) -> int:
    """The number of an operation among those below the run's directory."""
    return sum(operation.path.name != "run" for operation in operations[:at])


def test_a_run_goes_on_where_its_data_are_taken_away(base: Base, tmp_path: Path) -> None:
    mine = tmp_path / "data"
    shutil.copytree(base.data, mine)
    count = Injection(mine, tmp_path / "notes")
    done = base.train(tmp_path, count, f"data_dir={mine}")
    assert (done.returncode, count.count()) == (0, 0), "a run writes nothing beside prepared data"
    shutil.rmtree(tmp_path / "run")
    program = f"""
import lra.loop, runpy, shutil, sys
real = lra.loop.Trainer.validate
def validate(trainer):
    shutil.rmtree({str(mine)!r}, ignore_errors=True)
    real(trainer)
lra.loop.Trainer.validate = validate
runpy.run_module("lra.train", run_name="__main__", alter_sys=True)
"""
    words = arguments(tmp_path, *WORDS, f"data_dir={mine}")[2:]
    done = base.nursery.run(["-c", program, *words], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not mine.exists()
    assert_same_run(tmp_path / "run", base.whole)


def test_prepared_data_on_a_read_only_disk_can_be_trained_on(base: Base, tmp_path: Path) -> None:
    injection = Injection(base.data, tmp_path / "notes", 1, "readonly")
    done = base.train(tmp_path, injection)
    assert (done.returncode, done.stderr, injection.count()) == (0, "", 0)


def test_a_run_directory_that_cannot_be_changed_is_one_line(base: Base, tmp_path: Path) -> None:
    injection = Injection(tmp_path, tmp_path.parent / "notes", 1, "readonly")
    done = base.train(tmp_path, injection)
    said_in_one_line(done, SAYS["readonly"], f"{tmp_path}/run")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("room", [4_000, 1, 700, 30_000][: amount(1, 4)])
def test_a_limit_on_the_size_of_files_is_a_line_and_its_end_the_end_of_the_trouble(
    base: Base, tmp_path: Path, tally: Counter[str], room: int
) -> None:
    done = base.train(tmp_path, limits={"RLIMIT_FSIZE": room})
    # What a process says goes to a file too.
    assert done.returncode in (1, 120), done.stderr
    assert "Traceback" not in done.stderr
    if room >= 700:
        said_in_one_line(done, "File too large", f"{tmp_path}/run")
    tally["disk: limits"] += 1
    assert not (tmp_path / "run" / "result.json").exists()
    assert base.train(tmp_path).returncode == 0
    assert_same_run(tmp_path / "run", base.whole)


@pytest.mark.parametrize("handles", [16, 12, 20, 24, 28, 32, 40][: amount(1, 7)])
def test_too_few_file_handles_are_one_line_or_no_trouble(
    base: Base, tmp_path: Path, tally: Counter[str], handles: int
) -> None:
    done = base.train(tmp_path, limits={"RLIMIT_NOFILE": handles})
    tally["disk: limits"] += 1
    if done.returncode:
        said_in_one_line(done, "Too many open files")
    assert base.train(tmp_path).returncode == 0
    assert_same_run(tmp_path / "run", base.whole)


def test_a_record_and_its_checkpoint_are_of_one_instant_after_every_fault(base: Base) -> None:
    """The undisturbed run is what it says: the attacks above compare with it."""
    assert [record["step"] for record in records(base.whole)] == [4, 5, 8, 10, 12, 12]
    assert json.loads((base.whole / "result.json").read_text())["status"] == "finished"
    assert len(base.operations) > 90
