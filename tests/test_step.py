"""The benchmark of a training step measures what it says and accounts for all of it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from attention_zoo.ops import kernels
from benchmarks.parts import MARK, PARTS, part_of, shares
from benchmarks.step import KERNELS, KEYS, PartRow, Row, configured, main, settings_of
from benchmarks.timed import random_documents
from lra.config import Model, Train
from lra.loop import build
from lra.tasks import TASKS

from . import forks

TINY = "model.seq_len=64 model.dim=16 model.head_dim=8 model.ffn=16 train.batch_size=4 train.steps=9 train.warmup=3"


def rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def test_the_reference_is_measured_with_the_copies_of_torch() -> None:
    names = [tuple(setting) for setting in settings_of("mra2", KERNELS)]
    compiled = [("mra2", "cpu", "torch"), ("mra2", "cpu", "ours")]
    assert names == [("softmax", "auto", "torch"), ("mra2", "reference", "torch"), *compiled]
    assert settings_of("softmax", KERNELS) == settings_of("mra2", [])


def test_every_kernel_and_every_part_gets_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forks.instead_of_spawned(monkeypatch)
    out = tmp_path / "step.csv"
    given = [
        "steps=1",
        "kernel=cpu",
        "profiled=1",
        "threads=1",
        f"data_dir={tmp_path / 'none'}",
        f"words={TINY}",
        f"out={out}",
    ]
    assert main(given) == 0
    found = rows(out)
    assert tuple(found[0]) == Row._fields
    assert [(row["attn"], row["kernel"], row["copies"]) for row in found] == [
        ("softmax", "auto", "torch"),
        ("mra2", "cpu", "torch"),
        ("mra2", "cpu", "ours"),
    ]
    for row in found:
        phases = [float(row[f"{phase}_ms"]) for phase in ("data", "forward", "backward", "optimizer", "rest")]
        assert min(phases) > 0
        assert abs(sum(phases) - float(row["step_ms"])) < 0.1
        assert (row["data"], row["batch"], row["length"], row["tokens"]) == ("random", "4", "64", "256")
    parts = rows(tmp_path / "step_parts.csv")
    assert tuple(parts[0]) == PartRow._fields
    assert len(parts) == len(found) * len(PARTS)
    for row in found:
        mine = [part for part in parts if all(part[key] == row[key] for key in ("attn", "kernel", "copies"))]
        assert abs(sum(float(part["share"]) for part in mine) - 1) < 0.002
    operators = {part["part"]: part["operators"] for part in parts[-len(PARTS) :]}
    for part in ("attention: itself", "attention: choice of pairs", "attention: layout and padding", "dropout"):
        assert "zoo::" in operators[part]
    assert "written: " in capsys.readouterr().out


def test_a_backward_operator_belongs_to_the_part_whose_gradient_it_computes() -> None:
    config = configured({key: default for key, (default, _) in KEYS.items()} | {"words": TINY}, "softmax")
    model = build(config, 8, 3)
    tokens = torch.randint(1, 8, (2, 64))

    def step() -> None:
        logits = model(tokens, torch.ones_like(tokens, dtype=torch.bool))
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 2])).backward()

    kernels.prepare(torch.device("cpu"))
    found = shares(model, step, 1)
    for part, operator in {
        "norms": "aten::native_layer_norm_backward",
        "feed-forward: GELU": "aten::gelu_backward",
        "embedding": "aten::embedding_dense_backward",
        "projections": "aten::mm",
        "feed-forward: products": "aten::mm",
        "attention: itself": "aten::_scaled_dot_product_flash_attention_for_cpu_backward",
        "loss": "aten::_log_softmax_backward_data",
        "dropout": "zoo::dropout_cpu",
    }.items():
        assert operator in found[part].operators
    assert not [name for share in found.values() for name in share.operators if name.startswith(MARK)]
    assert not model._forward_hooks


def test_every_module_with_weights_has_a_part_of_its_own() -> None:
    config = configured({key: default for key, (default, _) in KEYS.items()}, "mra2")
    assert (config.model, config.train) == (Model(), Train())
    named = {name: part_of(name, module) for name, module in build(config, 8, 3).named_modules() if name}
    assert named["encoder.blocks.0.attend.project.q"] == named["encoder.blocks.1.attend.out"] == "projections"
    assert named["encoder.blocks.0.think.0"] == named["encoder.blocks.0.think.3"] == "feed-forward: products"
    assert named["head.0"] is None
    assert set(filter(None, named.values())) <= set(PARTS)


@pytest.mark.parametrize("name", TASKS)
def test_documents_that_nobody_prepared_have_the_shape_of_the_tasks(name: str) -> None:
    facts = TASKS[name]()
    found = random_documents(facts, 20, pairs=name == "retrieval")
    lengths = found.train.lengths
    assert lengths.max() <= facts.max_len
    assert lengths.min() >= (facts.max_len if facts.kind == "pixels" else facts.max_len // 4)
    assert found.train.tokens.max() < len(facts.vocabulary)
    assert (found.train.pairs is None) == (name != "retrieval")


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("steps=0", "error: steps=0 must be an integer of at least 1"),
        ("kernel=none", "error: kernel=none is not one of reference, cpu"),
        ("out=step.txt", "error: out=step.txt must end in .csv"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(word: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word]) == 2
    assert capsys.readouterr().err == f"{answer}\n"
