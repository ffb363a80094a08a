"""What a task is: a few facts, documents with labels, and a TFDS builder made of both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    import tensorflow_datasets as tfds


class Documents(NamedTuple):
    """Documents end to end, each with its label."""

    tokens: np.ndarray  # (T,) uint8
    offsets: np.ndarray  # (M + 1,) int64: document i is tokens[offsets[i]:offsets[i + 1]]
    labels: np.ndarray  # (M,) uint8


class Labelled(Protocol):
    """Anything with the arrays of Documents: a split of prepared data too."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def offsets(self) -> np.ndarray: ...
    @property
    def labels(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Reading:
    """A source, opened: how many examples there are, the blocks that hold them, and what to keep of their origin."""

    counts: Mapping[str, int]
    blocks: Mapping[str, Iterable[Documents]]
    provenance: dict[str, Any] = field(default_factory=dict)


class Task(ABC):
    """One task of the benchmark. Its splits are called train, validation and test, as in TFDS."""

    name: ClassVar[str]
    version: ClassVar[str]
    vocabulary: ClassVar[tuple[str, ...]]  # the name of every token id; id 0 is padding
    classes: ClassVar[int]
    max_len: ClassVar[int]  # tokens; longer documents are cut
    sources: ClassVar[tuple[str, ...]]  # the first is the default

    @abstractmethod
    def require(self, source: str, manual: Path) -> None:
        """Return at once if `source` can be read; ValueError saying what to put into `manual` if not."""

    @abstractmethod
    def read(self, source: str, manual: Path) -> Reading:
        """Open `source`; ValueError naming file, place and value where it is not as published."""

    def doctor(self, train: Labelled, val: Labelled, test: Labelled) -> list[tuple[str, str]]:
        """What a sceptic asks about this task alone, as (question, answer)."""
        return []


def builder(
    task: Task, source: str, reading: Reading, data_dir: Path, advance: Callable[[int], None]
) -> tfds.core.DatasetBuilder:
    """The TFDS builder of a task's source, writing array_record files below `data_dir` without TensorFlow.

    `advance(n)` hears that n more examples have been made.
    """
    import tensorflow_datasets as tfds

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = f"lra_{task.name}"
        VERSION = tfds.core.Version(task.version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=each) for each in task.sources]

        def _info(self) -> tfds.core.DatasetInfo:
            tokens = tfds.features.Tensor(shape=(None,), dtype=np.uint8, encoding=tfds.features.Encoding.BYTES)
            label = tfds.features.ClassLabel(num_classes=task.classes)
            facts = {"vocabulary": list(task.vocabulary), "max_len": task.max_len, "provenance": reading.provenance}
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"tokens": tokens, "label": label}),
                metadata=tfds.core.MetadataDict(facts),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            return {split: self._generate_examples(blocks) for split, blocks in reading.blocks.items()}

        def _generate_examples(self, blocks: Iterable[Documents]) -> Iterator[tuple[int, dict[str, Any]]]:
            key = 0
            for tokens, offsets, labels in blocks:
                for start, end, label in zip(offsets[:-1], offsets[1:], labels, strict=True):
                    yield key, {"tokens": tokens[start:end], "label": int(label)}
                    key += 1
                advance(len(labels))

    return Builder(data_dir=data_dir, config=source, file_format="array_record")
