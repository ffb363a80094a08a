"""Runs of every variant within the process: many of them, small, and each with something done to it on the way."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from attention_zoo import ZOO
from attention_zoo.base import Attention
from lra.config import Config, Model, Train
from lra.data import Data, Split
from lra.endings import Diverged
from lra.loop import Trainer, build
from lra.model import Classifier, MultiHead
from lra.progress import Display
from lra.ranks import ALONE, Ranks
from lra.run import Run, RunFolder
from lra.tracker import RecordOnly
from tests.oracles import small
from tests.runs import records
from tests.test_ranks import Deaf

CPU = torch.device("cpu")
CLASSES, VOCABULARY = 3, 5

# Parameters under which a variant does at 30 tokens all that it does at 3,000.
# Through JSON, as YAML has no tuples.
OWN: dict[str, dict[str, Any]] = {name: json.loads(json.dumps(small(name))) for name in ZOO}
OWN["yoso"] = {"bits": 3}
VARIANTS: dict[str, dict[str, Any]] = {name: {"name": name, **own} for name, own in OWN.items()}
VARIANTS |= {f"{name}_conv": {**VARIANTS[name], "conv": 5} for name in ("soft", "nystromformer", "yoso")}
VARIANTS["mra2_tiled"] = {**VARIANTS["mra2"], "grid": [6, 8], "tile": [2, 4]}
SEQ_LEN = 48


class Killed(Exception):
    """The process is gone at this instant: nothing is saved, nothing is told."""


class Ended(NamedTuple):
    """What a run left behind."""

    folder: Path
    trainer: Trainer
    records: list[dict[str, Any]]
    why: BaseException | None
    logits: Any  # (E, classes) of the test split, None where there are none

    def bits(self) -> tuple[Any, ...]:
        """All that a run is compared by, the time that it took aside."""
        weights = [(name, value.numpy().tobytes()) for name, value in self.trainer.model.state_dict().items()]
        logits = None if self.logits is None else self.logits.tobytes()
        return json.dumps(self.records), logits, weights


def documents(lengths: tuple[int, int] = (1, SEQ_LEN), seed: int = 0, train: int = 40) -> Data:
    """Documents of so many tokens, ends included, whose label is their first token; the first has the least length."""
    rng = np.random.default_rng(seed)

    def split(count: int) -> Split:
        drawn = rng.integers(lengths[0], lengths[1] + 1, count)
        drawn[0] = lengths[0]
        offsets = np.concatenate([[0], np.cumsum(drawn)])
        tokens = rng.integers(0, VOCABULARY, offsets[-1]).astype(np.uint8)
        return Split(tokens, offsets, tokens[offsets[:-1]] % CLASSES)

    return Data(manifest(max_len=lengths[1]), *map(split, (train, 13, 11)))


def pictures() -> Data:
    """Pictures of 6 x 8 pixels, a good half of them black and the first wholly."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        pixels = rng.integers(1, VOCABULARY, (count, SEQ_LEN)) * (rng.random((count, SEQ_LEN)) < 0.4)
        pixels[0] = 0
        labels = (pixels.sum(1) % CLASSES).astype(np.uint8)
        return Split(pixels.astype(np.uint8).reshape(-1), np.arange(count + 1) * SEQ_LEN, labels)

    return Data({**manifest(SEQ_LEN), "kind": "pixels"}, *map(split, (40, 13, 11)))


def paired(data: Data) -> Data:
    """Pairs of its documents, whose label is the larger of their two."""

    def pairs(split: Split) -> Split:
        both = np.random.default_rng(1).integers(0, len(split.labels), (len(split.labels), 2)).astype(np.int32)
        return split._replace(pairs=both, labels=split.labels[both].max(1))

    return Data(data.manifest, *map(pairs, data[1:]))


def manifest(max_len: int) -> dict[str, Any]:
    return {"max_len": max_len, "classes": CLASSES, "sha256": "0" * 64, "vocabulary": list("abcde")}


def data_for(variant: str) -> Data:
    return pictures() if variant.endswith("_tiled") else documents()


def configured(variant: str, seed: int = 0, model: dict[str, Any] | None = None, **train: Any) -> Config:
    """A run of 10 steps that is evaluated at steps 5 and 10 and saved at 4, 5, 8 and 10."""
    options = {"steps": 10, "warmup": 3, "batch_size": 8, "eval_every": 5, "log_every": 1, "checkpoint_every": 4}
    size = {"dim": 16, "head_dim": 8, "ffn": 16, "seq_len": SEQ_LEN, "dropout": 0.0, **(model or {})}
    task = {"name": "listops", "source": "synthetic", "version": "1.0.0", "mask_zero_pixels": False}
    chosen = Train(**{**options, "lr": 1e-3, **train})
    return Config(task=task, attn=dict(VARIANTS[variant]), seed=seed, model=Model(**size), train=chosen)


def start(
    config: Config, data: Data, folder: Path, prepare: Callable[[Trainer], object] = lambda trainer: None,
    ranks: Ranks = ALONE,
) -> Ended:  # fmt: skip
    """Run it to its end, or to that of `prepare`'s making, or on from its last checkpoint."""
    pairs = data.train.pairs is not None
    # Processes that are threads build one after the other: they share the generator of the weights.
    for turn in range(ranks.world):
        if turn == ranks.rank:
            model = build(config, len(data.manifest["vocabulary"]), data.manifest["classes"], pairs)
        ranks.gather("turn")
    dtype = torch.bfloat16 if config.train.dtype == "bfloat16" else torch.float32
    run = Run(folder, asdict(config)) if ranks.first else RunFolder(folder, asdict(config))
    trainer = Trainer(config, model, data, run, CPU, dtype, Deaf(), ranks)
    prepare(trainer)
    why, logits = None, None
    try:
        with Display(config.train.steps, trainer.state.step) as display:
            trainer.train(RecordOnly(), display)
        logits = trainer.conclude()[0].logits
    except (Diverged, Killed) as error:
        why = error
    finally:
        trainer.close()
        run.close()
    return Ended(folder, trainer, records(folder) if ranks.first else [], why, logits)


def cores(model: Classifier) -> Iterator[Attention]:
    """The attention of each layer."""
    return (module.attention for module in model.modules() if isinstance(module, MultiHead))


def at_step(step: int, act: Callable[[Trainer], object]) -> Callable[[Trainer], None]:
    """What prepares a run for `act` right after the update of `step`."""

    def prepare(trainer: Trainer) -> None:
        # The count of steps goes up after the update.
        def hook(*given: object) -> None:
            if trainer.state.step == step - 1:
                act(trainer)

        trainer.optimizer.register_step_post_hook(hook)

    return prepare


def killed_at(step: int) -> Callable[[Trainer], None]:
    """The run is gone between the update of `step` and its being booked."""

    def kill(trainer: Trainer) -> None:
        raise Killed

    return at_step(step, kill)


def demand_finite_files(folder: Path) -> int:
    """Assert that all that a run left in `folder` is finite; returns how many checkpoints that are."""
    checkpoints = sorted((folder / "checkpoint").glob("*.pt"))
    for path in checkpoints:
        for where, value in numbers(read(path)):
            assert torch.as_tensor(value).isfinite().all(), f"{path.name} {where}"
    for path in (folder / "metrics.jsonl", folder / "result.json"):
        for line in path.read_text().splitlines() if path.suffix == ".jsonl" and path.exists() else []:
            json.loads(line, parse_constant=refuse)
        if path.suffix == ".json" and path.exists():
            json.loads(path.read_text(), parse_constant=refuse)
    return len(checkpoints)


def read(path: Path) -> dict[str, Any]:
    """A checkpoint."""
    from lra import checkpoint

    return checkpoint.load(path, CPU)


def numbers(tree: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """The tensors and numbers of nested containers, with the way to them."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from numbers(value, f"{where}/{key}")
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from numbers(value, f"{where}/{index}")
    elif isinstance(tree, torch.Tensor | float | int):
        yield where, tree


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within it torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def odd_value(name: str) -> float:
    return {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "huge": 1e38}[name]
