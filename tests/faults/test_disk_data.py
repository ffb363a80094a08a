"""A disk that fails while data are prepared or looked at: one line, nothing half-written, the same command again."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import amount, draws
from tests.faults.injection import Injection, Operation
from tests.faults.nursery import Nursery, nursery
from tests.faults.test_disk_run import SAYS

pytestmark = pytest.mark.usefixtures("with_injector")

WORDS = ("-m", "lra.prepare", "task=listops", "task.source=synthetic")
SHARES = [("full", share) for share in range(amount(1, 4))] + [
    (fault, 0) for fault in ("once", "quota", "broken")[: amount(0, 3)]
]


class Base:
    """A whole preparation, what it did to files, and the processes that make more of its kind."""

    def __init__(self, nursery: Nursery, folder: Path) -> None:
        self.nursery = nursery
        injection = Injection(folder / "data", folder / "notes")
        done = nursery.run([*WORDS, f"data_dir={folder / 'data'}"], folder, injection.environ)
        assert done.returncode == 0, done.stderr
        self.folder = folder / "data"
        self.whole = arrays(self.folder)
        self.operations: list[Operation] = injection.operations()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, with_injector: None) -> Iterator[Base]:
    folder = tmp_path_factory.mktemp("disk")
    with nursery(folder / "nursery", "lra.doctor", "lra.pictures", "lra.tasks", "tensorflow_datasets") as processes:
        yield Base(processes, folder)


def arrays(data_dir: Path) -> dict[str, str]:
    """The files of a prepared data set, by their hashes."""
    folder = data_dir / "listops-synthetic" / "1.0.0"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.*"))}


@pytest.mark.parametrize(("fault", "share"), SHARES)
def test_a_preparation_whose_disk_fails_says_so_and_leaves_nothing_half_written(
    base: Base, tmp_path: Path, tally: Counter[str], fault: str, share: int
) -> None:
    random = draws("data", fault, share)
    for at in sorted(random.sample(range(1, len(base.operations) + 1), min(amount(1, 20), len(base.operations)))):
        data_dir = tmp_path / str(at)
        injection = Injection(data_dir, tmp_path / "notes", at, fault)
        done = base.nursery.run([*WORDS, f"data_dir={data_dir}"], tmp_path, injection.environ)
        operation = base.operations[at - 1]
        tally[f"disk: {fault}, operations of a preparation"] += 1
        if done.returncode == 0:
            assert not done.stderr
            assert arrays(data_dir) == base.whole
        else:
            assert done.returncode == 1, (operation, done.stderr)
            assert len(done.stderr.splitlines()) == 1, (operation, done.stderr)
            assert done.stderr.startswith(f"error: data_dir={data_dir} cannot be used: "), (operation, done.stderr)
            assert SAYS[fault] in done.stderr, (operation, done.stderr)
            assert arrays(data_dir) in ({}, base.whole), operation
        again = base.nursery.run([*WORDS, f"data_dir={data_dir}"], tmp_path)
        assert (again.returncode, again.stderr) == (0, ""), operation
        assert arrays(data_dir) == base.whole
        tally["disk: preparations that left half a data set"] += 0
        left = [path.name for path in data_dir.iterdir() if path.name.endswith((".partial", ".scratch"))]
        assert not left, operation
        shutil.rmtree(data_dir)


def test_a_folder_for_data_that_cannot_be_changed_is_one_line(base: Base, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    injection = Injection(data_dir, tmp_path / "notes", 1, "readonly")
    done = base.nursery.run([*WORDS, f"data_dir={data_dir}"], tmp_path, injection.environ)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert done.stderr.startswith(f"error: data_dir={data_dir} cannot be used: ")
    assert SAYS["readonly"] in done.stderr
    assert not list(data_dir.iterdir())


def test_prepared_data_that_cannot_be_changed_are_ready(base: Base, tmp_path: Path) -> None:
    injection = Injection(base.folder, tmp_path / "notes", 1, "readonly")
    done = base.nursery.run([*WORDS, f"data_dir={base.folder}"], tmp_path, injection.environ)
    assert (done.returncode, done.stderr, injection.count()) == (0, "", 0)
    assert "is prepared in" in done.stdout


@pytest.mark.parametrize("fault", ["full", "once", "broken", "readonly"][: amount(1, 4)])
def test_the_doctor_tells_what_it_found_where_its_pictures_have_no_room(
    base: Base, tmp_path: Path, tally: Counter[str], fault: str
) -> None:
    """The pictures come after the findings, and their failure is one line."""
    data_dir = tmp_path / "data"
    shutil.copytree(base.folder, data_dir)
    words = [*WORDS, f"data_dir={data_dir}", "--doctor"]
    for at in range(1, amount(2, 9)):
        injection = Injection(data_dir, tmp_path / "notes", at, fault)
        done = base.nursery.run(words, tmp_path, injection.environ)
        tally[f"disk: {fault}, operations of the doctor"] += 1
        if done.returncode:
            assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
            assert SAYS[fault] in done.stderr
            assert str(data_dir) in done.stderr
        assert "accuracy on test of train's most frequent label" in done.stdout
        # From a disk that cannot be changed nothing can be removed: the next writer does it.
        assert fault == "readonly" or not list(data_dir.rglob("*.part"))
        assert arrays(data_dir).items() >= base.whole.items()
    done = base.nursery.run(words, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert not list(data_dir.rglob("*.part"))


@pytest.mark.parametrize("room", [1, 200, 3_000][: amount(1, 3)])
def test_a_limit_on_the_size_of_files_is_a_line(base: Base, tmp_path: Path, tally: Counter[str], room: int) -> None:
    data_dir = tmp_path / "data"
    done = base.nursery.run([*WORDS, f"data_dir={data_dir}"], tmp_path, limits={"RLIMIT_FSIZE": room})
    tally["disk: limits"] += 1
    assert done.returncode in (1, 120)
    assert "Traceback" not in done.stderr
    assert arrays(data_dir) == {}
    assert base.nursery.run([*WORDS, f"data_dir={data_dir}"], tmp_path).returncode == 0
    assert arrays(data_dir) == base.whole
