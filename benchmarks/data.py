"""`python -m benchmarks.data`: how many examples and tokens a second the loader makes of mapped arrays.

Ours, on one core, and in turn with it a torch DataLoader that makes the same batches of the same arrays example by
example. Every prepared data set is measured; for a task that has none, made-up arrays of the published shape.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from benchmarks.rows import choices, spread, whole_number, write_rows
from lra import data
from lra.command import command
from lra.data import Sampler, Split
from lra.words import WordError

if TYPE_CHECKING:
    from torch import Tensor

OURS, PEER = "ours", "torch DataLoader"
WORKERS = (0, 2)
KEYS = {
    "data_dir": ("runs/.data", "where prepared data sets are looked for"),
    "tasks": ("", "only these tasks, a list with commas"),
    "batch_size": ("32", "examples of a batch"),
    "batches": ("200", "batches that are timed together"),
    "repeats": ("7", "rounds; each times every loader once"),
    "examples": ("8192", "examples of made-up arrays"),
    "out": ("benchmarks/results/data.csv", "the CSV file"),
}


class Shape(NamedTuple):
    """About the published shape of a task: tokens of the shortest document, of the mean one before it is cut, of the
    longest that is left; whether examples are pairs of documents."""

    shortest: int
    mean: int
    longest: int
    pairs: bool = False


SHAPES = {
    "listops": Shape(501, 1035, 1999),
    "text": Shape(32, 1300, 4000),
    "retrieval": Shape(500, 12000, 4000, pairs=True),
    "image": Shape(1024, 1024, 1024),
    "pathfinder": Shape(1024, 1024, 1024),
    "pathx": Shape(16384, 16384, 16384),
}


class Found(NamedTuple):
    """A training split, mapped into memory."""

    task: str
    source: str
    max_len: int
    split: Split


class Row(NamedTuple):
    """A line of the CSV file: medians over the rounds and, of the examples, the interquartile range.

    tokens are real ones, `real_share` is theirs among all with padding. The ratio is the median over the rounds of this
    loader's examples to ours in the same round. `epoch_ms` is what our sampler takes for the order of an epoch.
    """

    task: str
    source: str
    loader: str
    workers: int
    cores: int
    batch_size: int
    examples_per_s: int
    examples_iqr: int
    ratio: float
    tokens_per_s: int
    real_share: float
    epoch_ms: float | str
    examples: int
    device: str
    python: str
    numpy: str
    torch: str
    commit: str


def prepared(data_dir: Path) -> Iterator[Found]:
    """The prepared data sets below a folder."""
    from lra.tasks import task

    for file in sorted(data_dir.glob("*/*/manifest.json")):
        told = json.loads(file.read_text(encoding="utf-8"))
        facts = task({"name": told["task"], "source": told["source"], **told.get("options", {})})
        loaded = data.load(data_dir, facts, told["source"])
        yield Found(facts.name, facts.config(told["source"]), loaded.manifest["max_len"], loaded.train)


def made_up(name: str, examples: int, folder: Path) -> Found:
    """Random arrays of a task's shape, mapped from files in `folder`; two examples share a document where they pair."""
    shape = SHAPES[name]
    draw = np.random.default_rng(0)
    # Exponential lengths, cut at both ends, are close to ListOps' and to those of texts.
    lengths = shape.shortest + draw.exponential(max(shape.mean - shape.shortest, 0), examples).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(np.minimum(lengths, shape.longest))])
    arrays = {
        "tokens": draw.integers(0, 256, offsets[-1], dtype=np.uint8),
        "offsets": offsets,
        "labels": draw.integers(0, 2, examples, dtype=np.uint8),
    }
    if shape.pairs:
        arrays["pairs"] = draw.integers(0, examples, (examples, 2)).astype(np.int32)
    for key, array in arrays.items():
        np.save(folder / f"{name}.{key}.npy", array)
    mapped = {key: np.load(folder / f"{name}.{key}.npy", mmap_mode="r").view(np.ndarray) for key in arrays}
    return Found(name, "made up", shape.longest, Split(**mapped))


class Items:
    """A torch data set in the usual form: an item is the documents of one example and its label."""

    def __init__(self, found: Found) -> None:
        self.found = found

    def __getitem__(self, index: int) -> tuple[list[Tensor], int]:
        import torch

        split = self.found.split
        documents = [index] if split.pairs is None else split.pairs[index].tolist()
        bounds = [
            (split.offsets[i], min(split.offsets[i + 1], split.offsets[i] + self.found.max_len)) for i in documents
        ]
        return [torch.from_numpy(split.tokens[a:b].astype(np.int64)) for a, b in bounds], int(split.labels[index])


def padded(items: list[tuple[list[Tensor], int]]) -> tuple[Tensor, Tensor, Tensor]:
    """The items of a batch in the usual form: tokens, mask, labels."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    documents = [document for both, _ in items for document in both]
    tokens = pad_sequence(documents, batch_first=True)
    lengths = torch.tensor([len(document) for document in documents])
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    return tokens, mask, torch.tensor([label for _, label in items])


def ours(found: Found, sampler: Sampler) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Our batches, without end."""
    step = 0
    while True:
        yield data.collate(found.split, sampler.batch(step), found.max_len)
        step += 1


def theirs(found: Found, sampler: Sampler, workers: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The same batches by a DataLoader, for an epoch."""
    from torch.utils.data import DataLoader

    order = [sampler.batch(step).tolist() for step in range(sampler.batches_per_epoch)]
    items: Any = Items(found)
    return iter(DataLoader(items, batch_sampler=order, num_workers=workers, collate_fn=padded))


@contextmanager
def on_one_core(wanted: bool) -> Iterator[int]:
    """Keep this process on one core, where the system can; gives the number of cores it may use."""
    if not hasattr(os, "sched_setaffinity"):
        yield os.cpu_count() or 1
        return
    cores = os.sched_getaffinity(0)
    try:
        if wanted:
            os.sched_setaffinity(0, {max(cores)})
        yield len(os.sched_getaffinity(0))
    finally:
        os.sched_setaffinity(0, cores)


def timed(batches: Iterator[tuple[Tensor, Tensor, Tensor]], count: int, warm_up: int) -> tuple[float, int, float]:
    """Seconds of `count` batches after the first `warm_up`; their real tokens, and the share of these in all."""
    for _ in islice(batches, warm_up):
        pass
    seconds, real, places = 0.0, 0, 0
    start = time.perf_counter()
    for _, mask, _ in islice(batches, count):
        seconds += time.perf_counter() - start
        real, places = real + int(mask.sum()), places + mask.numel()
        start = time.perf_counter()
    return seconds, real, real / places


def measure(found: Found, batch_size: int, count: int, repeats: int, stamp: dict[str, Any]) -> list[Row]:
    """Time every loader in turn."""
    lengths = np.minimum(found.split.lengths, found.max_len)
    sampler = Sampler(lengths, batch_size, seed=0)
    count = min(count, sampler.batches_per_epoch)
    # What workers have made while nobody looked is not timed.
    ahead = {workers: min(4 * workers, sampler.batches_per_epoch - count) for workers in WORKERS}
    loaders: dict[tuple[str, int], Callable[[], Iterator[Any]]] = {(OURS, 0): partial(ours, found, sampler)}
    loaders |= {(PEER, workers): partial(theirs, found, sampler, workers) for workers in WORKERS}
    rates: dict[tuple[str, int], list[float]] = {key: [] for key in loaders}
    facts: dict[tuple[str, int], tuple[float, float, int]] = {}
    epochs = []
    for turn in range(repeats + 1):
        start = time.perf_counter()
        Sampler(lengths, batch_size, seed=turn).batch(0)
        epochs.append(1e3 * (time.perf_counter() - start))
        for key, loader in loaders.items():
            with on_one_core(key[1] == 0) as cores:
                seconds, real, share = timed(loader(), count, ahead[key[1]])
            # The first turn brings the pages into memory.
            if turn:
                rates[key].append(count * batch_size / seconds)
            facts[key] = real / (count * batch_size), share, cores
    rows = []
    for key, its in rates.items():
        median, between = spread(its)
        tokens, share, cores = facts[key]
        epoch = round(statistics.median(epochs[1:]), 2) if key[0] == OURS else ""
        ratio = statistics.median(a / b for a, b in zip(its, rates[OURS, 0], strict=True))
        rows.append(
            Row(
                found.task, found.source, *key, cores, batch_size, round(median), round(between), round(ratio, 3),
                round(median * tokens), round(share, 3), epoch, len(lengths), **stamp,
            )
        )  # fmt: skip
    return rows


def run(options: dict[str, str]) -> int:
    """Measure, print, write, with a value for each of KEYS; returns the exit code."""
    batch_size, count, repeats, examples = (
        whole_number(key, options[key], least=1) for key in ("batch_size", "batches", "repeats", "examples")
    )
    if examples < batch_size:
        raise WordError(f"examples={examples} must be at least batch_size={batch_size}")
    tasks = choices("tasks", options["tasks"], list(SHAPES))

    import torch

    from lra.machine import device_name, git_commit, versions

    torch.set_num_threads(1)
    stamp = {"device": device_name(torch.device("cpu")), **versions(), "commit": git_commit()}
    print(f"{stamp['device']}; torch {stamp['torch']}, numpy {stamp['numpy']}, Python {platform.python_version()}")
    print(
        f"commit {stamp['commit'] or 'none'}; batches of {batch_size}; {repeats} rounds; median +- interquartile range"
    )
    rows: list[Row] = []
    sets = [found for found in prepared(Path(options["data_dir"])) if found.task in tasks]
    with tempfile.TemporaryDirectory() as folder:
        for name in tasks:
            here = [found for found in sets if found.task == name] or [made_up(name, examples, Path(folder))]
            for found in here:
                for row in measure(found, batch_size, count, repeats, stamp):
                    rows.append(row)
                    print(line(row), flush=True)
    write_rows(options["out"], Row._fields, rows)
    return 0


def line(row: Row) -> str:
    """A row as it is printed."""
    name = f"{row.task} ({row.source})"
    loader = row.loader if row.loader == OURS else f"{row.loader}, {row.workers} workers"
    rate = f"{row.examples_per_s:9,} +- {row.examples_iqr:7,} examples/s x{row.ratio:5.2f}"
    epoch = f"   an epoch's order {row.epoch_ms} ms" if row.epoch_ms != "" else ""
    return f"{name:28} {loader:28} {rate}  {row.tokens_per_s:13,} tokens/s  real {row.real_share:.1%}{epoch}"


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("benchmarks.data", "Examples a second of the loader, in turn with torch's.", KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
