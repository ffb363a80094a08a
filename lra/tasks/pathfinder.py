"""Pathfinder: are the two round markers the ends of one dashed curve, among others of its kind?

Linsley et al., "Learning long-range spatial dependencies with horizontal gated recurrent units", 2018,
https://arxiv.org/abs/1805.08315, in the settings of Tay et al., "Long Range Arena", 2020,
https://arxiv.org/abs/2011.04006: `resolution` 32 and `difficulty` hard are its Pathfinder, 128 and hard its Path-X.

Tokens are pixel values row by row, as in the benchmark: 0 is black and a token like any other. The images of `release`
have the benchmark's order and split: sorted by the MD5 sum that tensorflow_datasets shuffles by, cut at 80% and 90%,
and only then the published file that is empty is left out. Those of `generated` are in the order of their index, as
many as were published; an image tells nothing about the next.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from lra.arrays import pieces
from lra.tasks import snakes
from lra.tasks.archive import find_release, intact, lines, members, shown, whole
from lra.tasks.base import Documents, Examples, Place, Progress, Reading, Task, silent
from lra.tasks.draws import Draws
from lra.tasks.vocabularies import PIXELS
from lra.words import choose

COUNTS = {"train": 160_000, "validation": 20_000, "test": 20_000}
PERCENT = {"train": (0, 80), "validation": (80, 90), "test": (90, 100)}
SEED = 0

RELEASED_FOLDERS = {
    "easy": "curv_baseline",
    "intermediate": "curv_contour_length_9",
    "hard": "curv_contour_length_14",
}
# Many times the bytes of a published image.
LARGEST = 1 << 20
# Pixels of the images that are held at once.
BLOCK_PIXELS = 1 << 22


class Pathfinder(Task):
    """The task and its sources: our own generator, the published images, and bars with or without a gap for tests."""

    name = "pathfinder"
    version = "1.0.0"
    kind = "pixels"
    vocabulary = PIXELS
    classes = 2
    class_names = ("apart", "connected")
    sources = ("generated", "release", "synthetic")

    def __init__(self, *, resolution: int = 32, difficulty: str = "hard") -> None:
        """resolution: pixels in a row and in a column; difficulty: how many dashes the two long curves have."""
        choose("task.resolution", str(resolution), [str(each) for each in snakes.RESOLUTIONS])
        choose("task.difficulty", str(difficulty), list(snakes.DIFFICULTIES))
        self.resolution, self.difficulty = resolution, difficulty
        self.max_len = resolution**2

    def require(self, source: str, manual: Path) -> None:
        if source == "release":
            self._find_release(manual)

    def read(self, source: str, place: Place) -> Reading:
        if source == "release":
            found = self._find_release(place.manual)
            return read_release(found, self.resolution, self.difficulty, place.scratch, place.progress)
        if source == "generated":
            return generate(self.resolution, self.difficulty, place.progress)
        counts = synthetic_counts(self.resolution)
        blocks = {split: synthesize(SEED, split, self.resolution, count) for split, count in counts.items()}
        return Reading(counts, blocks, {"seed": SEED})

    def _find_release(self, manual: Path) -> Path:
        return find_release(manual, _folder(self.resolution, self.difficulty), "task.source=generated")

    def doctor(self, train: Examples, val: Examples, test: Examples) -> list[tuple[str, str]]:
        known, asked = (self._lit(split) for split in (train, test))
        by_label = ", ".join(f"{asked[test.labels == label].mean():.3f} of label {label}" for label in (0, 1))
        right = threshold_accuracy(known, train.labels, asked, test.labels)
        return [
            ("share of non-zero pixels, mean of test", f"{asked.mean():.3f} ({by_label})"),
            ("accuracy on test of a threshold on that share, fitted on train", f"{right:.1%}"),
        ]

    def _lit(self, split: Examples) -> np.ndarray:
        """(E,) float64: the share of non-zero pixels of each image."""
        return np.concatenate([(block > 0).mean(axis=1) for block in pieces(split.tokens.reshape(-1, self.max_len))])


class PathX(Pathfinder):
    """The same with 128 x 128 pixels, a task of its own in the benchmark."""

    name = "pathx"

    def __init__(self, *, resolution: int = 128, difficulty: str = "hard") -> None:
        super().__init__(resolution=resolution, difficulty=difficulty)


def threshold_accuracy(train: np.ndarray, labels: np.ndarray, test: np.ndarray, test_labels: np.ndarray) -> float:
    """The share of test right by the one number above which, or up to which, most of train has label 1."""
    values, place = np.unique(train, return_inverse=True)
    ones, zeros = (np.bincount(place[labels == label], minlength=len(values)).cumsum() for label in (1, 0))
    # Entry i: how many of train are right where label 1 is all above thresholds[i].
    right = np.concatenate([[ones[-1]], zeros + ones[-1] - ones])
    thresholds = np.concatenate([[-np.inf], values])
    above = right.max() >= len(train) - right.min()
    threshold = thresholds[right.argmax() if above else right.argmin()]
    return float((((test > threshold) == above) == test_labels).mean())


def _pieces(count: int, pixels: int) -> Iterator[tuple[int, int]]:
    """(start, end) of as many of `count` images together as may be held at once; each has `pixels` pixels."""
    step = max(BLOCK_PIXELS // pixels, 1)
    return ((start, min(start + step, count)) for start in range(0, count, step))


def _documents(images: np.ndarray, labels: np.ndarray) -> Documents:
    """Images (n, ...) as documents of their pixels."""
    offsets = np.arange(len(images) + 1, dtype=np.int64) * (images.size // max(len(images), 1))
    return Documents(images.reshape(-1), offsets, labels)


# The sources without a download.


def generate(resolution: int, difficulty: str, progress: Progress = silent) -> Reading:
    """The images that csrc/pathfinder.cpp makes, numbered through all splits."""
    provenance: dict[str, Any] = {"seed": SEED, "dashes": snakes.DIFFICULTIES[difficulty], "tries": 0}
    blocks = {}
    first = 0
    with progress("readying the image generator", None):
        for split, count in COUNTS.items():
            blocks[split] = _counted(snakes.blocks(SEED, resolution, difficulty, first, count), provenance)
            first += count
    return Reading(COUNTS, blocks, provenance)


def _counted(blocks: Iterable[snakes.Images], provenance: dict[str, Any]) -> Iterator[Documents]:
    """The documents of blocks of images; adds to the provenance how often a pair of curves was begun for them."""
    for pixels, labels, facts in blocks:
        provenance["tries"] += int(facts.tries.sum())
        yield _documents(pixels, labels)


def synthetic_counts(resolution: int) -> dict[str, int]:
    """How many synthetic images each split has: fewer where they are large."""
    small = resolution <= 64
    return {"train": 1_024 if small else 256, "validation": 256 if small else 64, "test": 256 if small else 64}


def synthesize(seed: int, split: str, resolution: int, count: int) -> Iterator[Documents]:
    """Two white squares and a grey bar between them, whole (label 1) or without its middle half (label 0).

    Length, place and direction are random; pictures of 32 x 32 pixels, magnified.
    """
    draws = Draws(seed, list(COUNTS).index(split), 0)
    labels = draws.below(2, count)
    length = 16 + draws.below(9, count).astype(np.int64)
    first = draws.below(256, count) * (33 - length) >> 8
    row = draws.below(30, count)
    upright = draws.below(2, count) == 1
    place = np.arange(32)
    along = place - first[:, None]
    gap = (4 * along >= length[:, None]) & (4 * along < 3 * length[:, None]) & (labels[:, None] == 0)
    inside = (along >= 0) & (along < length[:, None])
    square = inside & ((along < 3) | (along >= length[:, None] - 3))
    bar = np.where(square, 255, np.where(inside & ~gap, 128, 0)).astype(np.uint8)
    images = bar[:, None, :] * ((place >= row[:, None]) & (place < row[:, None] + 3))[:, :, None]
    images[upright] = images[upright].transpose(0, 2, 1)
    zoom = resolution // 32
    for start, end in _pieces(count, resolution**2):
        yield _documents(images[start:end].repeat(zoom, axis=1).repeat(zoom, axis=2), labels[start:end])


# The published images.


class _Row(NamedTuple):
    """A line of the metadata: an image and its label."""

    order: bytes  # the images are sorted by this
    image: str  # imgs/K/sample_i.png
    label: int
    file: str
    number: int  # the line in its file, from 1

    @property
    def shown(self) -> str:
        return shown(self.image.encode())[1:-1]


def _folder(resolution: int, difficulty: str) -> str:
    return f"pathfinder{resolution}/{RELEASED_FOLDERS[difficulty]}"


def read_release(place: Path, resolution: int, difficulty: str, scratch: Path, progress: Progress = silent) -> Reading:
    """All images of one setting, from the archive in one pass, or from the setting's unpacked folder.

    Their files are kept in `scratch` until they are read in order. ValueError naming the member that is wrong.
    """
    folder = _folder(resolution, difficulty)
    # In an unpacked folder, names begin with its last part.
    inside = folder.rpartition("/")[2] if place.is_dir() else folder
    wanted = re.compile(rf"(?:.*/)?{inside}/(imgs/[^/]+/[^/.][^/]*\.png|metadata/[^/.][^/]*\.npy)")
    spool = _Spool(scratch / "images")
    rows: dict[str, _Row] = {}
    with intact(place), spool.file.open("wb") as out:
        for name, content in members(place, lambda name: wanted.fullmatch(name) is not None, progress):
            found = wanted.fullmatch(name)
            assert found is not None, "only what is wanted comes"
            if found[1].startswith("imgs/"):
                if found[1] in spool.places:
                    raise ValueError(f"{place}: {name} is there twice")
                spool.places[found[1]] = (out.tell(), out.write(whole(content, LARGEST, f"{place}: {name}")))
                continue
            for row in _rows(f"{place}: {name}", content, difficulty):
                if (other := rows.setdefault(row.image, row)) is not row:
                    raise ValueError(_at(row, f"{row.shown} is in {other.file.removeprefix(f'{place}: ')} too"))
    if not rows:
        raise ValueError(f"{place} holds no {folder}/metadata/*.npy")
    for row in rows.values():
        if row.image not in spool.places:
            raise ValueError(_at(row, f"there is no {row.shown}"))
    for image in spool.places:
        if image not in rows:
            raise ValueError(f"{place}: {folder}/{image} has no line in the metadata")
    ordered = sorted(rows.values())
    splits = {split: _slice(ordered, *percent) for split, percent in PERCENT.items()}
    held = {split: [row for row in part if spool.places[row.image][1]] for split, part in splits.items()}
    counts = {split: len(part) for split, part in held.items()}
    if not all(counts.values()):
        raise ValueError(f"{place}: {len(rows)} images in {folder} are too few for three splits")
    provenance = {"place": place.name, "empty": len(rows) - sum(counts.values()), "published": COUNTS}
    blocks = {split: spool.documents(part, f"{place}: {folder}", resolution) for split, part in held.items()}
    return Reading(counts, blocks, provenance)


def _slice(rows: Sequence[_Row], start: int, end: int) -> Sequence[_Row]:
    """The rows from `start` to `end` per cent, rounded as tensorflow_datasets rounds `split[80%:90%]`."""
    return rows[round(start * len(rows) / 100) : round(end * len(rows) / 100)]


def _at(row: _Row, finding: str) -> str:
    return f"{row.file}, line {row.number}: {finding}"


def _rows(file: str, content: IO[bytes], difficulty: str) -> Iterator[_Row]:
    """The lines of one metadata file: folder, file, number and label of an image, and parameters of the generator."""
    number = 0
    for number, line in enumerate(lines(content, file), start=1):
        if number == 1 and line.startswith(b"\x93NUMPY"):
            raise ValueError(f"{file} is a NumPy array, expected lines of text as they were published")
        fields = line.split()
        if len(fields) < 4:
            raise ValueError(
                f"{file}, line {number}: {len(fields)} fields in {shown(line.rstrip())}, expected 4 or more"
            )
        if fields[3] not in (b"0", b"1"):
            raise ValueError(f"{file}, line {number}: label {shown(fields[3])}, expected 0 or 1")
        image, sample = (field.decode(errors="replace") for field in fields[:2])
        # The benchmark's key of an image, which tensorflow_datasets hashes with the name of the split before it.
        key = f"{difficulty}{image}_{sample}_{number}"
        order = hashlib.md5(key.encode(), usedforsecurity=False).digest()
        yield _Row(order, f"{image}/{sample}", int(fields[3]), file, number)
    if number == 0:
        raise ValueError(f"{file} is empty")


class _Spool:
    """The files of many images, end to end in one file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.places: dict[str, tuple[int, int]] = {}  # of each image the first byte and the number of bytes

    def documents(self, rows: Sequence[_Row], folder: str, resolution: int) -> Iterator[Documents]:
        """The images of `rows`, decoded; ValueError naming the first that is not as published."""
        with self.file.open("rb") as content:
            for start, end in _pieces(len(rows), resolution**2):
                images = np.empty((end - start, resolution, resolution), dtype=np.uint8)
                for image, row in zip(images, rows[start:end], strict=True):
                    first, size = self.places[row.image]
                    content.seek(first)
                    image[:] = _decode(content.read(size), f"{folder}/{row.image}", resolution)
                yield _documents(images, np.array([row.label for row in rows[start:end]], dtype=np.uint8))


def _decode(content: bytes, name: str, resolution: int) -> np.ndarray:
    """(resolution, resolution) uint8: the pixels of a PNG file of 8-bit gray."""
    from PIL import Image

    try:
        # Pillow warns of what is too large or half broken, and goes on with it.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                found = image.size, image.mode
                if found == ((resolution, resolution), "L"):
                    return np.asarray(image)
    except Exception as error:  # a broken file raises nearly anything
        raise ValueError(f"{name} is no whole PNG file") from error
    (width, height), mode = found
    raise ValueError(
        f"{name} has {width} x {height} pixels of mode {mode}, expected {resolution} x {resolution} of 8-bit gray"
    )
