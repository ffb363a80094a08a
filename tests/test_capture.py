"""Queries, keys and values of a trained run: what its cores get, on its own data, without touching it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch.testing import assert_close

from benchmarks.studies import qkv
from benchmarks.studies.capture import Wanted, capture
from benchmarks.studies.inputs import Size, take
from lra import checkpoint
from lra.config import Config, Model, Train, digest
from lra.data import SPLITS, Split, collate, folder, load
from lra.loop import Trainer
from lra.progress import Display
from lra.run import Run
from lra.session import set_up
from lra.tasks import task
from lra.tracker import RecordOnly
from lra.words import WordError
from tests.test_data import store

SIZE = Model(layers=2, dim=16, heads=2, head_dim=8, ffn=16, dropout=0.0, seq_len=48)
STEPS = Train(steps=4, batch_size=4, warmup=2, eval_every=2, checkpoint_every=2, log_every=2, lr=1e-2)


def documents(seed: int, pairs: bool) -> Split:
    """24 documents of 5 to 60 tokens, or as many pairs of them."""
    draw = np.random.default_rng(seed)
    offsets = np.cumsum([0, *draw.integers(5, 61, 24)])
    tokens = draw.integers(0, 8, offsets[-1]).astype(np.uint8)
    both = draw.integers(0, 24, (24, 2)).astype(np.int32) if pairs else None
    return Split(tokens, offsets, (np.arange(24) % 2).astype(np.uint8), both)


def trained(path: Path, attn: str = "softmax", name: str = "listops", pooling: str = "mean") -> Trainer:
    """A run of four steps in `path`/run on data in `path`/data."""
    words = {"name": name, "source": "synthetic"}
    kind = task(words)
    splits = {split: documents(seed, kind.paired) for seed, split in enumerate(SPLITS)}
    facts = {"task": name, "source": "synthetic", "version": kind.version, "max_len": 60, "classes": 2}
    store(folder(path / "data", kind, "synthetic"), splits, **facts)
    own = {"name": attn, "conv": 0, "grid": None, "tile": None}
    model = replace(SIZE, pooling=pooling)
    config = Config(words, own, model=model, train=STEPS, data_dir=str(path / "data"), device="cpu", seed=3)
    with Run(path / "run", asdict(config)) as run, Display(STEPS.steps, 0) as display:
        trainer = set_up(config, run)
        trainer.train(RecordOnly(), display)
        trainer.close()
    return trainer


@pytest.fixture(scope="module")
def softmax(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trainer]:
    """A finished run of softmax on documents, read only."""
    path = tmp_path_factory.mktemp("softmax")
    trainer = trained(path)
    return path / "run", trainer


@torch.no_grad()
def by_hand(model: Any, tokens: torch.Tensor, mask: torch.Tensor) -> list[list[torch.Tensor]]:
    """q, k, v (B, H, N, D) of each layer, step by step."""
    found = []
    x = model.encoder.tokens(tokens)
    if model.encoder.cls is not None:
        x = torch.cat([model.encoder.cls.expand(len(x), 1, -1), x], 1)
    x = x + model.encoder.positions.weight[: x.shape[1]]
    for block in model.encoder.blocks:
        maps = block.attend.project
        names = [name if name in maps else "q" for name in "qkv"]
        found.append([maps[name](block.attend_norm(x)).view(*x.shape[:2], 2, 8).transpose(1, 2) for name in names])
        x = block(x, mask)
    return found


@pytest.mark.parametrize(("attn", "name", "pooling"), [("softmax", "listops", "cls"), ("soft", "retrieval", "mean")])
def test_every_layer_and_head_of_the_examples_is_there(tmp_path: Path, attn: str, name: str, pooling: str) -> None:
    trainer = trained(tmp_path, attn, name, pooling)
    found = capture(tmp_path / "run", Wanted("last", examples=3, at_least=10, dtype="float32"))
    chosen = np.array(found.about["examples"])
    data = load(tmp_path / "data", task({"name": name}), "synthetic")
    batch = collate(data.test, chosen, 48)
    tokens, mask = batch.tokens.flatten(0, -2), batch.mask.flatten(0, -2)
    if pooling == "cls":
        mask = torch.nn.functional.pad(mask, (1, 0), value=True)
    trainer.model.eval()
    layers = by_hand(trainer.model, tokens, mask)
    assert found.mask is not None
    for part, array in enumerate(found[1:4]):
        expected = torch.cat([layer[part] for layer in layers]).masked_fill(
            ~torch.cat([mask, mask])[:, None, :, None], 0
        )
        assert_close(torch.from_numpy(array), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.mask, torch.cat([mask, mask]).numpy())
    assert found.mask.sum(1).min() >= 10
    pairs = [""] if name == "listops" else [", document 0", ", document 1"]
    assert found.instances == tuple(f"layer {i}, example {j}{x}" for i in (0, 1) for j in chosen for x in pairs)
    assert (found.q == found.k).all() == (attn == "soft")


def test_it_says_where_everything_comes_from(softmax: tuple[Path, Trainer]) -> None:
    path, trainer = softmax
    best, last = (capture(path, Wanted(which)) for which in ("best", "last"))
    assert best.name == f"listops-softmax-seed3-step{trainer.state.best_step}"
    assert capture(path, Wanted()).sha256 == best.sha256
    assert (best.about["step"], best.about["val_accuracy"]) == (trainer.state.best_step, trainer.state.best_accuracy)
    assert (last.about["step"], last.about["checkpoint"]) == (4, "last")
    expected = {
        "source": "listops (synthetic)", "attn": "softmax()", "keys": "of their own", "protocol": "mlpen", "seed": 3,
        "data_sha256": trainer.data.manifest["sha256"], "config_sha256": digest(trainer.run.config), "cut_at": 48,
        "split": "test", "dtype": "float16",
    }  # fmt: skip
    assert expected.items() <= best.about.items()


def test_the_examples_are_drawn_by_seed_and_fewer_are_the_first_of_more(softmax: tuple[Path, Trainer]) -> None:
    drawn = [
        capture(softmax[0], Wanted(examples=count, seed=seed)).about["examples"]
        for count, seed in ((9, 0), (2, 0), (9, 1))
    ]
    assert drawn[0][:2] == drawn[1]
    assert len(set(drawn[0])) == 9
    assert drawn[2] != drawn[0]
    long = capture(softmax[0], Wanted(examples=3, at_least=48))
    assert long.mask is None
    assert long.q.shape == (6, 2, 48, 8)


def state(path: Path) -> dict[str, tuple[int, bytes]]:
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in path.rglob("*") if file.is_file()}


def test_the_run_stays_as_it_is_and_may_be_under_way(softmax: tuple[Path, Trainer], tmp_path: Path) -> None:
    path, trainer = softmax
    before = state(path)
    # Whoever trains in the directory has its lock.
    with Run(path, trainer.run.config):
        held = state(path)
        capture(path, Wanted())
        assert state(path) == held
    assert before.keys() == held.keys()


def test_the_command_writes_a_file_that_a_study_reads(
    softmax: tuple[Path, Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine.npz"
    assert qkv.main([f"run={softmax[0]}", "examples=2", f"out={out}"]) == 0
    said = capsys.readouterr().out
    brought = take(str(out), Size(1, 1, 1, 1))
    expected = capture(softmax[0], Wanted(examples=2))
    assert (brought.sha256, brought.instances, brought.about) == (expected.sha256, expected.instances, expected.about)
    assert [line[:15] for line in said.splitlines() if line.startswith("layer")] == [
        f"layer {layer}, head {head}" for layer in (0, 1) for head in (0, 1)
    ]


def without(*names: str) -> Callable[[Path], object]:
    def remove(run: Path) -> None:
        for name in names:
            (run / name).unlink()

    return remove


def edited(key: str, value: object) -> Callable[[Path], object]:
    def edit(run: Path) -> None:
        plain = yaml.safe_load((run / "config.yaml").read_text())
        (run / "config.yaml").write_text(yaml.safe_dump({**plain, key: value}))

    return edit


def of_other_data(run: Path) -> None:
    saved = checkpoint.load(run / "checkpoint" / "last.pt", torch.device("cpu"))
    checkpoint.save(run / "checkpoint" / "last.pt", {**saved, "data_sha256": "f" * 64})


LAST, BEST = "checkpoint/last.pt", "checkpoint/best.pt"
LAST_SPARE, BEST_SPARE = "checkpoint/last.spare.pt", "checkpoint/best.spare.pt"


def torn(run: Path) -> None:
    for name in (LAST, LAST_SPARE):
        (run / name).write_bytes(b"PK")


def exchanged(run: Path) -> None:
    for name in (LAST, LAST_SPARE):
        shutil.copy(run / BEST, run / name)


@pytest.mark.parametrize(
    ("damage", "wanted", "says"),
    [
        (without("config.yaml"), Wanted(), "is not the directory of a run: there is no"),
        (without(BEST, BEST_SPARE), Wanted(), "best.pt; checkpoint=last is there"),
        (without(BEST, BEST_SPARE, LAST, LAST_SPARE), Wanted(), "best.pt; the run has kept nothing yet"),
        (without(LAST, LAST_SPARE), Wanted(), "result.json says which data the run was trained on"),
        (torn, Wanted("last"), "last.pt is not a whole checkpoint"),
        (exchanged, Wanted("last"), "the checkpoint of a run: it has no state"),
        (lambda run: (run / "config.yaml").write_text("- 1"), Wanted(), "is not readable as a configuration"),
        (edited("colour", "red"), Wanted(), "is not readable as a configuration"),
        (edited("task", {"name": "listops"}), Wanted(), "is not readable as a configuration ('source')"),
        (edited("attn", {"name": "sofmax"}), Wanted(), "did you mean 'softmax'?"),
        (edited("model", {**asdict(SIZE), "dim": 32}), Wanted(), "best.pt does not fit the model of config.yaml"),
        (of_other_data, Wanted(), "was trained on other data (sha256 ffffffffffff) than"),
        (None, Wanted(data_dir="nowhere"), "run make data task=listops task.source=synthetic data_dir=nowhere"),
        (None, Wanted(examples=25), "examples=25: only 24 test examples have at least 0 tokens (the longest has 48)"),
        (None, Wanted(at_least=49), "only 0 test examples have at least 49 tokens"),
    ],
)
def test_a_wrong_run_is_one_line(
    softmax: tuple[Path, Trainer], tmp_path: Path, damage: Callable[[Path], object] | None, wanted: Wanted, says: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(softmax[0], run)
    if damage:
        damage(run)
    with pytest.raises(ValueError) as caught:
        capture(run, wanted)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_finished_run_without_its_last_checkpoint_is_known_by_its_result(
    softmax: tuple[Path, Trainer], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(softmax[0], run)
    without(LAST, LAST_SPARE)(run)
    result = {"data_sha256": softmax[1].data.manifest["sha256"], "val": {"best_step": 1, "accuracy": 0.25}}
    (run / "result.json").write_text(json.dumps(result))
    found = capture(run, Wanted())
    assert found.sha256 == capture(softmax[0], Wanted()).sha256
    # The validation was of another step.
    assert found.about["val_accuracy"] is None


def test_numbers_beyond_float16_are_refused_with_the_way_out(softmax: tuple[Path, Trainer], tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(softmax[0], run)
    saved = checkpoint.load(run / BEST, torch.device("cpu"))
    saved["model"]["encoder.blocks.0.attend.project.k.weight"] *= 1e6
    checkpoint.save(run / BEST, saved)
    with pytest.raises(WordError, match="k holds a number that is not finite in float16; dtype=float32 may hold it"):
        capture(run, Wanted())
    assert np.abs(capture(run, Wanted(dtype="float32")).k).max() > 65504
