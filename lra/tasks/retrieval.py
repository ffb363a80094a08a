"""Retrieval: do two papers cite one another? Two classes, each example a pair of documents.

Radev et al., "The ACL Anthology Network Corpus", 2013. https://doi.org/10.1007/s10579-012-9211-2
Tay et al., "Long Range Arena: A Benchmark for Efficient Transformers", 2020. https://arxiv.org/abs/2011.04006

A token is a byte of the paper's text and its id is the byte; the public code adds one to make room for a pad id, which
changes nothing but the order of the embedding's rows. A paper is its first `max_len` bytes and is stored once per
split. Where one id comes with several texts, each text is a document of its own, so that every example is the pair of
texts that its row holds.

The published files have a row per pair and no header: label, two ids and two texts between tabs, without quoting. The
benchmark's own reader stops at a row with more or fewer columns or an empty one, and so does this one.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from lra.tasks import pair_statistics
from lra.tasks.archive import (
    LINE_BYTES,
    RELEASE,
    RELEASE_ADDRESS,
    RELEASE_FOLDERS,
    files,
    intact,
    members,
    shown,
)
from lra.tasks.base import Documents, Examples, Pairs, Place, Progress, Reading, Task, silent
from lra.tasks.draws import Draws
from lra.tasks.vocabularies import BYTES

FOLDER = "tsv_data"
FILES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
COUNTS = {"train": 147_086, "validation": 18_090, "test": 17_437}
# A part of the records holds at most 256 MB of documents of this length: more, and there would be thousands of parts.
LONGEST = 65_536
PAPERS_PER_BLOCK = 1_024

SEED = 0
SYNTHETIC_COUNTS = {"train": 1_024, "validation": 256, "test": 256}
PAPERS_PER_TOPIC = {"train": 128, "validation": 32, "test": 32}
TOPICS = (b"aeiou ", b"bdgptk", b"fhsvxz", b"jlmnrw")


class Row(NamedTuple):
    """One example as its source has it."""

    label: int
    ids: tuple[bytes, bytes]
    texts: tuple[bytes, bytes]


class Retrieval(Task):
    """The task and its sources: the published files, which have to be brought by hand, and small pairs for tests."""

    name = "retrieval"
    version = "1.0.0"
    vocabulary = BYTES
    classes = 2
    class_names = ("no citation", "citation")
    paired = True
    sources = ("aan", "synthetic")

    def __init__(self, *, max_len: int = 4_000) -> None:
        """max_len: bytes of each paper."""
        if not 1 <= max_len <= LONGEST:
            raise ValueError(f"task.max_len={max_len} must be between 1 and {LONGEST:,}")
        self.max_len = max_len

    def require(self, source: str, manual: Path) -> None:
        if source == "aan":
            find_aan(manual)

    def read(self, source: str, place: Place) -> Reading:
        if source == "aan":
            return read_aan(find_aan(place.manual), self.max_len, place.scratch, place.progress)
        rows = {split: synthesize(SEED, split, count) for split, count in SYNTHETIC_COUNTS.items()}
        found = {split: _collect(each, place.scratch / split, self.max_len) for split, each in rows.items()}
        return _reading(found, {"seed": SEED})

    def doctor(self, train: Examples, val: Examples, test: Examples) -> list[tuple[str, str]]:
        return pair_statistics.questions(train, val, test)


def find_aan(manual: Path) -> Path:
    """The folder in `manual` that holds the three published files, or the archive; ValueError where none is there."""
    for folder in (manual, *(manual / above / FOLDER for above in RELEASE_FOLDERS)):
        missing = [name for name in FILES.values() if not (folder / name).is_file()]
        if not missing:
            return folder
        if len(missing) < len(FILES):
            raise ValueError(f"{folder} holds no {missing[0]}")
    if (manual / RELEASE).is_file():
        return manual / RELEASE
    raise ValueError(
        f"{manual} holds neither new_aan_pairs.train.tsv, .eval.tsv and .test.tsv nor {RELEASE}: download "
        f"{RELEASE_ADDRESS} (8 GB) to that place or unpack its {FOLDER} there; task.source=synthetic needs no download"
    )


def read_aan(place: Path, max_len: int, scratch: Path, progress: Progress = silent) -> Reading:
    """All pairs of the published files, from the archive in one pass without unpacking it, or from their folder.

    The archive is read to its end, since no other checksum than the one that stands there is published. The papers are
    kept in files in `scratch`, so that memory holds the pairs alone.
    """
    found: dict[str, _Collected] = {}
    digests: dict[str, str] = {}
    with intact(place):
        for split, source, content in _contents(place, progress):
            if split in found:
                raise ValueError(f"{source} is there twice")
            digest = hashlib.sha256()
            found[split] = _collect(read_rows(content, source, digest), scratch / split, max_len)
            digests[FILES[split]] = digest.hexdigest()
    for split, name in FILES.items():
        if split not in found:
            raise ValueError(f"{place} holds no {FOLDER}/{name}")
    provenance = {"place": place.name, "sha256": digests, "published": COUNTS}
    return _reading({split: found[split] for split in FILES}, provenance)


def _contents(place: Path, progress: Progress) -> Iterator[tuple[str, str, IO[bytes]]]:
    """(split, name for messages, content) of the published files."""
    if place.is_dir():
        for (split, name), content in zip(FILES.items(), files(place, FILES.values(), progress), strict=True):
            yield split, str(place / name), content
        return
    wanted = {f"{FOLDER}/{name}": split for split, name in FILES.items()}
    for name, content in members(place, lambda name: "/".join(name.split("/")[-2:]) in wanted, progress):
        yield wanted["/".join(name.split("/")[-2:])], f"{place}: {name}", content


def read_rows(content: IO[bytes], source: str, digest: Any) -> Iterator[Row]:
    """The rows of one published file, which `digest` hears; ValueError naming `source` and the line of a wrong one."""
    for number in count(1):
        line = content.readline(LINE_BYTES + 1)
        if not line:
            break
        digest.update(line)
        try:
            yield _row(line)
        except ValueError as error:
            raise ValueError(f"{source}, line {number}: {error}") from None
    if number == 1:
        raise ValueError(f"{source} is empty")


def _row(line: bytes) -> Row:
    if len(line) > LINE_BYTES:
        raise ValueError(f"{shown(line)} is longer than {LINE_BYTES:,} bytes")
    # A text may hold anything but tabs and line feeds: neither quotes nor other kinds of line end mean anything here.
    columns = line.removesuffix(b"\n").removesuffix(b"\r").split(b"\t", 5)
    if len(columns) != 5:
        columns_found = line.count(b"\t") + 1
        raise ValueError(f"{columns_found} columns in {shown(line)}, expected 5: label, id, id, text, text")
    label, *ids_and_texts = columns
    if not re.fullmatch(rb"[01](\.0*)?", label):
        raise ValueError(f"label {shown(label)}, expected 0.0 or 1.0")
    if b"" in ids_and_texts:
        raise ValueError(f"column {columns.index(b'') + 1} is empty")
    first_id, second_id, first, second = ids_and_texts
    return Row(int(label[:1]), (first_id, second_id), (first, second))


class _Collected:
    """The examples of one split as its rows are read: papers go to a file at once, each into the next free place."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.numbers: dict[tuple[bytes, bytes], int] = {}  # the document of (id, sha256 of the text)
        self.ends = array("q", [0])
        self.pairs = array("i")
        self.labels = bytearray()
        self.truncated = 0

    def number(self, paper: bytes, text: bytes, max_len: int, out: IO[bytes]) -> int:
        """The document of a paper, which is written to `out` where it is new."""
        document = text[:max_len]
        key = (paper, hashlib.sha256(document).digest())
        if key not in self.numbers:
            self.numbers[key] = len(self.numbers)
            self.ends.append(self.ends[-1] + out.write(document))
            self.truncated += len(text) > max_len
        return self.numbers[key]

    @property
    def conflicting(self) -> int:
        """How many documents have an id that another document has too, the first of each id not counted."""
        return len(self.numbers) - len({paper for paper, _ in self.numbers})

    def blocks(self) -> Iterator[Documents]:
        """All documents, in order."""
        ends = np.array(self.ends, dtype=np.int64)
        with self.file.open("rb") as texts:
            for first in range(0, len(ends) - 1, PAPERS_PER_BLOCK):
                offsets = ends[first : first + PAPERS_PER_BLOCK + 1] - ends[first]
                tokens = np.frombuffer(texts.read(int(offsets[-1])), dtype=np.uint8)
                yield Documents(tokens, offsets, np.empty(0, dtype=np.uint8))


def _collect(rows: Iterable[Row], file: Path, max_len: int) -> _Collected:
    """All `rows`, their papers in `file`."""
    found = _Collected(file)
    with file.open("wb") as out:
        for label, ids, texts in rows:
            found.pairs.extend(found.number(*paper, max_len, out) for paper in zip(ids, texts, strict=True))
            found.labels.append(label)
    return found


def _reading(found: Mapping[str, _Collected], provenance: dict[str, Any]) -> Reading:
    """Collected splits as a Reading; their files are needed until its blocks have been read."""
    counts = {split: len(each.numbers) for split, each in found.items()}
    pairs = {
        split: Pairs(np.array(each.pairs, dtype=np.int32).reshape(-1, 2), np.array(each.labels, dtype=np.uint8))
        for split, each in found.items()
    }
    provenance |= {
        "truncated": sum(each.truncated for each in found.values()),
        "conflicting_texts": {split: each.conflicting for split, each in found.items()},
    }
    return Reading(counts, {split: each.blocks() for split, each in found.items()}, provenance, pairs)


def synthesize(seed: int, split: str, count: int) -> Iterator[Row]:
    """Pairs of texts of 60 to 200 bytes, each about one of four topics; the label is 1 where the topics are the same.

    Three of four bytes of a text are of its topic's alphabet. A text stands in several pairs, never twice in one.
    """
    draws = Draws(seed, list(COUNTS).index(split), 0)
    papers = PAPERS_PER_TOPIC[split]
    texts = {(topic, paper): _text(draws, topic) for topic in range(len(TOPICS)) for paper in range(papers)}
    labels = draws.below(2, count).tolist()
    topics, shifts = draws.below(len(TOPICS), count).tolist(), draws.below(len(TOPICS) - 1, count).tolist()
    firsts, steps = draws.below(papers, count).tolist(), draws.below(papers - 1, count).tolist()
    for label, topic, shift, first, step in zip(labels, topics, shifts, firsts, steps, strict=True):
        other = topic if label else (topic + 1 + shift) % len(TOPICS)
        keys = ((topic, first), (other, (first + 1 + step) % papers))
        yield Row(label, (b"%d-%d" % keys[0], b"%d-%d" % keys[1]), (texts[keys[0]], texts[keys[1]]))


def _text(draws: Draws, topic: int) -> bytes:
    size = 60 + int(draws.below(141, 1)[0])
    letters = np.frombuffer(b"".join(TOPICS), dtype=np.uint8)
    own = np.frombuffer(TOPICS[topic], dtype=np.uint8)
    of_topic = draws.below(4, size) > 0
    return np.where(of_topic, own[draws.below(len(own), size)], letters[draws.below(len(letters), size)]).tobytes()
