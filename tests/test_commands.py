"""`python -m lra.train` as a user meets it: right words run, wrong words get one line."""

import os
import subprocess
from pathlib import Path

import pytest

from lra.tasks import TASKS
from tests import forks
from tests.runs import ROOT, environment, result, train


def lra(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return forks.run(["-m", "lra.train", *words], ROOT, environment() | env)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("task=listop", f"task=listop is not one of {', '.join(sorted(TASKS))}; did you mean 'listops'?"),
        ("attn=mra_2", "did you mean 'mra2'?"),
        ("protocol=mlpenn", "protocol=mlpenn is not one of google, mlpen; did you mean 'mlpen'?"),
        ("attn=", "attn= is not one of"),
        ("train.lrr=1", "unknown key 'train.lrr'; did you mean 'train.lr'?"),
        ("trian.lr=1", "unknown key 'trian.lr'; did you mean 'train.lr'?"),
        ("attn.blocks_per_rows=1", "unknown key 'attn.blocks_per_rows'; did you mean 'attn.blocks_per_row'?"),
        ("+train.foo=1", "unknown key 'train.foo'"),
        ("+foo=1", "unknown key 'foo'"),
        ("train.lr=abc", "train.lr=abc: Value 'abc' of type 'str' could not be converted to Float"),
        ("train.steps=1.5", "train.steps=1.5: "),
        ("fresh=maybe", "fresh=maybe: Value 'maybe' is not a valid bool"),
        ("train=3", "train=3: "),
        ("train.steps=0", "train.steps=0 must be at least 1"),
        ("tracker=wand", "tracker=wand is not one of"),
        ("device=gpu", "device=gpu is not one of auto, cpu, cuda"),
        ("kernel=gpu", "kernel=gpu is not one of auto, reference, cpu, cuda"),
        ("listops", "'listops' is not of the form key=value"),
        ("train.lr=[", "'train.lr=[' is not of the form key=value"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(word: str, says: str) -> None:
    done = lra(word)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert says in done.stderr


def test_the_traceback_is_there_for_those_who_ask() -> None:
    done = lra("train.lrr=1", HYDRA_FULL_ERROR="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_help_and_cfg_name_the_choices_and_the_defaults() -> None:
    shown = lra("--help")
    assert shown.returncode == 0
    assert "make lra task=listops" in shown.stdout
    configured = ", ".join(sorted(file.stem for file in (Path(__file__).parents[1] / "conf" / "attn").glob("*.yaml")))
    assert f"attn: {configured}" in shown.stdout
    job = lra("--cfg", "job", "attn=softmax")
    assert job.returncode == 0
    assert "name: softmax" in job.stdout
    assert "lr: 0.0001" in job.stdout


def test_the_recipe_is_the_published_one() -> None:
    shown = lra("--cfg", "job").stdout
    for line in ("steps: 5000", "batch_size: 32", "warmup: 1000", "lr: 0.0001", "eps: 1.0e-06", "first_blocks: 1"):
        assert line in shown
    assert "dropout: 0.1" in lra("--cfg", "job", "--package", "attn", "attn=softmax").stdout


def test_a_kernel_that_cannot_run_on_the_device_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    done = train(tmp_path, "train.steps=6", "train.warmup=2", "device=cpu", "kernel=cuda", code=2)
    assert done.stderr.splitlines()[-1] == "error: kernel=cuda runs on a GPU, not on cpu"
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_run_leaves_the_files_of_the_contract_and_a_second_cell_fails_alone(tmp_path: Path) -> None:
    done = train(tmp_path, "train.steps=6", "train.warmup=2", "tracker=offline", f"tracker_dir={tmp_path}")
    run = tmp_path / "run"
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "checkpoint/last.pt",
        "checkpoint/best.pt",
        "predictions.npz",
        "result.json",
    ):
        assert (run / name).stat().st_size > 0
    told = result(run)
    assert told["status"] == "finished"
    assert (told["protocol"], told["task"], told["attn"], told["seed"], told["source"]) == (
        "mlpen",
        "listops",
        "mra2",
        0,
        "synthetic",
    )
    low, high = told["test"]["ci95"]
    assert 0 <= low <= told["test"]["accuracy"] <= high <= 1
    assert told["kernel"] == "cpu"
    assert told["steps"] == 6
    assert told["deviations"]["task.source"] == "synthetic"
    assert told["declared"] == {"attn.first_blocks": 1}
    assert told["params_softmax"] == told["params"]
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    for said in ("data   listops (synthetic)", "step 6/6", "test   accuracy", "tok/s", "left 0:00:00"):
        assert said in done.stdout


def test_a_run_tells_at_its_start_and_in_its_result_whatever_was_chosen(tmp_path: Path) -> None:
    words = ("protocol=google", "attn=linformer", "train.steps=6", "train.warmup=9")
    done = train(tmp_path, *words)
    for said in (
        "linformer(rank=16), protocol google, 4 layers",
        "over softmax, beyond the benchmark's 10%",
        "pooling cls, sinusoidal positions, init xavier, no bias in attention, dropout 0.1",
        "(rsqrt), warm-up 9",
        "betas 0.9, 0.98, eps 1e-09, weight decay 0.1; tests the last weights",
        "at the last step 6",
    ):
        assert said in done.stdout
    told = result(tmp_path / "run")
    assert told["params"] > 1.1 * told["params_softmax"]
    assert told["test"]["step"] == 6
    chosen = {"model.pooling": "cls", "train.schedule": "rsqrt", "train.select": "last", "attn.rank": 16, "seed": 0}
    assert chosen.items() <= told["config"].items()
    assert "data_dir" not in told["config"]
    again = train(tmp_path, *words)
    assert "is finished" in again.stdout


def test_a_missing_data_set_that_cannot_be_made_names_the_file(tmp_path: Path) -> None:
    done = train(tmp_path, "task.source=release", code=2)
    assert "lra_release.gz" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    done = train(tmp_path, code=1)
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path / "run") in done.stderr


def test_a_loss_that_explodes_is_diverged_and_stays_so(tmp_path: Path) -> None:
    words = ("train.lr=1e30", "train.steps=30")
    done = train(tmp_path, *words, code=1)
    assert "not finite at step" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    told = result(tmp_path / "run")
    assert told["status"] == "diverged"
    again = train(tmp_path, *words, code=1)
    assert f"diverged at step {told['steps']}; fresh=true starts it over" in again.stderr


def test_the_default_directory_names_the_run_by_its_words(tmp_path: Path) -> None:
    train(tmp_path, "run_dir=null", "train.steps=3", "train.warmup=2", "seed=7")
    (run,) = (tmp_path / "runs" / "mlpen" / "listops" / "mra2").iterdir()
    assert run.name.endswith(",seed7")
    assert "train.steps=3" in run.name
    assert os.path.exists(run / "result.json")
