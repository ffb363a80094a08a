"""`python -m lra.prepare` from end to end: whole data or none, once, without TensorFlow; one line when it cannot."""

import errno
import io
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lra import data, prepare
from lra.seal import digest
from lra.tasks import TASKS, listops
from lra.tasks.archive import RELEASE_ADDRESS
from tests.runs import ROOT, environment
from tests.test_listops import GOOD, SMALL, SPLITS, archive, flat, spell

LISTOPS = listops.ListOps()
SYNTHETIC = "task.source=synthetic"
KEYS = [*prepare.DEFAULTS, *dict.fromkeys(f"task.{key}" for kind in TASKS.values() for key in kind.defaults())]
# TensorFlow looks as if it were not installed, and whoever imports it all the same fails.
WITHOUT_TENSORFLOW = """
import importlib.util; find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == 'tensorflow' else find(name, package)
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] == 'tensorflow': raise AssertionError('TensorFlow is imported')
sys.meta_path.insert(0, Blocked())"""
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}


def start(data_dir: Path, *words: str, first: str = "", **options: Any) -> subprocess.Popen[str]:
    """The command in a process of its own, after the statements `first`."""
    code = f"import sys\n{first}\nfrom lra.prepare import main\nsys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, f"data_dir={data_dir}", *words],
        cwd=ROOT, env=environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def run(data_dir: Path, *words: str, first: str = "", **options: Any) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command."""
    with start(data_dir, *words, first=first, **options) as process:
        out, err = process.communicate()
    return process.returncode, out, err


def inside(data_dir: Path) -> set[str]:
    """What is in a data_dir, but for the locks that stay and what TFDS keeps of its own: empty folders and a name."""
    found = {str(path.relative_to(data_dir)) for path in data_dir.rglob("*") if not path.is_dir()}
    return {name for name in found if not name.endswith((".lock", "/.config/metadata.json"))}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with the synthetic source, prepared where TensorFlow cannot be imported; never to be changed."""
    data_dir = tmp_path_factory.mktemp("prepared") / "nested" / "data"
    code, out, err = run(data_dir, "task=listops", SYNTHETIC, first=WITHOUT_TENSORFLOW)
    assert (code, err) == (0, "")
    assert out.splitlines()[-1].startswith(
        f"listops (synthetic) prepared in {data_dir / 'listops-synthetic' / '1.0.0'}, "
    )
    assert "1,024 train, 256 val, 256 test" in out
    return data_dir


@pytest.fixture
def copied(prepared: Path, tmp_path: Path) -> Path:
    """A copy of the prepared data_dir, to be changed at will."""
    return Path(shutil.copytree(prepared, tmp_path / "data"))


def test_the_arrays_are_what_the_task_makes(prepared: Path) -> None:
    loaded = data.load(prepared, LISTOPS, "synthetic")
    for name, split in SPLIT_NAMES.items():
        (expected,) = listops.synthesize(listops.SEED, split, listops.SYNTHETIC_COUNTS[split])
        for key, array in expected._asdict().items():
            np.testing.assert_array_equal(getattr(getattr(loaded, name), key), array)


def test_the_manifest_tells_what_there_is(prepared: Path) -> None:
    loaded = data.load(prepared, LISTOPS, "synthetic")
    manifest = loaded.manifest
    assert {key: manifest[key] for key in ("schema", "task", "source", "version", "classes", "max_len")} == {
        "schema": 2, "task": "listops", "source": "synthetic", "version": "1.0.0", "classes": 10, "max_len": 2000,
    }  # fmt: skip
    assert manifest["vocabulary"] == list(listops.VOCABULARY)
    assert manifest["provenance"] == {"seed": listops.SEED}
    for name in data.SPLITS:
        facts, split = manifest["splits"][name], getattr(loaded, name)
        assert facts["examples"] == facts["documents"] == len(split.labels) == sum(facts["class_counts"])
        assert facts["tokens"] == len(split.tokens)
        assert facts["class_counts"] == [int((split.labels == label).sum()) for label in range(10)]
        assert facts["length_quantiles"]["0"] == split.lengths.min() == 8
        assert facts["length_quantiles"]["100"] == split.lengths.max() == 64
        assert list(facts["length_quantiles"]) == ["0", "5", "25", "50", "75", "95", "100"]
        assert facts["sha256"] == {
            key: data.content_sha256(getattr(split, key)) for key in ("tokens", "offsets", "labels")
        }
    assert manifest["sha256"] == data.identity_sha256(manifest["splits"])
    assert manifest["manifest_sha256"] == digest(manifest, "manifest_sha256")


def test_the_records_are_a_tfds_data_set(prepared: Path) -> None:
    code = f"""
import sys{WITHOUT_TENSORFLOW}
import tensorflow_datasets as tfds
built = tfds.builder_from_directory({str(prepared / "tfds/lra_listops/synthetic/1.0.0")!r})
record = built.as_data_source(split="test")[0]
print(built.info.splits["train"].num_examples, built.info.metadata["max_len"])
print(record["label"], record["tokens"].tolist())"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    test = data.load(prepared, LISTOPS, "synthetic").test
    assert done.stdout == f"1024 2000\n{test.labels[0]} {test.tokens[: test.offsets[1]].tolist()}\n"


def test_only_the_data_the_records_and_the_lock_are_left(prepared: Path) -> None:
    assert {name.split("/")[0] for name in inside(prepared)} == {"listops-synthetic", "tfds"}
    assert not [name for name in inside(prepared) if "incomplete" in name or "partial" in name]


def test_prepared_data_is_left_alone_and_tfds_is_not_loaded(copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    first = "import atexit; atexit.register(lambda: print({'tensorflow_datasets', 'torch'} & set(sys.modules)))"
    code, out, err = run(copied, SYNTHETIC, first=first)
    assert (code, err) == (0, "")
    said, loaded = out.splitlines()
    assert said.startswith(
        f"listops (synthetic) is prepared in {copied / 'listops-synthetic' / '1.0.0'}: 1,024 train, "
    )
    assert loaded == "set()"
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_a_damaged_data_set_is_named_and_left_alone(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = copied / "listops-synthetic" / "1.0.0" / "val.tokens.npy"
    file.write_bytes(b"foreign")
    assert prepare.main([SYNTHETIC, f"data_dir={copied}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        f"error: {file} is not a whole .npy array: delete {file.parent} and run make data task=listops "
    )
    assert len(err.splitlines()) == 1
    assert file.read_bytes() == b"foreign"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["task=listop"], f"error: task=listop is not one of {', '.join(TASKS)}; did you mean 'listops'?"),
        (["task.source=relase"], "error: task.source=relase is not one of generated, release, synthetic; did you mean"
                                 " 'release'?"),
        (["tsk=listops"], f"error: unknown key 'tsk', known are {', '.join(KEYS)}; did you mean 'task'?"),
        (["listops"], f"error: 'listops' is not of the form key=value; keys: {', '.join(KEYS)}"),
        (["data_dir="], "error: data_dir= names no folder"),
    ],
)  # fmt: skip
def test_wrong_words_are_one_line_and_exit_code_2(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert prepare.main(words) == 2
    assert capsys.readouterr() == ("", f"{says}\n")
    assert list(tmp_path.iterdir()) == []


def test_help_names_words_defaults_and_sources(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        prepare.main(["--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith("usage: python -m lra.prepare [-h] [--doctor] [key=value ...]")
    for part in ("task=listops task.source=generated", "data_dir=runs/.data", "listops: generated, release, synthetic"):
        assert part in shown


# Steps of a preparation at which a process may be stopped: statements that make it send itself a signal there.
AT = {
    "examples": """
import os; from lra.tasks import listops; made = listops.synthesize
def stop(seed, split, count):
    if split == 'validation': os.kill(os.getpid(), {signal})
    yield from made(seed, split, count)
listops.synthesize = stop""",
    "arrays": """
import os; from lra import prepare; save = prepare._save
def stop(file, array):
    if 'val.labels' in file.name: os.kill(os.getpid(), {signal})
    save(file, array)
prepare._save = stop""",
    "rename": """
import os; from pathlib import Path; rename = Path.rename
def stop(self, target):
    if self.name.endswith('.partial'): os.kill(os.getpid(), {signal})
    return rename(self, target)
Path.rename = stop""",
}


@pytest.mark.parametrize("step", AT)
def test_a_killed_preparation_leaves_no_data_and_the_next_one_is_whole(
    prepared: Path, tmp_path: Path, step: str
) -> None:
    code, _, _ = run(tmp_path, SYNTHETIC, first=AT[step].format(signal=int(signal.SIGKILL)))
    assert code == -signal.SIGKILL
    assert any("incomplete" in str(path) or "partial" in str(path) for path in tmp_path.rglob("*"))
    with pytest.raises(data.DataMissing):
        data.load(tmp_path, LISTOPS, "synthetic")
    code, _, err = run(tmp_path, SYNTHETIC)
    assert (code, err) == (0, "")
    assert inside(tmp_path) == inside(prepared)
    again, once = (data.load(where, LISTOPS, "synthetic").manifest for where in (tmp_path, prepared))
    assert again == once


@pytest.mark.parametrize(("step", "number"), [("examples", signal.SIGTERM), ("arrays", signal.SIGINT)])
def test_a_signal_ends_it_in_one_line_with_nothing_left(tmp_path: Path, step: str, number: signal.Signals) -> None:
    code, _, err = run(tmp_path, SYNTHETIC, first=AT[step].format(signal=int(number)))
    assert code == 128 + number
    assert err == f"stopped by {number.name}: nothing half-written is left\n"
    assert inside(tmp_path) == set()


def test_broken_records_of_an_earlier_preparation_are_made_anew(copied: Path, prepared: Path) -> None:
    shutil.rmtree(copied / "listops-synthetic")
    for file in (copied / "tfds" / "lra_listops" / "synthetic" / "1.0.0").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    code, _, err = run(copied, SYNTHETIC)
    assert (code, err) == (0, "")
    again, once = (data.load(where, LISTOPS, "synthetic").manifest for where in (copied, prepared))
    assert again == once


def test_two_at_once_do_the_work_once(tmp_path: Path) -> None:
    hold = """
from lra.tasks import listops; made = listops.synthesize
def wait(seed, split, count):
    if split == 'train': print('holding', file=sys.__stdout__, flush=True); sys.stdin.read()
    yield from made(seed, split, count)
listops.synthesize = wait"""
    with start(tmp_path, SYNTHETIC, first=hold) as worker:
        assert worker.stdout is not None
        while worker.stdout.readline() != "holding\n":
            assert worker.poll() is None
        with start(tmp_path, SYNTHETIC) as waiter:
            assert waiter.stdout is not None
            assert (
                waiter.stdout.readline() == "listops (synthetic) is being prepared by another process: waiting for it\n"
            )
            work, work_errors = worker.communicate()
            rest, wait_errors = waiter.communicate()
    assert (worker.returncode, work_errors, waiter.returncode, wait_errors) == (0, "", 0, "")
    assert "listops (synthetic) prepared in" in work
    assert rest.startswith("listops (synthetic) is prepared in")


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_records_that_the_disk_does_not_take_are_one_line(tmp_path: Path) -> None:
    code, _, err = run(tmp_path, SYNTHETIC, preexec_fn=limit_file_size)
    assert code == 1
    assert err.startswith(f"error: data_dir={tmp_path} cannot be used: ")
    assert "File too large" in err
    assert len(err.splitlines()) == 1
    assert inside(tmp_path) == set()


def test_arrays_that_the_disk_does_not_take_are_one_line(tmp_path: Path) -> None:
    full = f"""
from lra import prepare; save = prepare._save
def fail(file, array):
    if 'val.labels' in file.name: raise OSError({errno.ENOSPC}, {os.strerror(errno.ENOSPC)!r}, str(file))
    save(file, array)
prepare._save = fail"""
    code, _, err = run(tmp_path, SYNTHETIC, first=full)
    assert code == 1
    assert err.startswith(
        f"error: data_dir={tmp_path} cannot be used: [Errno {errno.ENOSPC}] No space left on device: "
    )
    assert len(err.splitlines()) == 1
    assert inside(tmp_path) == set()


def test_a_data_dir_that_cannot_be_made_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for wrong in (tmp_path / "file", tmp_path / "file" / "data"):
        assert prepare.main([SYNTHETIC, f"data_dir={wrong}"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"error: data_dir={wrong} cannot be used: ")
        assert len(err.splitlines()) == 1


def test_the_release_goes_the_same_way(tmp_path: Path) -> None:
    archive(tmp_path / "manual", GOOD)
    code, out, err = run(tmp_path, "task.source=release", first=WITHOUT_TENSORFLOW)
    assert (code, err) == (0, "")
    loaded = data.load(tmp_path, LISTOPS, "release")
    for name, split in SPLIT_NAMES.items():
        arrays = getattr(loaded, name)
        assert [
            spell(arrays.tokens[a:b].tobytes()) for a, b in zip(arrays.offsets[:-1], arrays.offsets[1:], strict=True)
        ] == [flat(tree) for tree, _ in SPLITS[split]]
        assert arrays.labels.tolist() == [label for _, label in SPLITS[split]]
    assert loaded.manifest["provenance"]["truncated"] == 0
    assert set(loaded.manifest["provenance"]["sha256"]) == set(GOOD)


def test_a_cut_expression_is_in_manifest_and_summary(tmp_path: Path) -> None:
    long = b"Source\tTarget\r\n[SM " + b"1 " * 2_500 + b"]\t0\r\n"
    archive(tmp_path / "manual", SMALL | {"basic_val.tsv": long})
    code, out, err = run(tmp_path, "task.source=release")
    assert (code, err) == (0, "")
    assert "1 cut to 2,000 tokens" in out.splitlines()[-1]
    assert data.load(tmp_path, LISTOPS, "release").manifest["provenance"]["truncated"] == 1


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("files", "damage", "says"),
    [
        (SMALL | {"basic_test.tsv": b""}, None, "basic_test.tsv is empty"),
        (
            SMALL | {"basic_test.tsv": b"Source\tTarget\r\n[MAX 1 2 ]\t12\r\n"},
            None,
            "basic_test.tsv, line 2: target '12'",
        ),
        (GOOD, truncate, "lra_release.gz is broken or cut short"),
        ({}, None, "lra_release.gz holds no listops-1000/basic_train.tsv"),
    ],
)
def test_a_broken_release_is_one_line_and_leaves_nothing(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    files: dict[str, bytes],
    damage: Callable[[Path], None] | None,
    says: str,
) -> None:
    place = archive(tmp_path / "manual", files)
    if damage:
        damage(place)
    assert prepare.main(["task.source=release", f"data_dir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {place}")
    assert says in err
    assert len(err.splitlines()) == 1
    assert inside(tmp_path) == {"manual/lra_release.gz"}


def test_a_missing_release_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["task.source=release", f"data_dir={tmp_path / 'data'}"]) == 2
    err = capsys.readouterr().err
    assert f"{tmp_path / 'data' / 'manual' / 'lra_release.gz'} is missing: download {RELEASE_ADDRESS}" in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_and_a_file_gets_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for out, expected in ((Terminal(), "1200/1200"), (io.StringIO(), "making examples: 1,200\n")):
        monkeypatch.setattr(sys, "stdout", out)
        with prepare._progress("making examples", 1_200) as advance:
            advance(700)
            advance(500)
        monkeypatch.undo()
        assert expected in out.getvalue()
    assert out.getvalue() == expected
