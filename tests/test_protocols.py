"""Protocols: every (protocol, task, attention) builds what its papers publish, and tells what it is."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf

from lra.config import Config, Model, Train
from lra.data import Split, collate
from lra.loop import build
from lra.model import Block, parameter_count
from lra.schedule import beta1, peak, rate
from lra.train import CONF, declared, store_schema

TASKS = {"listops": (16, 10), "text": (257, 2), "retrieval": (257, 2), "image": (256, 10), "pathfinder": (256, 2)}
TASKS |= {"pathx": (256, 2)}
PROTOCOLS = ("mlpen", "google")
ATTNS = sorted(file.stem for file in (CONF / "attn").glob("*.yaml"))
TUNED = sorted([*(CONF / "tune").glob("*.yaml"), *(CONF / "variant").glob("*.yaml")])


@functools.cache
def read(file: str) -> dict[str, Any]:
    """A YAML of conf/, empty where there is none."""
    path = CONF / f"{file}.yaml"
    return dict(OmegaConf.to_container(OmegaConf.load(path))) if path.exists() else {}  # type: ignore[arg-type]


def merged(protocol: str, task: str, attn: str, tuned: bool = True) -> Config:
    """What Hydra composes, a hundred times as fast."""
    files = [f"protocol/{protocol}", f"recipe/{protocol}_{task}"]
    files += [f"variant/{protocol}_{attn}", f"tune/{protocol}_{task}_{attn}"] if tuned else []
    parts: dict[str, dict[str, Any]] = {"attn": Config().attn | read(f"attn/{attn}"), "model": {}, "train": {}}
    for file in files:
        for part in parts:
            parts[part] |= read(file).get(part, {})
    model, train = Model(**parts["model"]), Train(**parts["train"])
    return Config(read(f"task/{task}"), parts["attn"], read(files[0])["protocol"], model, train)


recipe = functools.cache(merged)


@pytest.mark.parametrize(
    "choice", [("mlpen", "listops", "mra2"), ("google", "pathfinder", "longformer"), ("google", "listops", "performer")]
)
def test_the_words_of_a_command_give_the_recipe_that_these_tests_look_at(choice: tuple[str, str, str]) -> None:
    store_schema()
    words = [f"{group}={name}" for group, name in zip(("protocol", "task", "attn"), choice, strict=True)]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = OmegaConf.to_object(hydra.compose("config", overrides=words))
    assert composed == recipe(*choice)


def documents(task: str, count: int, length: int = 60) -> Split:
    """Examples of a task's form: `count` documents of `length` tokens, or pairs of them."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, TASKS[task][0] - 1, count * length).astype(np.uint8)
    pairs = np.stack([np.arange(count), np.arange(count)[::-1]], 1).astype(np.int32) if task == "retrieval" else None
    return Split(tokens, np.arange(count + 1) * length, np.zeros(count, np.uint8), pairs)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("attn", ATTNS)
def test_every_combination_builds_at_its_published_size(protocol: str, task: str, attn: str) -> None:
    config = recipe(protocol, task, attn)
    assert (config.protocol, config.task["name"]) == (protocol, task)
    with torch.device("meta"):
        one = build(replace(config, model=replace(config.model, layers=1)), *TASKS[task], pairs=task == "retrieval")
    (block,) = one.encoder.blocks
    assert isinstance(block, Block)
    assert block.attend.attention.seq_len == config.model.seq_len + (config.model.pooling == "cls")


@pytest.mark.parametrize("attn", ["softmax", "mra2"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_recipe_computes_logits_and_gradients(protocol: str, task: str, attn: str) -> None:
    config = recipe(protocol, task, attn)
    short = {"grid": None, "tile": None} if "grid" in config.attn else {}
    config = replace(config, model=replace(config.model, seq_len=64), attn={**config.attn, **short})
    vocab, classes = TASKS[task]
    model = build(config, vocab, classes, pairs=task == "retrieval")
    batch = collate(documents(task, 3), np.arange(3), 64)
    logits = model(batch.tokens, batch.mask)
    assert logits.shape == (3, classes)
    logits.square().sum().backward()
    missing = [name for name, weight in model.named_parameters() if weight.grad is None]
    assert missing == []


PUBLISHED = {
    "listops": (32, 209_802),
    "text": (512, 370_562),
    "retrieval": (512, 395_138),
    "image": (512, 174_986),
    "pathfinder": (512, 173_954),
}


@pytest.mark.parametrize("task", PUBLISHED)
def test_the_mra_papers_sizes_have_its_number_of_parameters(task: str) -> None:
    vocab, parameters = PUBLISHED[task]
    with torch.device("meta"):
        model = build(recipe("mlpen", task, "softmax"), vocab, TASKS[task][1], pairs=task == "retrieval")
    assert parameter_count(model) == parameters


def dense(rows: int, columns: int) -> int:
    return rows * columns + columns


@pytest.mark.parametrize("task", TASKS)
def test_the_benchmarks_sizes_have_the_parameters_that_its_layers_add_up_to(task: str) -> None:
    layers, dim, inner, ffn, length = {
        "listops": (4, 512, 512, 1024, 2000),
        "text": (4, 256, 256, 1024, 4000),
        "retrieval": (4, 128, 128, 512, 4000),
        "image": (1, 128, 64, 128, 1024),
        "pathfinder": (4, 32, 16, 32, 1024),
        "pathx": (1, 32, 16, 32, 16384),
    }[task]
    vocab, classes = TASKS[task]
    block = 4 * dim * inner + dense(dim, ffn) + dense(ffn, dim) + 2 * 2 * dim
    expected = vocab * dim + layers * block + 2 * dim
    expected += dense(dim, ffn) + dense(ffn, classes)
    expected += {"image": (length + 2) * dim, "pathx": length * dim, "listops": dim, "text": dim}.get(task, 0)
    if task == "retrieval":
        expected += dense(2 * dim, ffn) + dense(ffn, ffn // 2) + dense(ffn // 2, classes)
        expected -= dense(dim, ffn) + dense(ffn, classes)
    with torch.device("meta"):
        model = build(recipe("google", task, "softmax"), vocab, classes, pairs=task == "retrieval")
    assert parameter_count(model) == expected


@pytest.mark.parametrize("file", TUNED, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_tuning_is_applied_where_its_name_says_and_changes_something(file: Path) -> None:
    protocol, rest = file.stem.split("_", 1)
    task, attn = rest.split("_", 1) if file.parent.name == "tune" else ("text", rest)
    config = recipe(protocol, task, attn)
    said: dict[str, Any] = yaml.safe_load(file.read_text())
    plain = recipe(protocol, task, attn, tuned=False)
    for key, value in said.get("attn", {}).items():
        assert config.attn[key] == value
    for key, value in said.get("model", {}).items():
        assert getattr(config.model, key) == value
    assert config != plain


def test_a_patch_of_the_mra_papers_image_runs_is_a_block() -> None:
    for task, side in (("image", 32), ("pathfinder", 32), ("pathx", 128)):
        for attn in ("mra2", "mra2_s"):
            config = recipe("mlpen", task, attn)
            assert config.attn["grid"] == [side, side]
            assert config.model.seq_len == side**2
            assert np.prod(config.attn["tile"]) == config.attn["block_size"]


@pytest.mark.parametrize("task", TASKS)
def test_the_steps_and_rates_are_the_published_ones(task: str) -> None:
    steps, batch, largest, decay = {
        "listops": (5000, 32, 0.05 / 1000**0.5, 0.1),
        "text": (20000, 32, 0.05 / 8000**0.5, 0.1),
        "retrieval": (5000, 32, 0.05 * 4999 / 8000 / 8000**0.5, 0.1),
        "image": (35000, 256, 5e-4, 0.0),
        "pathfinder": (62400, 512, 1e-3, 0.0),
        "pathx": (500_000, 64, 1e-3, 0.0),
    }[task]
    train = recipe("google", task, "softmax").train
    assert (train.steps, train.batch_size, train.weight_decay) == (steps, batch, decay)
    assert peak(train) == pytest.approx(largest)
    assert (train.beta2, train.eps, train.select) == (0.98, 1e-9, "last")
    assert recipe("google", task, "linformer").train == train


# Schedules


def test_onecycle_is_torchs() -> None:
    for steps, warmup in ((20, 5), (40, 2), (30, 29), (500, 100)):
        for cycle in (False, True):
            train = Train(steps=steps, warmup=warmup, lr=3e-4, cycle_momentum=cycle)
            optimizer = torch.optim.AdamW([torch.zeros(1)], lr=1.0)
            theirs = torch.optim.lr_scheduler.OneCycleLR(
                optimizer, max_lr=3e-4, total_steps=steps, anneal_strategy="linear", pct_start=warmup / steps,
                cycle_momentum=cycle,
            )  # fmt: skip
            for step in range(steps):
                group = optimizer.param_groups[0]
                ours = (rate(train, step), beta1(train, step))
                np.testing.assert_allclose(ours, (group["lr"], group["betas"][0]), rtol=1e-10)
                optimizer.step()
                if step + 1 < steps:
                    theirs.step()


@pytest.mark.parametrize(("warmup", "steps"), [(10, 100), (100, 20), (1, 5), (20, 20)])
def test_rsqrt_rises_to_its_warm_up_and_falls_as_a_root(warmup: int, steps: int) -> None:
    train = Train(schedule="rsqrt", lr=0.05, warmup=warmup, steps=steps)
    rates = [rate(train, step) for step in range(steps)]
    assert rates[0] == 0
    for step, found in enumerate(rates):
        expected = 0.05 * step / warmup**1.5 if step < warmup else 0.05 / step**0.5
        assert found == pytest.approx(expected)
    assert peak(train) == max(rates)


def test_cosine_rises_falls_and_stays_above_zero() -> None:
    train = Train(schedule="cosine", lr=1e-3, warmup=10, steps=100)
    rates = [rate(train, step) for step in range(100)]
    assert rates[5] == pytest.approx(5e-4)
    assert rates[10] == max(rates) == peak(train) == 1e-3
    assert rates[60] == pytest.approx(5e-4)
    assert rates[99] == pytest.approx(1e-3 * (1 + np.cos(np.pi * 0.89)) / 2)
    assert np.all(np.diff(rates[10:]) < 0)


@pytest.mark.parametrize(
    ("choices", "run", "told"),
    [
        ({"tune": "mlpen_listops_mra2"}, {"attn": {"first_blocks": 1}}, {"attn.first_blocks": 1}),
        ({"tune": "mlpen_listops_mra2"}, {"attn": {"first_blocks": 0}}, {}),
        ({"variant": "mlpen_softmax", "tune": None}, {"attn": {"dropout": 0.1}}, {"attn.dropout": 0.1}),
        (
            {"variant": "google_softmax", "tune": "google_image_softmax"},
            {"attn": {"dropout": 0.2}},
            {"attn.dropout": 0.2},
        ),
        ({"variant": "mlpen_performer"}, {"attn": {"features": 256}}, {}),
    ],
)
def test_a_run_declares_what_its_published_set_up_changes_and_no_word_took_back(
    choices: dict[str, str | None], run: dict[str, Any], told: dict[str, Any]
) -> None:
    assert declared(choices, run) == told
