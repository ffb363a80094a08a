"""Image: one of ten classes for a grey picture of 32 x 32 pixels, read row by row.

Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. https://www.cs.toronto.edu/~kriz/cifar.html
Tay et al., "Long Range Arena: A Benchmark for Efficient Transformers", 2020. https://arxiv.org/abs/2011.04006

The benchmark takes CIFAR-10 from TFDS, the first 90% of TFDS's order of its training pictures for training and the rest
for validation, and makes them grey with TensorFlow. Both are the same here to the bit, without TensorFlow. A token is
the value of its pixel, 0..255, as in the benchmark: no id stands for padding, because masks come from lengths.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lra.tasks import vocabularies
from lra.tasks.archive import intact, members
from lra.tasks.base import Documents, Examples, Place, Progress, Reading, Task, silent
from lra.tasks.download import Published, fetch
from lra.tasks.draws import Draws

SIDE, CLASSES = 32, 10
PIXELS = SIDE * SIDE

CIFAR = Published(
    "cifar-10-binary.tar.gz",
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    170_052_171,
    "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
)
FOLDER = "cifar-10-batches-bin"
FILES = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
# A record is a label and the planes of red, green and blue.
RECORDS, RECORD_BYTES = 10_000, 1 + 3 * PIXELS

SYNTHETIC_COUNTS = {"train": 1_024, "validation": 256, "test": 256}
SEED = 0
BLOCK = 1_024


class Image(Task):
    """The task and its sources: CIFAR-10, and pictures of a bright patch for tests."""

    name = "image"
    version = "1.0.0"
    kind = "pixels"
    vocabulary = vocabularies.PIXELS
    classes = CLASSES
    class_names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    max_len = PIXELS
    sources = ("cifar10", "synthetic")

    def require(self, source: str, manual: Path) -> None:
        """Whether there is a network shows within seconds, when the pictures are read."""

    def read(self, source: str, place: Place) -> Reading:
        if source == "synthetic":
            blocks = {split: iter([synthesize(SEED, split, count)]) for split, count in SYNTHETIC_COUNTS.items()}
            return Reading(SYNTHETIC_COUNTS, blocks, {"seed": SEED})
        unpacked = place.manual / FOLDER
        found = unpacked if unpacked.is_dir() else fetch(CIFAR, place, "task.source=synthetic")
        return read_batches(found, place.progress)

    def doctor(self, train: Examples, val: Examples, test: Examples) -> list[tuple[str, str]]:
        nearest = "accuracy on test of the nearest class mean, fitted on train"
        by_pixels = nearest_mean(train, test, lambda pictures: pictures.astype(np.float64))
        return [
            (f"{nearest}: pixels", f"{by_pixels:.1%}"),
            (f"{nearest}: histogram of pixels", f"{nearest_mean(train, test, histogram):.1%}"),
        ]


def grey(red: np.ndarray, green: np.ndarray, blue: np.ndarray) -> np.ndarray:
    """uint8 of the same shape: TensorFlow's `tf.image.rgb_to_grayscale` of uint8 planes, to the bit.

    It scales to [0, 1], weights, adds red and green before blue, scales by 255.5 and drops the fraction, rounding to
    float32 at each of these. In double precision 237 of the 2^24 colours would come out otherwise.
    """
    scaled = np.arange(256, dtype=np.float32) * np.float32(1 / 255)
    light = [(scaled * np.float32(weight))[plane] for weight, plane in ((0.2989, red), (0.587, green), (0.114, blue))]
    return ((light[0] + light[1] + light[2]) * np.float32(255.5)).astype(np.uint8)


def order(split: str, count: int) -> np.ndarray:
    """(count,) int64: which record of CIFAR-10's files stands at each place of TFDS's split `train` or `test`."""
    from tensorflow_datasets.core.hashing import Hasher

    return np.array(sorted(range(count), key=Hasher(split).hash_key), dtype=np.int64)


class Batch(NamedTuple):
    """The records of one or several files."""

    pictures: np.ndarray  # (n, 1024) uint8, grey
    labels: np.ndarray  # (n,) uint8


def read_batches(place: Path, progress: Progress = silent) -> Reading:
    """The pictures of CIFAR-10's archive or unpacked folder in the benchmark's splits and order."""
    wanted = {f"{FOLDER}/{file}": file for files in FILES.values() for file in files}
    found: dict[str, Batch] = {}
    digests: dict[str, str] = {}
    with intact(place):
        for name, content in members(place, wanted.__contains__, progress):
            if wanted[name] in found:
                raise ValueError(f"{place}: {name} is there twice")
            # One byte more shows that a file is too long.
            packed = content.read(RECORDS * RECORD_BYTES + 1)
            found[wanted[name]] = _batch(packed, f"{place}: {name}")
            digests[wanted[name]] = hashlib.sha256(packed).hexdigest()
            if len(found) == len(wanted):
                break
    for name, file in wanted.items():
        if file not in found:
            raise ValueError(f"{place} holds no {name}")
    train, test = (_joined([found.pop(file) for file in files]) for files in FILES.values())
    train_order, test_order = order("train", len(train.labels)), order("test", len(test.labels))
    cut = len(train_order) * 9 // 10
    splits = {"train": (train, train_order[:cut]), "validation": (train, train_order[cut:]), "test": (test, test_order)}
    return Reading(
        {split: len(records) for split, (_, records) in splits.items()},
        {split: _blocks(batch, records) for split, (batch, records) in splits.items()},
        {"place": place.name, "sha256": {file: digests[file] for file in wanted.values()}},
    )


def _batch(packed: bytes, source: str) -> Batch:
    size = RECORDS * RECORD_BYTES
    if len(packed) != size:
        found = f"{len(packed):,} bytes" if len(packed) < size else f"more than {size:,} bytes"
        raise ValueError(f"{source} has {found}, expected {size:,}")
    records = np.frombuffer(packed, dtype=np.uint8).reshape(RECORDS, RECORD_BYTES)
    labels = records[:, 0].copy()
    if labels.max() >= CLASSES:
        first = int((labels >= CLASSES).argmax())
        raise ValueError(f"{source}, record {first + 1}: label {labels[first]}, expected 0..{CLASSES - 1}")
    pictures = np.empty((RECORDS, PIXELS), dtype=np.uint8)
    for start in range(0, RECORDS, BLOCK):
        red, green, blue = records[start : start + BLOCK, 1:].reshape(-1, 3, PIXELS).swapaxes(0, 1)
        pictures[start : start + BLOCK] = grey(red, green, blue)
    return Batch(pictures, labels)


def _joined(batches: list[Batch]) -> Batch:
    return Batch(np.concatenate([each.pictures for each in batches]), np.concatenate([each.labels for each in batches]))


def _blocks(batch: Batch, records: np.ndarray) -> Iterator[Documents]:
    """Some records of a batch, in the order given."""
    for start in range(0, len(records), BLOCK):
        block = records[start : start + BLOCK]
        yield _documents(batch.pictures[block], batch.labels[block])


def _documents(pictures: np.ndarray, labels: np.ndarray) -> Documents:
    return Documents(pictures.reshape(-1), np.arange(len(labels) + 1, dtype=np.int64) * PIXELS, labels)


def synthesize(seed: int, split: str, count: int) -> Documents:
    """Dark pictures with a bright patch of 10 x 6 pixels, whose place, up to a shift, is the label; some pixels black.

    All classes have the same distribution of pixel values: only where they stand tells the label.
    """
    draws = Draws(seed, list(SYNTHETIC_COUNTS).index(split), 0)
    labels = draws.below(CLASSES, count)
    top = labels // 5 * 16 + draws.below(7, count)
    left = labels % 5 * 6 + draws.below(3, count)
    # Unsigned: a place before the patch is far beyond its end.
    place = np.arange(SIDE, dtype=np.uint8)
    rows, columns = place - top[:, None] < 10, place - left[:, None] < 6
    pictures = np.where(rows[:, :, None] & columns[:, None, :], np.uint8(192), np.uint8(64))
    # Few values, because a model learns each by itself.
    pictures[draws.below(16, pictures.size).reshape(pictures.shape) == 0] = 0
    return _documents(pictures, labels)


# What the doctor asks.


def nearest_mean(train: Examples, test: Examples, features: Callable[[np.ndarray], np.ndarray]) -> float:
    """Accuracy on test of the class whose mean feature in train is the nearest, by Euclidean distance.

    `features` makes (n, F) numbers of (n, 1024) uint8 pixels.
    """
    sums = 0.0
    for pictures, labels in _pieces(train):
        sums = sums + np.eye(CLASSES)[:, labels] @ features(pictures)
    counts = np.bincount(train.labels, minlength=CLASSES)
    means = sums / np.maximum(counts, 1)[:, None]
    # A class that train does not have is never the nearest.
    offsets = np.where(counts > 0, (means**2).sum(axis=1), np.inf)
    right = sum(
        int(((offsets - 2 * features(pictures) @ means.T).argmin(axis=1) == labels).sum())
        for pictures, labels in _pieces(test)
    )
    return right / len(test.labels)


def _pieces(split: Examples) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """((n, 1024), (n,)) uint8: pictures and labels of a split, some at a time."""
    pictures = split.tokens.reshape(-1, PIXELS)
    for start in range(0, len(split.labels), BLOCK):
        yield pictures[start : start + BLOCK], split.labels[start : start + BLOCK]


def histogram(pictures: np.ndarray) -> np.ndarray:
    """(n, 256) int64: how often each value occurs in each of (n, 1024) uint8 pictures."""
    cells = pictures + 256 * np.arange(len(pictures))[:, None]
    return np.bincount(cells.reshape(-1), minlength=256 * len(pictures)).reshape(-1, 256)
