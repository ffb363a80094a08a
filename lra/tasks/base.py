"""What a task is: a few facts, documents with labels, and the TFDS builders made of both."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

# Above a gigabyte, TFDS keeps the records of a split in buckets that only TensorFlow can write: larger splits are cut.
PART_BYTES = 256 << 20


class Documents(NamedTuple):
    """Documents end to end, each with its label."""

    tokens: np.ndarray  # (T,) uint8
    offsets: np.ndarray  # (M + 1,) int64: document i is tokens[offsets[i]:offsets[i + 1]]
    labels: np.ndarray  # (M,) uint8; empty where pairs of documents have labels instead


class Pairs(NamedTuple):
    """Examples that are two documents of their split."""

    pairs: np.ndarray  # (E, 2) int32
    labels: np.ndarray  # (E,) uint8


class Examples(Protocol):
    """Anything with the arrays of a split of prepared data."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...
    @property
    def pairs(self) -> np.ndarray | None: ...


@dataclass(frozen=True)
class Reading:
    """A source, opened: how many documents each split has, the blocks that hold them in order, the pairs where examples
    are pairs, and what to keep of their origin. A split's blocks are read once."""

    counts: Mapping[str, int]
    blocks: Mapping[str, Iterable[Documents]]
    provenance: dict[str, Any] = field(default_factory=dict)
    pairs: Mapping[str, Pairs] | None = None


class Progress(Protocol):
    """Shows how far something that takes long has come: `with progress("reading x", total) as advance: advance(n)`."""

    def __call__(
        self, doing: str, total: int | None, in_bytes: bool = False
    ) -> AbstractContextManager[Callable[[int], None]]: ...


def silent(doing: str, total: int | None, in_bytes: bool = False) -> AbstractContextManager[Callable[[int], None]]:
    """The progress of something that nobody watches."""
    return nullcontext(lambda count: None)


class Place(NamedTuple):
    """Where a source is read: files that people bring, a folder for what is only needed meanwhile, and a display."""

    manual: Path
    scratch: Path
    progress: Progress = silent


class Task(ABC):
    """One task of the benchmark. Its splits are called train, validation and test, as in TFDS.

    The keywords of its constructor are its options: each changes the data, and stands as `task.<option>` on a command
    line and, where it is not the default, in the name of the data's folder.
    """

    name: ClassVar[str]
    version: ClassVar[str]
    kind: ClassVar[str] = "tokens"  # or "pixels": images row by row, never cut
    vocabulary: ClassVar[tuple[str, ...]]  # the name of every token id
    classes: ClassVar[int]
    class_names: ClassVar[tuple[str, ...]] = ()  # of the real sources; () where a class is its number
    sources: ClassVar[tuple[str, ...]]  # the first is the default
    paired: ClassVar[bool] = False  # whether an example is two documents
    max_len: int  # tokens; longer documents are cut

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The options and their defaults."""
        parameters = inspect.signature(cls).parameters.values()
        return {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}

    @property
    def options(self) -> dict[str, Any]:
        """The options that are not at their default."""
        return {key: getattr(self, key) for key, value in self.defaults().items() if getattr(self, key) != value}

    def config(self, source: str) -> str:
        """The name of a source with the options: `generated`, or `generated,resolution=64`."""
        return ",".join([source, *(f"{key}={value}" for key, value in self.options.items())])

    def words(self, source: str) -> str:
        """The words of a command line that name this task, its source and its options."""
        options = "".join(f" task.{key}={value}" for key, value in self.options.items())
        return f"task={self.name} task.source={source}{options}"

    def class_name(self, source: str, label: int) -> str:
        """What people call a class; the classes of a toy have no names."""
        return str(label) if source == "synthetic" or not self.class_names else self.class_names[label]

    @abstractmethod
    def require(self, source: str, manual: Path) -> None:
        """Return at once if `source` can be read or fetched; ValueError saying what to put into `manual` if not."""

    @abstractmethod
    def read(self, source: str, place: Place) -> Reading:
        """Open `source`; ValueError naming file, place and value where it is not as published."""

    def doctor(self, train: Examples, val: Examples, test: Examples) -> list[tuple[str, str]]:
        """What a sceptic asks about this task alone, as (question, answer)."""
        return []


def parts(task: Task, split: str, count: int) -> dict[str, int]:
    """The TFDS splits that hold `count` documents of a split, and how many each: more than one where it is large."""
    size = max(PART_BYTES // task.max_len, 1)
    if count <= size:
        return {split: count}
    return {f"{split}_{part}": min(size, count - first) for part, first in enumerate(range(0, count, size))}


def builder(
    task: Task, source: str, reading: Reading, data_dir: Path, advance: Callable[[int], None]
) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a task's documents, with their labels where they have some.

    `advance(n)` hears that n more documents have been made.
    """
    import tensorflow_datasets as tfds

    features: dict[str, Any] = {
        "tokens": tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)
    }
    if reading.pairs is None:
        features["label"] = tfds.features.ClassLabel(num_classes=task.classes)

    def one_by_one(blocks: Iterable[Documents]) -> Iterator[dict[str, Any]]:
        for tokens, offsets, labels in blocks:
            for place, (start, end) in enumerate(zip(offsets[:-1], offsets[1:], strict=True)):
                label = {"label": int(labels[place])} if "label" in features else {}
                yield {"tokens": tokens[start:end], **label}
            advance(len(offsets) - 1)

    examples = {split: one_by_one(blocks) for split, blocks in reading.blocks.items()}
    sizes = {split: parts(task, split, count) for split, count in reading.counts.items()}
    name = f"lra_{task.name}" if reading.pairs is None else f"lra_{task.name}_documents"
    return _builder(name, task, source, reading, data_dir, features, examples, sizes)


def pair_builder(task: Task, source: str, reading: Reading, data_dir: Path) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a task's examples where they are pairs of documents."""
    import tensorflow_datasets as tfds

    assert reading.pairs is not None, "only a task of pairs has a builder for them"
    features = {
        "pair": tfds.features.Tensor(shape=(2,), dtype=np.int32),
        "label": tfds.features.ClassLabel(num_classes=task.classes),
    }
    examples = {
        split: ({"pair": pair, "label": int(label)} for pair, label in zip(*both, strict=True))
        for split, both in reading.pairs.items()
    }
    sizes = {split: {split: len(both.labels)} for split, both in reading.pairs.items()}
    return _builder(f"lra_{task.name}", task, source, reading, data_dir, features, examples, sizes)


def _builder(
    builder_name: str,
    task: Task,
    source: str,
    reading: Reading,
    data_dir: Path,
    features: dict[str, Any],
    examples: Mapping[str, Iterator[dict[str, Any]]],
    sizes: Mapping[str, Mapping[str, int]],
) -> tfds.core.DatasetBuilder:
    """A builder that writes array_record files below `data_dir`, in order, without TensorFlow."""
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = builder_name
        VERSION = tfds.core.Version(task.version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=task.config(source))]

        def _info(self) -> tfds.core.DatasetInfo:
            facts = {"vocabulary": list(task.vocabulary), "max_len": task.max_len, "provenance": reading.provenance}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                metadata=tfds.core.MetadataDict(facts),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            # TFDS exhausts them one after the other, so the parts of a split can share its one stream.
            return {
                part: self._generate_examples(examples[split], count)
                for split, counts in sizes.items()
                for part, count in counts.items()
            }

        def _generate_examples(
            self, stream: Iterator[dict[str, Any]], count: int
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            return enumerate(islice(stream, count))

    return Builder(data_dir=data_dir, config=task.config(source), file_format="array_record")


def documents(texts: Iterable[bytes], labels: Iterable[int] = ()) -> Documents:
    """Documents of separate byte strings."""
    texts = list(texts)
    offsets = np.fromiter(chain([0], map(len, texts)), dtype=np.int64, count=len(texts) + 1).cumsum()
    return Documents(np.frombuffer(b"".join(texts), dtype=np.uint8), offsets, np.array(list(labels), dtype=np.uint8))
