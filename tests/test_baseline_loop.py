"""The plain loop learns what ours learns, and the benchmark of both measures what it says."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.baseline_loop import ATTENTIONS, BARS, KEYS, LOOPS, PLAIN, Pair, Row, main, part_of, reviews, take
from benchmarks.baseline_losses import LossRow, differences
from benchmarks.plain_loop import Items, PlainLoop, named
from benchmarks.timed import Bench, composed
from lra import data
from lra.data import Split, collate

from . import forks

TINY = (
    "model.seq_len=64", "model.dim=16", "model.head_dim=8", "model.ffn=16", "train.batch_size=6", "train.steps=8",
    "train.warmup=3", "train.lr=1e-2",
)  # fmt: skip
OWN = {"nystromformer": ["attn.landmarks=8"], "performer": ["attn.features=16"], "linformer": ["attn.rank=8"]}
STILL = {"softmax": ["attn.dropout=0.0"]}


def documents(count: int, shortest: int, longest: int) -> data.Data:
    """Random documents of all lengths from the shortest to the longest, the label of each drawn by its first token."""
    draws = np.random.default_rng(1)
    lengths = draws.permutation(np.linspace(shortest, longest, count).astype(np.int64))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = draws.integers(1, 16, offsets[-1]).astype(np.uint8)
    split = Split(tokens, offsets, (tokens[offsets[:-1]] % 10).astype(np.uint8))
    manifest = {
        "max_len": longest,
        "classes": 10,
        "sha256": "",
        "vocabulary": [str(token) for token in range(16)],
        "kind": "tokens",
    }
    return data.Data(manifest, split, split, split)


def both(
    folder: Path, attn: str, *words: str, dtype: torch.dtype = torch.float64, part: int = 6
) -> tuple[Bench, PlainLoop]:
    """Ours and the plain loop, of the same weights, in `dtype`."""
    config = composed(["task=listops", f"attn={attn}", "device=cpu", *TINY, *OWN.get(attn, []), *words])
    bench = Bench(config, folder / "run", (documents(60, 10, 60), "made up"))
    trainer = bench.trainer
    trainer.model.double()
    try:
        plain = PlainLoop(trainer.model, config, bench.data.train, trainer.max_len, trainer.device, torch.float32, part)
    except ValueError:
        bench.close()
        raise
    return bench, plain


def trained(bench: Bench, plain: PlainLoop) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses of each, over all steps of the run."""
    order = [bench.trainer.sampler.batch(step) for step in range(bench.trainer.options.steps)]
    pair = Pair(bench, plain, order)
    ours, theirs = (torch.tensor(take(pair, loop, order)[1]) for loop in LOOPS)
    bench.close()
    return ours, theirs


@pytest.mark.parametrize("attn", ATTENTIONS)
def test_without_dropout_the_two_loops_have_the_same_losses(attn: str, tmp_path: Path) -> None:
    bench, plain = both(tmp_path, attn, "model.dropout=0.0", *STILL.get(attn, []), part=4)
    assert next(plain.model.parameters()).dtype == torch.float64
    ours, theirs = trained(bench, plain)
    # All is of double precision but the loss, a sum over six examples in single precision.
    rounding = 6 * 2**-24 * float(ours.max())
    torch.testing.assert_close(theirs, ours, rtol=0, atol=rounding)
    assert float(ours.max() - ours.min()) > 1e4 * rounding


@pytest.mark.parametrize("attn", ATTENTIONS)
def test_both_loops_end_with_the_same_weights(attn: str, tmp_path: Path) -> None:
    bench, plain = both(tmp_path, attn, "model.dropout=0.0", *STILL.get(attn, []))
    theirs, ours = plain.model.state_dict(), bench.trainer.model.state_dict()
    before = theirs["head.2.weight"].clone()
    trained(bench, plain)
    # Eight steps of at most about the rate, 0.01, whose gradients are those of logits rounded to single precision.
    for name, weight in theirs.items():
        torch.testing.assert_close(weight, ours[named(name)], rtol=0, atol=8 * 0.01 * 2**-23)
    assert float((theirs["head.2.weight"] - before).abs().max()) > 1e-2


@pytest.mark.parametrize("attn", ATTENTIONS)
def test_padding_to_the_longest_and_bucketing_give_the_same_logits(attn: str, tmp_path: Path) -> None:
    bench, plain = both(tmp_path, attn)
    indices = np.argsort(bench.data.train.lengths)[:5]
    batch = next(plain.batches([indices]))
    short = collate(bench.data.train, indices, bench.trainer.max_len)
    assert batch["tokens"].shape[1] == 64 > short.tokens.shape[1]
    with torch.no_grad():
        theirs = plain.model.eval()(batch["tokens"], batch["mask"].double())
        ours = bench.trainer.model.eval()(short.tokens, short.mask)
    bench.close()
    # The rounding of sums over so many tokens, of logits below 1.
    torch.testing.assert_close(theirs, ours, rtol=0, atol=64 * 2**-52)


@pytest.mark.parametrize("attn", ATTENTIONS)
def test_what_stands_in_padded_places_changes_nothing(attn: str, tmp_path: Path) -> None:
    bench, plain = both(tmp_path, attn)
    bench.close()
    batch = next(plain.batches([np.arange(6)]))
    mask = batch["mask"].double()
    other = torch.where(mask.bool(), batch["tokens"], 5)
    model = plain.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(other, mask), model(batch["tokens"], mask), rtol=1e-12, atol=0)


def test_an_item_has_its_documents_tokens_then_padding_and_a_mask_of_the_real_ones() -> None:
    split = documents(5, 3, 9).train
    items = Items(split, longest=7, length=12)
    assert len(items) == 5
    for index in range(5):
        item = items[index]
        document = split.tokens[split.offsets[index] : split.offsets[index + 1]][:7]
        assert item["tokens"].tolist() == [*document.tolist(), *[0] * (12 - len(document))]
        assert item["mask"].tolist() == [1.0] * len(document) + [0.0] * (12 - len(document))
        assert item["label"] == split.labels[index]
    with pytest.raises(ValueError, match="not pairs"):
        Items(split._replace(pairs=np.zeros((5, 2), np.int32)), 7, 12)


def test_the_rate_and_beta1_of_each_step_are_those_of_the_trainer(tmp_path: Path) -> None:
    bench, plain = both(tmp_path, "linformer")
    trainer = bench.trainer
    batch = next(plain.batches([np.arange(6)]))
    for step in range(trainer.options.steps - 1):
        trainer.state.step = step
        trainer.schedule()
        ours, theirs = trainer.optimizer.param_groups[0], plain.optimizer.param_groups[0]
        assert theirs["lr"] == pytest.approx(ours["lr"], rel=1e-12)
        assert (theirs["betas"], theirs["eps"]) == (ours["betas"], ours["eps"])
        plain.step(batch)
    bench.close()


def test_dropout_of_the_plain_loop_is_where_ours_is(tmp_path: Path) -> None:
    bench, plain = both(tmp_path, "softmax", "model.dropout=0.25")
    bench.close()
    rates = sorted(module.p for module in plain.model.modules() if isinstance(module, torch.nn.Dropout))
    ours = sorted(module.p for module in bench.trainer.model.modules() if isinstance(module, torch.nn.Dropout))
    # And one for the probabilities of each layer, which the recipe asks for in softmax.
    assert rates == sorted([*ours, 0.1, 0.1])


def test_a_model_that_the_plain_loop_does_not_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the plain loop has softmax"):
        both(tmp_path, "linformer", "attn.conv=3")


def test_as_many_examples_go_through_at_once_as_fit() -> None:
    def part(task: str, attn: str) -> int:
        return part_of(composed([f"task={task}", f"attn={attn}", "device=cpu"]))

    assert (part("listops", "softmax"), part("text", "softmax")) == (8, 2)
    assert {part(task, attn) for task in ("listops", "text") for attn in ATTENTIONS[1:]} == {32}


def test_made_up_reviews_have_the_lengths_that_are_asked_of_them() -> None:
    split = reviews(1600, 4000)
    assert np.percentile(split.lengths, [5, 25, 50, 75, 95]) == pytest.approx([410, 700, 970, 1590, 3400], rel=0.01)
    assert split.lengths.max() == 4000
    assert split.lengths.min() > 64
    assert split.tokens.min() > 0


def test_differences_are_over_the_pairs_of_the_last_steps() -> None:
    stamp: dict[str, Any] = {"threads": 1, "device": "", "torch": "", "commit": "", "date": ""}
    rows = [LossRow("softmax", "off", 0, step, 1.0, 1.0 + step / 100, **stamp) for step in range(3)]
    rows += [
        LossRow("softmax", "on", seed, step, 2.0, 2.0 + (5.0 if step < 10 else 0.5 * seed), **stamp)
        for seed in (0, 1)
        for step in range(30)
    ]
    largest, mean, error = differences(rows)
    assert (largest, mean) == pytest.approx((0.02, 0.25))
    assert error == pytest.approx(0.25 * (40 / 39) ** 0.5 / 40**0.5)


def test_every_loop_gets_a_row_and_every_step_its_losses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forks.instead_of_spawned(monkeypatch)
    monkeypatch.setattr("benchmarks.baseline_losses.WORDS", "")
    out = tmp_path / "loop.csv"
    given = ["rounds=1", "steps=2", "threads=1", "losses=3", "seeds=1", f"data_dir={tmp_path / 'none'}", f"out={out}"]
    assert main([*given, "attn=linformer", f"words={' '.join(TINY)}"]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert tuple(rows[0]) == Row._fields
    places = [(task, loop) for task in ("listops", "text") for loop in LOOPS]
    assert [(row["task"], row["loop"]) for row in rows] == places
    for row in rows:
        assert float(row["examples_per_s"]) > 0
        assert float(row["peak_mb"]) > 0
        assert row["data"] == ("random" if row["task"] == "listops" else "random bytes, IMDb-like lengths (unchecked)")
        if row["loop"] == PLAIN:
            assert (row["ratio"], row["bar"], row["met"], row["places"]) == ("1.0", "", "", "64")
        else:
            assert float(row["bar"]) == BARS[row["attn"]]
            assert (row["met"] == "yes") == (float(row["ratio"]) >= BARS[row["attn"]])
    losses = list(csv.DictReader((tmp_path / "loop_losses.csv").read_text().splitlines()))
    assert tuple(losses[0]) == LossRow._fields
    assert [(row["dropout"], row["step"]) for row in losses] == [
        (word, step) for word in ("off", "on") for step in "123"
    ]
    for row in losses[:3]:
        assert float(row["plain"]) == pytest.approx(float(row["ours"]), abs=1e-5)
    said = capsys.readouterr().out
    assert said.count("the bar of 1.5 is ") == 2
    assert said.count("largest difference") == 1


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("rounds=0", "error: rounds=0 must be an integer of at least 1"),
        ("attn=soft", "error: attn=soft is not one of softmax, nystromformer, performer, linformer"),
        ("task=image", "error: task=image is not one of listops, text"),
        ("device=gpu", "error: device=gpu is not one of auto, cpu, cuda"),
        ("losses=2", "error: losses=2 must be 0 or at least 3"),
        ("steps=26", "error: steps=26 must be at most 25, half of the batches that they are taken from"),
        ("out=loop.txt", "error: out=loop.txt must end in .csv"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(word: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert word.partition("=")[0] in KEYS
    assert main([word]) == 2
    assert capsys.readouterr().err.startswith(answer)
