"""The gradients of a run under other attentions: those of its own loss, and the same where the mathematics is."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.gradients import KEYS, exchanged, main
from lra.data import collate
from lra.loop import Trainer
from lra.words import WordError
from tests.test_capture import trained


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """A finished run of softmax on documents, read only."""
    path = tmp_path_factory.mktemp("gradients")
    trainer = trained(path)
    return path / "run", trainer


def measured(run: Path, out: Path, *words: str, checkpoint: str = "last") -> list[dict[str, str]]:
    assert main([f"run={run}", f"checkpoint={checkpoint}", "examples=24", f"out={out / 'g.csv'}", *words]) == 0
    return list(csv.DictReader((out / "g.csv").read_text().splitlines()))


def test_the_gradients_are_those_of_the_loss_of_the_examples(finished: tuple[Path, Trainer], tmp_path: Path) -> None:
    path, trainer = finished
    rows = [row for row in measured(path, tmp_path) if row["attn"] == row["run_attn"]]
    model = trainer.model.eval()
    model.zero_grad()
    batch = collate(trainer.data.train, np.arange(24), 48)
    loss = F.cross_entropy(model(batch.tokens, batch.mask), batch.labels)
    loss.backward()
    assert float(rows[0]["loss"]) == pytest.approx(loss.item(), abs=2e-6)
    places = [(row["projection"], row["layer"]) for row in rows]
    assert places[:6] == [("q", "0"), ("q", "1"), ("k", "0"), ("k", "1"), ("v", "0"), ("v", "1")]
    weights = dict(model.named_parameters())
    for row in rows:
        gradient = weights[f"encoder.blocks.{row['layer']}.attend.project.{row['projection']}.weight"].grad
        assert gradient is not None
        assert float(row["norm"]) == pytest.approx(gradient.norm().item(), rel=1e-3)


def test_what_is_exact_has_the_gradients_of_softmax_and_what_is_not_has_others(
    finished: tuple[Path, Trainer], tmp_path: Path
) -> None:
    rows = measured(finished[0], tmp_path, "instead=nystromformer landmarks=48,nystromformer landmarks=1")
    by_attn = {attn: [row for row in rows if row["attn"].startswith(attn)] for attn in ("softmax", "nystromformer")}
    exact, coarse = by_attn["nystromformer"][:6], by_attn["nystromformer"][6:]
    for row in by_attn["softmax"] + exact:
        assert float(row["ratio"]) == pytest.approx(1, abs=1e-3)
        assert float(row["cosine"]) == pytest.approx(1, abs=1e-3)
    assert min(float(row["cosine"]) for row in coarse) < 0.95


def test_each_checkpoint_has_weights_of_its_own(finished: tuple[Path, Trainer], tmp_path: Path) -> None:
    rows = measured(finished[0], tmp_path, checkpoint="start,best,last")
    assert list(dict.fromkeys(row["checkpoint"] for row in rows)) == ["start", "best", "last"]
    steps = {row["checkpoint"]: int(row["step"]) for row in rows}
    assert steps["start"] == 0
    assert 0 < steps["best"] <= steps["last"] == 4
    losses = {row["checkpoint"]: row["loss"] for row in rows}
    assert losses["start"] != losses["last"]


def test_the_words_of_another_attention_keep_what_is_wrapped_around_the_runs() -> None:
    own = {"name": "nystromformer", "conv": 33, "grid": None, "tile": None, "landmarks": 64}
    wraps = {"conv": 33, "grid": None, "tile": None}
    assert exchanged(own, "softmax") == {"name": "softmax", **wraps}
    assert exchanged(own, " nystromformer iterations=12 ") == {**own, "iterations": 12}
    assert exchanged(own, "softmax conv=0 dropout=0.5") == {"name": "softmax", **wraps, "conv": 0, "dropout": 0.5}
    for wrong in ("softmax conv", "softmax =3", "softmax conv=", "softmax conv=["):
        with pytest.raises(WordError, match="must be key=value"):
            exchanged(own, wrong)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (["instead=sofmax"], "attn.name=sofmax is not one of"),
        (["instead="], "attn.name= is not one of"),
        (["instead=softmax heads=3"], "attn.heads: softmax takes"),
        (["instead=softmax conv=3"], "needs encoder.blocks.0.attend.attention.filters, which the run does not have"),
        (["checkpoint=first"], "checkpoint=first"),
        (["seed=4294967296"], "seed=4294967296"),
        (["examples=25"], "examples=25 must be at most 24"),
        (["out=g.txt"], "must end in .csv"),
        (["data_dir=nowhere"], "nowhere"),
        (["run=none"], "run= names the directory of a run"),
        (["run=nowhere"], "is not the directory of a run"),
    ],
)
def test_a_wrong_word_is_one_line(
    words: list[str], answer: str, finished: tuple[Path, Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = [] if any(word.startswith("out=") for word in words) else [f"out={tmp_path / 'g.csv'}"]
    given = dict(word.split("=", 1) for word in [f"run={finished[0]}", "examples=24", *out, *words])
    assert main([f"{key}={value}" for key, value in given.items()]) == 2
    said = capsys.readouterr().err.strip()
    assert answer in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "g.csv").exists()


def test_every_key_is_told() -> None:
    assert all(said for _, said in KEYS.values())


def test_the_model_is_left_without_dropout(finished: tuple[Path, Trainer], tmp_path: Path) -> None:
    torch.manual_seed(1)
    first = measured(finished[0], tmp_path)
    torch.manual_seed(2)
    assert measured(finished[0], tmp_path) == first
