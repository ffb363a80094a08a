"""Documents of every length, nothing at all among them: through whole models, with loss and gradients."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from attention_zoo.ops import kernels
from lra.config import Model
from lra.data import Data, Split
from lra.loop import build
from lra.model import Classifier
from lra.words import WordError
from tests.faults import amount, draws
from tests.faults.trials import CLASSES, SEQ_LEN, VARIANTS, VOCABULARY, configured, cores, documents, start

# The kernel for CPUs and what computes the same without one; other variants have one way alone.
COMPILED = ("mra", "mra2", "mra2_s", "mra2_tiled", "bigbird")
MODELS = [(name, kernel) for name in VARIANTS for kernel in ("cpu", "reference") if name in COMPILED or kernel == "cpu"]
DRAWN = sorted(draws("lengths").sample(MODELS, amount(2, len(MODELS))))
models = pytest.mark.parametrize(("variant", "kernel"), DRAWN)


class Told(NamedTuple):
    """What a model makes of a batch."""

    logits: Tensor
    losses: Tensor
    gradients: list[Tensor]

    def finite(self) -> bool:
        return all(bool(x.isfinite().all()) for x in (self.logits, self.losses, *self.gradients))


def model_of(variant: str, pooling: str = "mean", **size: Any) -> Classifier:
    chosen = {"pooling": "first" if variant.endswith("_tiled") and pooling == "cls" else pooling, **size}
    return build(configured(variant, model=chosen), VOCABULARY, CLASSES)


def tell(model: Classifier, tokens: Tensor, mask: Tensor, kernel: str, counted: Tensor | None = None) -> Told:
    """Logits, losses, and the gradients of the losses of the `counted` rows."""
    model.zero_grad()
    torch.manual_seed(0)
    with kernels.use("reference" if kernel == "reference" else "auto"):
        logits = model(tokens, mask)
        losses = F.cross_entropy(logits, torch.arange(len(logits)) % CLASSES, reduction="none")
        (losses if counted is None else losses[counted]).sum().backward()
    gradients = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    return Told(logits.detach(), losses.detach(), gradients)


def batch(lengths: list[int], size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Tokens and mask (B, size) of documents of so many tokens; what stands in the padding is junk."""
    tokens = torch.randint(0, VOCABULARY, (len(lengths), size), generator=torch.Generator().manual_seed(seed))
    return tokens, torch.arange(size) < torch.tensor(lengths)[:, None]


@models
def test_rows_without_a_token_are_finite_and_change_no_other(tally: Counter[str], variant: str, kernel: str) -> None:
    for trial in range(amount(2, 8)):
        draw = draws("empty rows", variant, kernel, trial)
        training, pooling = draw.random() < 0.5, draw.choice(("mean", "cls", "first"))
        model = model_of(variant, pooling).train(training)
        size = draw.randint(2, SEQ_LEN)
        lengths = [draw.randint(1, size) for _ in range(5)]
        empty = draw.sample(range(5), draw.randint(1, 4))
        tokens, mask = batch(lengths, size, trial)
        without = mask.clone()
        without[empty] = False
        others = torch.tensor([row for row in range(5) if row not in empty])
        full, found = (tell(model, tokens, each, kernel, others) for each in (mask, without))
        assert found.finite()
        assert tell(model, tokens, without, kernel).finite()
        assert torch.equal(found.logits[others], full.logits[others])
        assert torch.equal(found.losses[others], full.losses[others])
        for x, y in zip(found.gradients, full.gradients, strict=True):
            assert_close(x, y)
        tally["lengths: batches with rows of padding alone"] += 1


@models
def test_a_batch_of_padding_alone_is_finite_and_trains_nothing_but_the_head(
    tally: Counter[str], variant: str, kernel: str
) -> None:
    for size in draws("nothing", variant, kernel).sample(range(1, SEQ_LEN + 1), amount(2, 8)):
        model = model_of(variant).train()
        found = tell(model, *batch([0, 0, 0], size), kernel)
        assert found.finite()
        assert torch.equal(found.logits[0], found.logits[1])
        for name, weight in model.named_parameters():
            assert name.startswith("head.") or weight.grad is None or not weight.grad.any(), name
        tally["lengths: batches of padding alone"] += 1


@models
def test_a_document_of_one_token_is_the_same_alone_padded_and_beside_long_ones(
    tally: Counter[str], variant: str, kernel: str
) -> None:
    for pooling in ("mean", "cls"):
        model = model_of(variant, pooling).eval()
        tokens, mask = batch([1, SEQ_LEN, 1, SEQ_LEN - 1, 7], SEQ_LEN, seed=1)
        first = torch.tensor([0])
        beside = tell(model, tokens, mask, kernel, first)
        assert beside.finite()
        for size in (1, 2, 9, SEQ_LEN):
            for rows in (1, 3):
                alone = tell(model, tokens[:1, :size].repeat(rows, 1), mask[:1, :size].repeat(rows, 1), kernel, first)
                assert_close(alone.logits[0], beside.logits[0])
                for x, y in zip(alone.gradients, beside.gradients, strict=True):
                    assert_close(x, y)
                tally["lengths: documents of one token"] += 1


@models
def test_the_longest_document_and_one_less_are_computed_and_one_more_is_refused(
    tally: Counter[str], variant: str, kernel: str
) -> None:
    model = model_of(variant)
    core = next(cores(model))
    most = core.seq_len
    assert most == SEQ_LEN
    for length in (most - 1, most):
        assert tell(model, *batch([length, 1, length], length), kernel).finite()
    beyond = torch.zeros(1, core.heads, most + 1, core.head_dim)
    for mask in (None, torch.ones(1, most + 1, dtype=torch.bool), torch.arange(most + 1)[None] < 3):
        with pytest.raises(ValueError, match=rf"^N={most + 1} is outside 1 <= N <= seq_len={most}$"):
            core(beyond, beyond, beyond, mask)
    tally["lengths: models at their limit, and beyond it"] += 1


def cut(data: Data, most: int) -> Data:
    """The data with its documents cut beforehand."""

    def shorter(split: Split) -> Split:
        ends = zip(split.offsets[:-1], split.offsets[1:], strict=True)
        kept = [split.tokens[start : min(start + most, end)] for start, end in ends]
        return split._replace(tokens=np.concatenate(kept), offsets=np.cumsum([0, *map(len, kept)]))

    return Data({**data.manifest, "max_len": min(data.manifest["max_len"], most)}, *map(shorter, data[1:]))


@pytest.mark.parametrize("variant", draws("cut").sample([*VARIANTS], amount(1, len(VARIANTS))))
@pytest.mark.parametrize("padding", ["bucket", "fixed"])
def test_a_document_beyond_the_limit_trains_as_its_cut_does(
    tmp_path: Path, tally: Counter[str], variant: str, padding: str
) -> None:
    """Documents of 47 to 50 tokens, of which a model of 48 has the first 48."""
    long = documents((SEQ_LEN - 1, SEQ_LEN + 2))
    given = configured(variant, steps=5, padding=padding)
    whole = start(given, long, tmp_path / "whole")
    assert {SEQ_LEN - 1, SEQ_LEN, SEQ_LEN + 1} <= set(long.train.lengths)
    assert start(given, cut(long, SEQ_LEN), tmp_path / "cut").bits() == whole.bits()
    tally["lengths: runs of documents beyond the limit"] += 1


@pytest.mark.parametrize("variant", sorted(draws("short").sample([*VARIANTS], amount(1, len(VARIANTS)))))
def test_models_of_a_few_tokens_train_and_score_whatever_their_blocks(
    tmp_path: Path, tally: Counter[str], variant: str
) -> None:
    """seq_len from 1: blocks, windows, chunks and landmarks are larger than all there is, or one off it."""
    lengths = (1, 2, 3, 7, 8, 9, 15, 17)
    for seq_len in draws("seq_len", variant).sample(lengths, amount(2, len(lengths))):
        given = configured(variant, 0, {"seq_len": seq_len}, steps=4)
        if variant.endswith("_tiled"):
            given.attn.update(grid=[1, seq_len], tile=[1, seq_len])
        ended = start(given, documents((1, seq_len)), tmp_path / f"{seq_len}")
        assert ended.why is None
        assert np.isfinite(ended.logits).all()
        tally["lengths: runs of models of a few tokens"] += 1


# The word that says how many tokens a variant takes together.
TOGETHER = {
    "mra2": "block_size", "mra2_s": "block_size", "bigbird": "block_size", "h_transformer_1d": "block_size",
    "longformer": "window", "scatterbrain": "window", "reformer": "chunk", "nystromformer": "landmarks",
    "soft": "landmarks", "linformer": "rank",
}  # fmt: skip


@pytest.mark.parametrize("variant", sorted(draws("together").sample([*TOGETHER], amount(1, len(TOGETHER)))))
def test_blocks_of_any_size_fit_any_length(tally: Counter[str], variant: str) -> None:
    """Larger than the document, as large, one off, and one: padding makes no difference."""
    for size in draws("size", variant).sample((2, 8, 16, 64, 100), amount(2, 5)):
        given = configured(variant)
        given = type(given)(**{**vars(given), "attn": {**VARIANTS[variant], TOGETHER[variant]: size}})
        model = build(given, VOCABULARY, CLASSES).eval()
        for kernel in ("cpu", "reference"):
            for length in (1, size - 1, size, size + 1, SEQ_LEN):
                if length > SEQ_LEN:
                    continue
                tokens, mask = batch([length], SEQ_LEN)
                padded = tell(model, tokens, mask, kernel)
                tight = tell(model, tokens[:, :length], mask[:, :length], kernel)
                assert padded.finite()
                assert_close(tight.logits, padded.logits)
                for x, y in zip(tight.gradients, padded.gradients, strict=True):
                    assert_close(x, y, rtol=1e-4, atol=1e-5)
                tally["lengths: lengths around the size of a block"] += 1


@pytest.mark.parametrize(
    ("grid", "tile", "seq_len"),
    [([6, 8], [2, 4], 47), ([6, 8], [2, 4], 49), ([6, 8], [4, 4], 48), ([6, 8], [2, 16], 48), ([0, 8], [1, 1], 48)],
)
def test_a_grid_that_is_not_that_of_the_pixels_is_refused(grid: list[int], tile: list[int], seq_len: int) -> None:
    given = configured("mra2_tiled")
    given = type(given)(
        **{**vars(given), "attn": {**VARIANTS["mra2"], "grid": grid, "tile": tile}, "model": Model(seq_len=seq_len)}
    )
    with pytest.raises(WordError, match=r"^attn=mra2: (grid|tile)=[^\n]*$"):
        build(given, VOCABULARY, CLASSES)
