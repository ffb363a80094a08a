"""What holds for the sources of every task: prepared clean after a kill, the same bytes, one line for what is wrong."""

import errno
import gzip
import json
import os
import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from lra import data, prepare
from lra.tasks import TASKS, task
from lra.tasks.archive import RELEASE
from lra.tasks.base import Place, Task
from lra.words import WordError
from tests import forks
from tests.runs import ROOT, arguments, environment, result
from tests.test_prepare import AT, KEYS, SYNTHETIC, WITHOUT_TENSORFLOW, inside, run

# The content of each synthetic source: another one means another version of the task.
IDENTITIES = {
    "listops": "98d385012898cc56408fad2702187f84344b577d4eb51b5d9037f82439421e99",
    "text": "255a92f2a39ffa4bc8e0895d60f78bb4079b53c10bffe9d85c84eda8ef7096a6",
    "retrieval": "4f28e6f43862db37662ea272ceaa960fa35b53033dd792324003407b32f2164f",
    "image": "943cc46f61392c22e5c9f2751beb296274d643e6789af62fe694404810808d68",
    "pathfinder": "14a152308ab26387fcc002c206163eb63d119a4fc2dbe27200556a3c4e8cf3c2",
    "pathx": "34967ecb4651fc9454e13797da4f6746a9be2f3eb2c1d7858bc08e94caef3a29",
}
# Sources that are neither made here nor brought by hand are fetched.
MADE = ("generated", "synthetic")
BROUGHT = [(name, source) for name, kind in TASKS.items() for source in kind.sources if source not in MADE]
OPTIONS = [(name, key) for name, kind in TASKS.items() for key in kind.defaults()]

# Two networks that are not there: names that are never answered, and names that are refused.
NETWORKS = {
    "silent": "lambda *given, **more: time.sleep(3600)",
    "refused": "lambda *given, **more: (_ for _ in ()).throw(socket.gaierror(-3, 'Temporary failure'))",
}


class Prepared(NamedTuple):
    """A synthetic data set, the words that name it and what the command said."""

    task: Task
    data_dir: Path
    said: str

    @property
    def loaded(self) -> data.Data:
        return data.load(self.data_dir, self.task, "synthetic")


@pytest.fixture(scope="module", params=TASKS)
def prepared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A task's synthetic source, prepared where TensorFlow cannot be imported, after a preparation that was killed."""
    data_dir = tmp_path_factory.mktemp(request.param)
    words = [f"task={request.param}", SYNTHETIC]
    code, _, _ = run(data_dir, *words, first=AT["arrays"].format(signal=int(signal.SIGKILL)))
    assert code == -signal.SIGKILL
    assert any("partial" in str(path) for path in data_dir.rglob("*"))
    code, out, err = run(data_dir, *words, first=WITHOUT_TENSORFLOW)
    assert (code, err) == (0, "")
    return Prepared(TASKS[request.param](), data_dir, out)


def test_what_a_killed_preparation_left_is_gone(prepared: Prepared) -> None:
    found = inside(prepared.data_dir)
    assert {name.split("/")[0] for name in found} == {f"{prepared.task.name}-synthetic", "tfds"}
    assert not [name for name in found if "incomplete" in name or "partial" in name or "scratch" in name]


@pytest.mark.parametrize("name", ["listops", "retrieval", "pathfinder", "pathx"])
@pytest.mark.parametrize(
    "content",
    [b"<html>404</html>", gzip.compress(b"not a tar file" * 200), gzip.compress(b"")],
    ids=["no gzip", "no tar", "nothing packed"],
)
def test_a_foreign_archive_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / RELEASE).write_bytes(content)
    facts = TASKS[name]()
    (source,) = (source for source in facts.sources if source not in MADE)
    with pytest.raises(ValueError, match=rf"{RELEASE} is broken or cut short|{RELEASE} holds no") as caught:
        facts.read(source, Place(tmp_path, tmp_path))
    assert len(str(caught.value).splitlines()) == 1


def test_the_bytes_are_those_of_every_other_machine(prepared: Prepared) -> None:
    assert prepared.loaded.manifest["sha256"] == IDENTITIES.get(prepared.task.name)


def test_the_manifest_and_the_last_line_say_what_there_is(prepared: Prepared) -> None:
    facts, manifest = prepared.task, prepared.loaded.manifest
    assert {key: manifest[key] for key in ("schema", "task", "source", "version", "kind", "options")} == {
        "schema": data.SCHEMA, "task": facts.name, "source": "synthetic", "version": facts.version, "kind": facts.kind,
        "options": {},
    }  # fmt: skip
    assert (manifest["classes"], manifest["max_len"]) == (facts.classes, facts.max_len)
    assert manifest["vocabulary"] == list(facts.vocabulary)
    assert isinstance(manifest["provenance"]["seed"], int)
    folder = data.folder(prepared.data_dir, facts, "synthetic")
    last = prepared.said.splitlines()[-1]
    assert last.startswith(f"{facts.name} (synthetic) prepared in {folder}, ")
    assert last.endswith(f"sha256 {manifest['sha256'][:12]}")
    for name in data.SPLITS:
        assert f"{manifest['splits'][name]['examples']:,} {name}" in last


def test_every_split_is_of_the_task(prepared: Prepared) -> None:
    facts, loaded = prepared.task, prepared.loaded
    assert len(set(facts.vocabulary)) == len(facts.vocabulary) <= 256
    for name in data.SPLITS:
        split = getattr(loaded, name)
        assert set(split.labels.tolist()) == set(range(facts.classes))
        assert 1 <= split.lengths.min() <= split.lengths.max() <= facts.max_len
        assert split.tokens.max() < len(facts.vocabulary)
        if facts.kind == "pixels":
            assert set(split.lengths.tolist()) == {facts.max_len}


def test_training_reads_it_without_tensorflow(prepared: Prepared, tmp_path: Path) -> None:
    _, _, *words = arguments(
        tmp_path, f"task={prepared.task.name}", f"data_dir={prepared.data_dir}", "attn=linformer",
        f"model.seq_len={prepared.task.max_len}", "model.layers=1", "model.dim=8", "train.batch_size=16",
        "train.steps=3", "train.warmup=2", "train.eval_every=3", "attn.rank=8",
    )  # fmt: skip
    code = f"import sys\n{WITHOUT_TENSORFLOW}\nfrom lra.train import main\nmain()"
    done = forks.run(["-c", code, *words], tmp_path, environment())
    assert done.returncode == 0, done.stdout + done.stderr
    outcome = result(tmp_path / "run")
    assert (outcome["status"], outcome["steps"]) == ("finished", 3)
    assert outcome["data_sha256"] == prepared.loaded.manifest["sha256"]
    assert outcome["test"]["n"] == len(prepared.loaded.test.labels)


@pytest.mark.parametrize("name", TASKS)
def test_a_full_disk_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    save = prepare._save

    def fail(file: Path, array: np.ndarray) -> None:
        if "test.labels" in file.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        save(file, array)

    monkeypatch.setattr(prepare, "_save", fail)
    assert prepare.main([f"task={name}", SYNTHETIC, f"data_dir={tmp_path}"]) == 1
    err = capsys.readouterr().err
    assert err.startswith(f"error: data_dir={tmp_path} cannot be used: [Errno {errno.ENOSPC}] No space left on device")
    assert len(err.splitlines()) == 1
    assert inside(tmp_path) == set()


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("name", "source"), BROUGHT)
def test_without_the_files_and_a_network_one_line_says_what_to_put_where(
    tmp_path: Path, name: str, source: str, network: str
) -> None:
    first = f"import socket, time; socket.getaddrinfo = {NETWORKS[network]}"
    code, out, err = run(tmp_path, f"task={name}", f"task.source={source}", first=first)
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    assert err.startswith("error: ")
    assert str(tmp_path / "manual") in err
    assert "https://" in err
    (other,) = (made for made in MADE if f"task.source={made} needs no download" in err)
    assert other in TASKS[name].sources
    assert inside(tmp_path) == set()


def answered(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a wrong word gets, before anything is done."""
    assert prepare.main([*words, "data_dir=nowhere"]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert not Path("nowhere").exists()
    return err.removesuffix("\n")


@pytest.mark.parametrize("name", TASKS)
def test_an_option_that_no_task_has_and_one_of_another_task_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    own = TASKS[name].defaults()
    assert answered(capsys, f"task={name}", "task.flavour=1").startswith(
        f"error: unknown key 'task.flavour', known are {', '.join(KEYS)}"
    )
    for _, key in OPTIONS:
        if key not in own:
            takes = ", ".join(own) or "no options"
            said = answered(capsys, f"task={name}", f"task.{key}=1")
            assert said.startswith(f"error: unknown key 'task.{key}': {name} takes {takes}")


@pytest.mark.parametrize("name", TASKS)
def test_a_source_of_no_task_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    said = answered(capsys, f"task={name}", "task.source=nowhere")
    assert said.startswith(f"error: task.source=nowhere is not one of {', '.join(TASKS[name].sources)}")


@pytest.mark.parametrize(("name", "key"), OPTIONS)
def test_a_wrong_value_of_an_option_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, key: str
) -> None:
    monkeypatch.chdir(tmp_path)
    whole = isinstance(TASKS[name].defaults()[key], int)
    for value in ("-1", "0", "4.5", "x", "yes", "[1]"):
        said = answered(capsys, f"task={name}", SYNTHETIC, f"task.{key}={value}")
        assert said.startswith(f"error: task.{key}={value} ")
        if whole and value not in ("-1", "0"):
            assert said == f"error: task.{key}={value} must be a whole number"


@pytest.mark.parametrize(("name", "key"), OPTIONS)
def test_a_value_of_another_type_is_refused_too(name: str, key: str) -> None:
    for value in (None, 4.5, True, [1], {"a": 1}):
        with pytest.raises(WordError, match=rf"^task\.{key}="):
            task({"name": name, key: value})


@pytest.mark.parametrize("name", TASKS)
def test_the_configuration_of_a_task_is_its_defaults(name: str) -> None:
    kind = TASKS[name]
    expected = {"name": name, "source": kind.sources[0], "version": kind.version, **kind.defaults()}
    if kind.kind == "pixels":
        expected["mask_zero_pixels"] = False
    assert yaml.safe_load((ROOT / "conf" / "task" / f"{name}.yaml").read_text()) == expected
    assert json.loads(json.dumps(kind.defaults())) == kind.defaults()
    assert kind.sources[-1] == "synthetic"
