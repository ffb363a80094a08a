"""Prepared data: arrays on disk, opened in milliseconds, sampled and collated into batches.

A data set is the folder `<data_dir>/<task>-<source>/<version>/` that `python -m lra.prepare` writes: a `manifest.json`
and, for each of train, val and test, the arrays of `Split` as .npy files. Everything random here is a function of a
seed and a position, so a resumed run sees the batches that an undisturbed one would have seen.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lra.arrays import pieces
from lra.seal import demand

if TYPE_CHECKING:
    import torch

    from lra.tasks.base import Task

SCHEMA = 2
# What a manifest of each schema has under this key is a sha256 over everything else in it; those of 1 had none.
SEAL = "manifest_sha256"
SPLITS = ("train", "val", "test")
QUANTILES = (0, 5, 25, 50, 75, 95, 100)
DTYPES: dict[str, np.dtype[Any]] = {
    "tokens": np.dtype("u1"),
    "offsets": np.dtype("<i8"),
    "labels": np.dtype("u1"),
    "pairs": np.dtype("<i4"),
}


class DataMissing(ValueError):
    """The data set has not been prepared; the message names the command that prepares it."""


class Split(NamedTuple):
    """One split: all documents end to end, and a label per example."""

    tokens: np.ndarray  # (T,) uint8
    offsets: np.ndarray  # (M + 1,) int64: document i is tokens[offsets[i]:offsets[i + 1]]
    labels: np.ndarray  # (E,) uint8
    pairs: np.ndarray | None = None  # (E, 2) int32 into the documents; None: example i is document i

    @property
    def lengths(self) -> np.ndarray:
        """(E,) int64: tokens per example; of a pair, the longer document's."""
        lengths = np.diff(self.offsets)
        return lengths if self.pairs is None else lengths[self.pairs].max(axis=1)


class Data(NamedTuple):
    """A prepared data set."""

    manifest: dict[str, Any]
    train: Split
    val: Split
    test: Split


class Batch(NamedTuple):
    """B examples padded to L tokens; of pairs, tokens and mask are (B, 2, L)."""

    tokens: torch.Tensor  # (B, L) int64, 0 where padded
    mask: torch.Tensor  # (B, L) bool, True = real token; with mask_zero, a token other than 0
    labels: torch.Tensor  # (B,) int64


def folder(data_dir: str | Path, task: Task, source: str) -> Path:
    """Where a data set lives."""
    return Path(data_dir) / f"{task.name}-{task.config(source)}" / task.version


def content_sha256(array: np.ndarray, advance: Callable[[int], None] = lambda count: None) -> str:
    """Hex sha256 of an array's dtype, shape and bytes: the same for the same content in any file.

    `advance(n)` hears that n more bytes have been read.
    """
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    for piece in pieces(array):
        digest.update(np.ascontiguousarray(piece).data)
        advance(piece.nbytes)
    return digest.hexdigest()


def length_quantiles(split: Split) -> dict[str, int]:
    """Lengths of a split's documents in tokens, by the percentages of QUANTILES, as lengths that occur."""
    lengths = np.percentile(np.diff(split.offsets), QUANTILES, method="lower")
    return dict(zip(map(str, QUANTILES), lengths.tolist(), strict=True))


def identity_sha256(splits: dict[str, dict[str, Any]]) -> str:
    """Hex sha256 over the content hashes of every array of a manifest's `splits`: the identity of the data."""
    lines = []
    for split in SPLITS:
        hashes = splits[split]["sha256"]
        lines += [f"{split}.{name} {hashes[name]}\n" for name in DTYPES if name in hashes]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def content_hashes(data: Data, advance: Callable[[int], None] = lambda count: None) -> dict[str, str]:
    """The content hash of every array, by names such as `train.tokens`."""
    splits = {name: getattr(data, name)._asdict() for name in SPLITS}
    return {
        f"{name}.{key}": content_sha256(array, advance)
        for name, split in splits.items()
        for key, array in split.items()
        if array is not None
    }


def recorded_hashes(manifest: Mapping[str, Any]) -> dict[str, str]:
    """What a manifest says they are."""
    splits = {name: manifest["splits"][name]["sha256"] for name in SPLITS}
    return {f"{name}.{key}": hashes[key] for name, hashes in splits.items() for key in DTYPES if key in hashes}


def load(data_dir: str | Path, task: Task, source: str, verify: bool = False) -> Data:
    """Map a prepared data set into memory and check that it is whole, without reading all of it.

    verify: read all of it, and hold every array to its hash in the manifest.
    Raises DataMissing where there is none, ValueError naming the file where one is broken or not of this harness.
    """
    command = f"make data {task.words(source)} data_dir={data_dir}"
    path = folder(data_dir, task, source)
    if not path.exists():
        raise DataMissing(f"{task.name} ({task.config(source)}) is not prepared in {path}: run {command}")
    try:
        manifest = _manifest(path / "manifest.json", task, source)
        data = Data(manifest, *(_split(path, name, manifest) for name in SPLITS))
        if verify:
            _verify(path, data)
        return data
    except _Broken as error:
        raise ValueError(f"{error}: delete {path} and run {command}") from error


class _Broken(Exception):
    """A file is not what it should be; the message names it."""


def _verify(path: Path, data: Data) -> None:
    found = content_hashes(data)
    for array, recorded in recorded_hashes(data.manifest).items():
        if found[array] != recorded:
            said = f"sha256 {found[array][:12]}, the manifest says {recorded[:12]}"
            raise _Broken(f"{path / array}.npy is damaged ({said})")
    if identity_sha256(data.manifest["splits"]) != data.manifest["sha256"]:
        raise _Broken(f"{path / 'manifest.json'} is damaged (its sha256 is not the hash of its arrays' hashes)")


def _manifest(file: Path, task: Task, source: str) -> dict[str, Any]:
    expected = {"task": task.name, "source": source, "options": task.options, "version": task.version}
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        # Where a task has no options, a manifest need not say so.
        manifest = {"options": {}, **told}
        schema = manifest["schema"]
        found = {key: manifest[key] for key in expected}
        splits = [manifest["splits"][split] for split in SPLITS]
        numbers = [manifest["classes"], manifest["max_len"]]
        numbers += [split[key] for split in splits for key in ("examples", "documents", "tokens")]
        texts = [manifest["sha256"], *manifest["vocabulary"]]
        texts += [split["sha256"][key] for split in splits for key in ("tokens", "offsets", "labels")]
        texts += [split["sha256"].get("pairs", "") for split in splits]
    except FileNotFoundError:
        raise _Broken(f"{file} is missing") from None
    except OSError as error:
        raise _Broken(f"{file} cannot be read ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Broken(f"{file} is not a manifest of this harness") from error
    if type(schema) is not int or not 1 <= schema <= SCHEMA:
        raise _Broken(f"{file} has schema {schema!r}, this version reads 1 to {SCHEMA}")
    if schema > 1 or SEAL in told:
        try:
            demand(told, SEAL)
        except ValueError as error:
            raise _Broken(f"{file} {error}") from error
    if not all(type(number) is int for number in numbers) or not all(type(text) is str for text in texts):
        raise _Broken(f"{file} is not a manifest of this harness")
    if found != expected:
        raise _Broken(f"{file} says {found}, expected {expected}")
    return manifest


def _split(path: Path, name: str, manifest: dict[str, Any]) -> Split:
    facts = manifest["splits"][name]
    files = {key: path / f"{name}.{key}.npy" for key in DTYPES if key in facts["sha256"]}
    split = Split(**{key: _array(file, DTYPES[key], 2 if key == "pairs" else 1) for key, file in files.items()})
    tokens, offsets, labels, pairs = split
    documents, ids, classes = facts["documents"], len(manifest["vocabulary"]), manifest["classes"]

    def check(key: str, holds: bool | np.bool_, finding: str) -> None:
        if not holds:
            raise _Broken(f"{files[key]} has {finding}")

    check("tokens", len(tokens) == facts["tokens"], f"{len(tokens)} tokens, the manifest says {facts['tokens']}")
    # Where every byte is an id, as in pictures and text, there is nothing to look for.
    check("tokens", ids > 255 or tokens.max() < ids, f"a token outside the vocabulary of {ids}")
    check("offsets", len(offsets) == documents + 1, f"{len(offsets)} offsets, the manifest says {documents} documents")
    check("offsets", offsets[0] == 0 and offsets[-1] == len(tokens), f"offsets that do not run from 0 to {len(tokens)}")
    # Not by differences: those of very large numbers wrap around.
    check("offsets", (offsets[:-1] < offsets[1:]).all(), "offsets that do not increase")
    check("labels", len(labels) == facts["examples"], f"{len(labels)} labels, the manifest says {facts['examples']}")
    check("labels", labels.max() < classes, f"label {labels.max()}, the classes are 0..{classes - 1}")
    if pairs is None:
        check("labels", len(labels) == documents, f"{len(labels)} labels for {documents} documents")
    else:
        check("pairs", pairs.shape == (len(labels), 2), f"shape {pairs.shape} for {len(labels)} labels")
        check("pairs", pairs.min() >= 0 and pairs.max() < documents, f"an index outside the {documents} documents")
    return split


def _array(file: Path, dtype: np.dtype[Any], ndim: int) -> np.ndarray:
    """A read-only view of the array in `file`, mapped into memory."""
    try:
        # numpy warns of a foreign header, and so does Python of what stands in it.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            array = np.lib.format.open_memmap(file, mode="r")
    except FileNotFoundError:
        raise _Broken(f"{file} is missing") from None
    except OSError as error:
        # A disk that fails, or too many open files: the array may be whole.
        raise OSError(error.errno, error.strerror, str(file)) from error
    except Exception as error:  # the header is parsed as Python: a broken one raises nearly anything
        raise _Broken(f"{file} is not a whole .npy array") from error
    if array.dtype != dtype or array.ndim != ndim or array.size == 0:
        raise _Broken(f"{file} holds {array.dtype} {array.shape}, expected {dtype} with {ndim} axes, not empty")
    # A plain view: slicing np.memmap itself costs microseconds a time.
    return array.view(np.ndarray)


def collate(
    split: Split, indices: np.ndarray, max_len: int, pad_to: int | None = None, mask_zero: bool = False
) -> Batch:
    """The examples `indices` as a Batch, documents cut to `max_len` tokens.

    L is the longest document of the batch rounded up to a multiple of 32, at most `max_len`; or `pad_to` where given.
    With `mask_zero` a token 0 counts as padding, wherever it stands.
    """
    # Here and not above, so that preparing data and looking at it never wait for torch.
    import torch

    documents = indices if split.pairs is None else split.pairs[indices]
    starts = split.offsets[documents]
    lengths = np.minimum(split.offsets[documents + 1] - starts, max_len)
    longest = int(lengths.max())
    size = min(-(-longest // 32) * 32, max_len) if pad_to is None else pad_to
    if size < longest:
        raise ValueError(f"pad_to={pad_to} is shorter than the longest document of the batch, {longest} tokens")
    mask = np.arange(size) < lengths[..., None]
    tokens = np.zeros(mask.shape, dtype=np.int64)
    # A copy per document: gathering single tokens takes several times as long.
    rows = tokens.reshape(-1, size)
    for row, start, length in zip(rows, starts.ravel().tolist(), lengths.ravel().tolist(), strict=True):
        row[:length] = split.tokens[start : start + length]
    if mask_zero:
        mask &= tokens != 0
    return Batch(
        torch.from_numpy(tokens), torch.from_numpy(mask), torch.from_numpy(split.labels[indices].astype(np.int64))
    )


class Sampler:
    """Batches of indices as a pure function of (seed, step).

    An epoch is a permutation of the examples, cut to whole batches; what is left over differs between epochs. Within a
    pool of `pool` batches the examples are sorted by length, so that a batch holds like lengths, and the batches of
    the epoch are then put in random order.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, pool: int = 50) -> None:
        """lengths (E,): tokens per example."""
        if not 1 <= batch_size <= len(lengths):
            raise ValueError(f"batch_size={batch_size} must be between 1 and the number of examples, {len(lengths)}")
        if pool < 1 or seed < 0:
            raise ValueError(f"pool={pool} must be at least 1 and seed={seed} at least 0")
        self.lengths = np.asarray(lengths)
        self.batch_size = batch_size
        self.seed = seed
        self.pool = pool
        self.batches_per_epoch = len(lengths) // batch_size
        self._epoch = -1
        self._batches = np.empty((0, batch_size), dtype=np.int64)

    def batch(self, step: int) -> np.ndarray:
        """(batch_size,) int64: the examples of the batch at `step`, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._batches, self._epoch = self._cut(epoch), epoch
        return self._batches[position].copy()

    def _cut(self, epoch: int) -> np.ndarray:
        """(batches_per_epoch, batch_size) int64: the batches of one epoch."""
        # Sorting raw Philox words, because numpy freezes that stream but not what its permutation() makes of it.
        stream = np.random.Philox(key=np.array([self.seed, epoch], dtype=np.uint64))
        drawn = np.argsort(stream.random_raw(len(self.lengths)), kind="stable")
        drawn = drawn[: self.batches_per_epoch * self.batch_size]
        in_pool = np.arange(len(drawn)) // (self.pool * self.batch_size)
        batches = drawn[np.lexsort((self.lengths[drawn], in_pool))].reshape(-1, self.batch_size)
        return batches[np.argsort(stream.random_raw(len(batches)), kind="stable")]


def evaluation_batches(split: Split, batch_size: int) -> Iterator[np.ndarray]:
    """Indices that cover every example once, longest first, the last batch as small as it comes."""
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be at least 1")
    order = np.argsort(-split.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]
