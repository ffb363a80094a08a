"""`make collect`: what it takes, what it keeps, what it refuses, and why."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import yaml

from lra import lock, ours
from lra.collect import main
from lra.config import digest, identity
from lra.published import read_published
from tests import forks
from tests.recipe_runs import dressed, prepared, reseal, trained
from tests.runs import environment


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("real"))


class Told:
    """What a `make collect` said, its exit code, and the table that it left in `folder`."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
        capsys.readouterr()
        self.code = main(
            [f"from={folder / 'runs'}", f"out={folder / 'table' / 'ours.csv'}", f"data_dir={folder / 'data'}", *words]
        )
        self.out, self.err = capsys.readouterr()

    def line(self, begins: str) -> str:
        """The one line that begins so."""
        (found,) = [line for line in self.out.splitlines() if line.startswith(begins)]
        return found


def names(folder: Path) -> list[str]:
    return [row.name for row in ours.read(folder / "table")]


def test_a_run_becomes_a_row_that_says_what_its_result_says(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = dressed(real, tmp_path / "runs")
    told = Told(tmp_path, capsys)
    assert (told.code, told.err) == (0, "")
    (row,) = ours.read(tmp_path / "table")
    result = json.loads((run / "result.json").read_text())
    with np.load(run / "predictions.npz") as arrays:
        labels, predictions = arrays["labels"], arrays["predictions"]
    assert row.correct == (labels == predictions).sum()
    assert row.n == len(labels)
    assert row.accuracy == pytest.approx(result["test"]["accuracy"], abs=6e-7)
    for key in ("data_sha256", "config_sha256", "git_commit", "params", "device", "dtype", "processes", "status"):
        assert getattr(row, key) == result[key]
    assert (row.result_sha256, row.kernel_sha256) == (result["sha256"], result["kernel_sha256"])
    assert row.best_step == result["val"]["best_step"]
    assert row.declared == "attn.first_blocks=1"
    assert row.versions.startswith(f"torch {result['versions']['torch']}; python {result['versions']['python']}")
    found = ours.predictions(tmp_path / "table", row)
    np.testing.assert_array_equal(found.predictions, predictions)
    np.testing.assert_array_equal(found.labels, labels)
    assert told.line("taken").split()[:2] == ["taken", "mlpen/listops/mra2/seed0"]
    assert told.out.splitlines()[-1] == f"1 run in {tmp_path / 'table/ours.csv'}: 1 taken, 0 kept, 0 refused"


def rewrite(file: str, old: str, new: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        text = (run / file).read_text()
        assert old in text
        (run / file).write_text(text.replace(old, new, 1))

    return damage


def flip(file: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        data = bytearray((run / file).read_bytes())
        data[len(data) // 2] ^= 1
        (run / file).write_bytes(data)

    return damage


def without(file: str) -> Callable[[Path], None]:
    return lambda run: (run / file).unlink()


def unsealed(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    del result["sha256"], result["files"]
    (run / "result.json").write_text(json.dumps(result))


def of_another_recipe(run: Path) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["train"]["lr"] = 2e-4
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    reseal(run, config=identity(config), config_sha256=digest(config))


def foreign_predictions(run: Path) -> None:
    with np.load(run / "predictions.npz") as arrays:
        held = dict(arrays)
    held["predictions"] = held["labels"]
    np.savez(run / "predictions.npz", **held)
    reseal(run)


def nameless(run: Path) -> None:
    (run / "predictions.npz").rename(run / "kept")
    reseal(run)
    (run / "kept").rename(run / "predictions.npz")


def elsewhere(run: Path) -> None:
    run.rename(run.with_name("seed7"))


def renamed(attn: str) -> Callable[[Path], None]:
    def damage(run: Path) -> None:
        reseal(run, attn=attn)
        moved = run.parent.rename(run.parent.with_name(attn))
        # The other run stays where it is.
        run.parent.mkdir()
        (moved / "seed1").rename(run.with_name("seed1"))

    return damage


DAMAGES = {
    "a seal": (rewrite("result.json", '"params": ', '"params": 1'), "result.json is damaged (sha256 "),
    "no seal": (unsealed, "result.json has no seal"),
    "no JSON": (lambda run: (run / "result.json").write_text("{"), "result.json cannot be taken: not whole JSON"),
    "metrics": (flip("metrics.jsonl"), "metrics.jsonl is damaged"),
    "no metrics": (without("metrics.jsonl"), "metrics.jsonl is missing"),
    "predictions": (flip("predictions.npz"), "predictions.npz is damaged"),
    "no predictions": (without("predictions.npz"), "predictions.npz is missing"),
    "unnamed predictions": (nameless, "result.json does not name predictions.npz"),
    "foreign predictions": (foreign_predictions, "predictions.npz has predictions that are not those of its logits"),
    "accuracy": (
        lambda run: reseal(run, test=json.loads((run / "result.json").read_text())["test"] | {"accuracy": 0.5}),
        "its predictions are right for ",
    ),
    "items": (
        lambda run: reseal(run, test=json.loads((run / "result.json").read_text())["test"] | {"n": 7}),
        "predictions.npz holds ",
    ),
    "config": (rewrite("config.yaml", "lr: 0.0001", "lr: 0.0002"), "config.yaml is damaged (sha256 "),
    "no config": (without("config.yaml"), "config.yaml is missing"),
    "another recipe": (
        of_another_recipe,
        "it is not the recipe of today: train.lr=0.0002 (the recipe has 0.0001)",
    ),
    "deviations": (
        lambda run: reseal(run, deviations={"train.lr": 1.0}),
        "result.json does not say the configuration of config.yaml",
    ),
    "steps": (lambda run: reseal(run, steps=40), "finished after 40 of 5000 steps"),
    "another seed": (elsewhere, "result.json says seed=0, the directory seed=7"),
    "another attention": (lambda run: reseal(run, attn="mra"), "result.json says attn=mra, the directory attn=mra2"),
    "no attention": (
        renamed("mra3"),
        "protocol=mlpen task=listops attn=mra3 seed=0 is no recipe: attn=mra3 is not one of ",
    ),
    "no name": (renamed("${x}"), "protocol=mlpen task=listops attn=${x} seed=0 is no recipe: names have small"),
    "a toy": (lambda run: reseal(run, source="synthetic"), "source 'synthetic' is not a real one of listops"),
}


@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_run_is_named_with_its_reason_and_the_others_are_taken(
    what: str, real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage, reason = DAMAGES[what]
    run = dressed(real, tmp_path / "runs")
    dressed(real, tmp_path / "runs", seed=1)
    damage(run)
    told = Told(tmp_path, capsys)
    assert told.code == 1
    refused = told.line("refused")
    assert str(tmp_path / "runs/mlpen/listops") in refused
    assert refused.split(maxsplit=2)[2].startswith(reason), refused
    assert names(tmp_path) == ["mlpen/listops/mra2/seed1"]


def test_runs_whose_words_change_the_recipe_are_one_line_and_no_failure(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = dressed(real, tmp_path / "runs")
    for words in ("train.lr=0.001", "task.source=synthetic"):
        shutil.copytree(run, run.with_name(f"{words},seed0"))
    (run / "result.json").unlink()
    told = Told(tmp_path, capsys)
    assert told.code == 0
    assert "left out 2 runs whose words change the recipe: mlpen/listops/mra2/task.source=" in told.out
    assert told.line("left out 1 run without a result").endswith("mlpen/listops/mra2/seed0")
    assert (tmp_path / "table" / "ours.csv").read_text() == ",".join(ours.COLUMNS) + "\n"


def test_a_run_under_way_is_left_for_later(real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = dressed(real, tmp_path / "runs", status="interrupted", steps=40)
    with lock.take(run):
        told = Told(tmp_path, capsys)
    assert told.code == 0
    assert "is training it" in told.line(f"left out {run}")
    assert names(tmp_path) == []


def test_parts_come_home_from_several_machines_and_the_same_again_changes_no_byte(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dressed(real, tmp_path / "here", attn="softmax")
    dressed(real, tmp_path / "home" / "gpu" / "runs", attn="mra2_s", seed=1)
    dressed(real, tmp_path / "home" / "other", attn="mra2_s", seed=0, status="diverged", steps=70)
    assert Told(tmp_path, capsys, f"from={tmp_path / 'here'}").code == 0
    told = Told(tmp_path, capsys, f"from={tmp_path / 'home'}")
    assert told.code == 0
    assert told.line("kept").split()[1] == "mlpen/listops/softmax/seed0"
    assert names(tmp_path) == [f"mlpen/listops/{run}" for run in ("softmax/seed0", "mra2_s/seed0", "mra2_s/seed1")]
    assert "diverged at step 70" in told.out
    row = ours.read(tmp_path / "table")[1]
    assert (row.status, row.accuracy, row.correct, row.n, row.predictions_sha256) == ("diverged", None, None, None, "")
    before = {file: file.read_bytes() for file in (tmp_path / "table").rglob("*.*")}
    assert Told(tmp_path, capsys, f"from={tmp_path / 'home'}").code == 0
    assert {file: file.read_bytes() for file in (tmp_path / "table").rglob("*.*")} == before


def test_two_runs_of_one_cell_that_differ_are_refused_and_both_named(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dressed(real, tmp_path / "runs")
    assert Told(tmp_path, capsys).code == 0
    table = (tmp_path / "table" / "ours.csv").read_bytes()
    dressed(real, tmp_path / "again", device="another machine", right=3)
    told = Told(tmp_path, capsys, f"from={tmp_path / 'again'}")
    assert told.code == 1
    assert str(tmp_path / "again/mlpen/listops/mra2/seed0") in told.line("refused")
    assert "the table has another one of mlpen/listops/mra2/seed0" in told.line("refused")
    assert (tmp_path / "table" / "ours.csv").read_bytes() == table
    # Where neither is in a table yet, none is taken.
    for name in ("runs", "again"):
        shutil.copytree(tmp_path / name, tmp_path / "both" / name)
    told = Told(tmp_path, capsys, f"from={tmp_path / 'both'}", f"out={tmp_path / 'new/ours.csv'}")
    assert told.code == 1
    assert told.out.count("refused  ") == 2
    assert ours.read(tmp_path / "new") == []


def test_the_run_that_came_farther_takes_the_cell(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ends = [("interrupted", 40), ("interrupted", 90), ("out_of_memory", 90), ("finished", 5000)]
    for i, (status, steps) in enumerate(ends):
        dressed(real, tmp_path / str(i), status=status, steps=steps)
        told = Told(tmp_path, capsys, f"from={tmp_path / str(i)}")
        assert told.code == 0, told.out
        assert [(row.status, row.steps) for row in ours.read(tmp_path / "table")] == [(status, steps)]
    told = Told(tmp_path, capsys, f"from={tmp_path / '1'}")
    assert told.code == 0
    assert told.line(f"left out {tmp_path / '1'}").endswith("interrupted at step 90, the table finished at step 5,000")
    assert [row.status for row in ours.read(tmp_path / "table")] == ["finished"]


def test_runs_of_a_task_are_on_the_same_data_with_the_same_labels(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dressed(real, tmp_path / "runs")
    other = dressed(real, tmp_path / "runs", seed=1, data_sha256="b" * 64)
    told = Told(tmp_path, capsys)
    assert told.code == 1
    assert names(tmp_path) == []
    assert told.out.count("and nothing says which is right") == 2
    # With one of them in the table, the other is the wrong one.
    other.rename(tmp_path / "seed1")
    assert Told(tmp_path, capsys).code == 0
    (tmp_path / "seed1").rename(other)
    assert "data_sha256 bbbbbbbbbbbb, the table has " in Told(tmp_path, capsys).line("refused")
    reseal(other, data_sha256=ours.read(tmp_path / "table")[0].data_sha256)
    with np.load(other / "predictions.npz") as arrays:
        held = dict(arrays)
    held["labels"][0] = (held["labels"][0] + 1) % 10
    np.savez(other / "predictions.npz", **held)
    n = len(held["labels"])
    reseal(other, test={"accuracy": float((held["labels"] == held["predictions"]).mean()), "n": n})
    assert "sha256 of the labels " in Told(tmp_path, capsys).line("refused")
    assert names(tmp_path) == ["mlpen/listops/mra2/seed0"]


def test_prepared_data_are_what_runs_are_held_to(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepared(real, tmp_path / "data")
    dressed(real, tmp_path / "runs")
    dressed(real, tmp_path / "runs", seed=1, data_sha256="b" * 64)
    told = Told(tmp_path, capsys)
    assert told.code == 1
    assert "data_sha256 bbbbbbbbbbbb, what is prepared has " in told.line("refused")
    assert names(tmp_path) == ["mlpen/listops/mra2/seed0"]
    (labels,) = data.glob("*/*/test.labels.npy")
    array = np.load(labels)
    array[0] = (array[0] + 1) % 10
    np.save(labels, array)
    assert f"the labels of listops (generated) in {data} are damaged" in Told(tmp_path, capsys).out


def test_damaged_predictions_of_the_table_are_named_and_made_again_where_their_run_is(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dressed(real, tmp_path / "runs")
    assert Told(tmp_path, capsys).code == 0
    (file,) = (tmp_path / "table" / "ours").iterdir()
    whole, table = file.read_bytes(), (tmp_path / "table" / "ours.csv").read_bytes()
    flip(file.name)(file.parent)
    (tmp_path / "nothing").mkdir()
    told = Told(tmp_path, capsys, f"from={tmp_path / 'nothing'}")
    assert told.code == 1
    assert told.out.count(f"{file} is damaged") == 1
    assert Told(tmp_path, capsys).code == 0
    assert (file.read_bytes(), (tmp_path / "table" / "ours.csv").read_bytes()) == (whole, table)


def test_a_table_that_cannot_be_written_is_as_it_was(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    dressed(real, tmp_path / "runs")
    assert Told(tmp_path, capsys).code == 0
    before = (tmp_path / "table" / "ours.csv").read_bytes()
    dressed(real, tmp_path / "runs", seed=1)

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(ours, "write_text", full)
        told = Told(tmp_path, capsys)
    assert told.code == 1
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    assert (tmp_path / "table" / "ours.csv").read_bytes() == before
    (row,) = ours.read(tmp_path / "table")
    ours.predictions(tmp_path / "table", row)
    assert Told(tmp_path, capsys).code == 0
    assert len(names(tmp_path)) == 2


def test_a_row_removed_by_hand_takes_its_predictions_with_it(
    real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dressed(real, tmp_path / "runs")
    assert Told(tmp_path, capsys).code == 0
    ours.write(tmp_path / "table", [])
    (tmp_path / "nothing").mkdir()
    assert Told(tmp_path, capsys, f"from={tmp_path / 'nothing'}").code == 0
    assert list((tmp_path / "table" / "ours").iterdir()) == []


def test_two_at_once_lose_nothing(real: Path, tmp_path: Path) -> None:
    arguments = ["-m", "lra.collect", f"out={tmp_path / 'table/ours.csv'}"]
    for i in range(2):
        dressed(real, tmp_path / str(i), seed=i)
    with ExitStack() as both:
        said = [
            both.enter_context(forks.Started([*arguments, f"from={tmp_path / str(i)}"], tmp_path, environment()))
            for i in range(2)
        ]
        texts = [each.stdout.read() for each in said]
    assert [each.code for each in said] == [0, 0], texts
    assert names(tmp_path) == ["mlpen/listops/mra2/seed0", "mlpen/listops/mra2/seed1"]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("from=no/such", "error: from=no/such is not a folder\n"),
        ("out=table.csv", "error: out=table.csv must be a file of the name ours.csv, in any folder\n"),
        ("form=x", "did you mean 'from'?\n"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(
    word: str, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    told = Told(tmp_path, capsys, word)
    assert told.code == 2
    assert told.err.endswith(line)
    assert told.err.count("\n") == 1
    assert not (tmp_path / "table").exists()


def test_our_table_is_no_table_of_others(real: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dressed(real, tmp_path / "runs")
    assert Told(tmp_path, capsys).code == 0
    assert read_published(tmp_path / "table") == []
    assert io.StringIO((tmp_path / "table" / "ours.csv").read_text()).readline().startswith("protocol,task,source,")
