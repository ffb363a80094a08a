"""Text: whether a film review is for or against the film, read byte by byte.

Maas et al., "Learning Word Vectors for Sentiment Analysis", 2011. https://aclanthology.org/P11-1015
Tay et al., "Long Range Arena: A Benchmark for Efficient Transformers", 2020. https://arxiv.org/abs/2011.04006

A token is a byte of the published file as it stands, markup and white space included. The public code stores each byte
plus one, to keep 0 for padding, and strips white space at both ends; here masks come from lengths, and the shift would
change nothing but the order of the embedding's rows.

The archive has no validation part. `split=clean` carves it out of train film by film: up to 30 reviews are of one film,
share its names and mostly its verdict, and train and test share no film, so a validation that shares films with train
would be easier than the test that it stands for. Films are taken whole, in the order of a hash of their addresses, as
long as neither class gives more than a tenth of its reviews. `split=legacy` validates on test, as the papers did.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lra.tasks.archive import find, intact, members, whole
from lra.tasks.base import Documents, Examples, Place, Progress, Reading, Task, documents, silent
from lra.tasks.download import Published, fetch
from lra.tasks.draws import Draws
from lra.tasks.vocabularies import BYTES
from lra.words import choose

ARCHIVE = Published(
    "aclImdb_v1.tar.gz",
    "https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    84_125_825,
    "c40f74a18d3b61f90feba1e17730e0d38e8b97c05fde7008942e91923d1658fe",
)
FOLDERS = ("aclImdb/aclImdb", "aclImdb")
# Reviews beside them without a rating, and names that begin with a dot, are passed over.
REVIEW = re.compile(r"(?:.*/)?(train|test)/(neg|pos)/([^./][^/]*)")
FILMS = re.compile(r"(?:.*/)?train/urls_(neg|pos)\.txt")
NAME = re.compile(r"([0-9]{1,9})_([0-9]{1,9})\.txt")
# A class is its place here, as in TFDS; the ratings are those that the archive's authors kept.
RATINGS = {"neg": range(1, 5), "pos": range(7, 11)}
PUBLISHED = {
    "clean": {"train": 22_500, "validation": 2_500, "test": 25_000},
    "legacy": {"train": 25_000, "validation": 25_000, "test": 25_000},
}
# Several times the longest review, and what a list of addresses has.
LONGEST = 65_536
ADDRESSES = 16 << 20
DOCUMENTS_PER_BLOCK = 1_024

SYNTHETIC_COUNTS = {"train": 1_024, "validation": 256, "test": 256}
SEED = 0
PRAISE = ("good", "great", "lovely", "superb", "moving", "enjoy", "bravo", "gem")
BLAME = ("bad", "awful", "weak", "dull", "wasted", "fails", "stale", "flat")
PLAIN = (
    "the", "film", "and", "this", "scene", "with", "actor", "plot",
    "was", "that", "story", "when", "script", "one", "music", "end",
)  # fmt: skip


class Review(NamedTuple):
    """The name of a published review."""

    part: str
    kind: str
    number: int

    @property
    def label(self) -> int:
        return list(RATINGS).index(self.kind)

    @property
    def rank(self) -> bytes:
        """A place in an order that mixes classes and films, and is the same for the archive and its folder."""
        return hashlib.sha256(f"{self.part}/{self.kind}/{self.number}".encode()).digest()


class Text(Task):
    """The task and its sources: the published reviews, and short made-up ones for tests."""

    name = "text"
    version = "1.0.0"
    vocabulary = BYTES
    classes = len(RATINGS)
    class_names = tuple(RATINGS)
    sources = ("imdb", "synthetic")

    def __init__(self, *, split: str = "clean", max_len: int = 4000) -> None:
        """split: `clean` or `legacy`; max_len: bytes, longer reviews are cut."""
        if not 1 <= max_len <= LONGEST:
            raise ValueError(f"task.max_len={max_len} is not between 1 and {LONGEST:,} bytes")
        self.split = choose("task.split", split, list(PUBLISHED))
        self.max_len = max_len

    def require(self, source: str, manual: Path) -> None:
        """Nothing need be brought by hand: the archive is fetched where it is missing."""

    def read(self, source: str, place: Place) -> Reading:
        return self._imdb(place) if source == "imdb" else self._synthetic()

    def doctor(self, train: Examples, val: Examples, test: Examples) -> list[tuple[str, str]]:
        lengths = np.diff(test.offsets)
        bounds = sorted({*(bound for bound in (1_000, 4_000) if bound < self.max_len), self.max_len})
        answers = [(f"documents of {b:,} bytes or more, test", f"{(lengths >= b).mean():.1%}") for b in bounds]
        for what, features in (("bytes", bytes), ("words", words)):
            accuracy = naive_bayes(train, test, features)
            answers.append((f"accuracy on test of naive Bayes over {what}, fitted on train", f"{accuracy:.1%}"))
        return answers

    def _imdb(self, place: Place) -> Reading:
        found = find(place.manual, FOLDERS, ARCHIVE.name)
        if found is None or found.is_file():
            found = fetch(ARCHIVE, place, "task.source=synthetic")
        texts, addresses = read_reviews(found, place.progress)
        train, test = (sorted((r for r in texts if r.part == part), key=lambda r: r.rank) for part in ("train", "test"))
        provenance: dict[str, Any] = {"place": found.name, "published": PUBLISHED[self.split]}
        validation = test
        if self.split == "clean":
            films = reviews_by_film(train, addresses, found)
            chosen = films_of_validation(films, found)
            provenance["films"] = {"train": len(films) - len(chosen), "validation": len(chosen)}
            held_out = {review for film in chosen for review in films[film]}
            validation = [review for review in train if review in held_out]
            train = [review for review in train if review not in held_out]
        splits = {"train": train, "validation": validation, "test": test}
        examples = {name: [(texts[review], review.label) for review in split] for name, split in splits.items()}
        return self._reading(examples, provenance)

    def _synthetic(self) -> Reading:
        examples = {split: list(synthesize(SEED, split, count)) for split, count in SYNTHETIC_COUNTS.items()}
        if self.split == "legacy":
            examples["validation"] = examples["test"]
        return self._reading(examples, {"seed": SEED})

    def _reading(self, examples: dict[str, list[tuple[bytes, int]]], provenance: dict[str, Any]) -> Reading:
        distinct = [split for split in examples if (self.split, split) != ("legacy", "validation")]
        truncated = sum(len(text) > self.max_len for split in distinct for text, _ in examples[split])
        counts = {split: len(pairs) for split, pairs in examples.items()}
        blocks = {split: self._blocks(pairs) for split, pairs in examples.items()}
        return Reading(counts, blocks, provenance | {"truncated": truncated})

    def _blocks(self, examples: Sequence[tuple[bytes, int]]) -> Iterator[Documents]:
        for start in range(0, len(examples), DOCUMENTS_PER_BLOCK):
            block = examples[start : start + DOCUMENTS_PER_BLOCK]
            yield documents((text[: self.max_len] for text, _ in block), (label for _, label in block))


# The published archive: 65 MB of reviews, which are put in order in memory.


def read_reviews(place: Path, progress: Progress = silent) -> tuple[dict[Review, bytes], dict[str, list[bytes]]]:
    """The text of every rated review in the archive or its folder; by class, the address of each train review's film.

    ValueError naming file and value where a name, a rating or a text is not as published, or a class is empty.
    """
    texts: dict[Review, bytes] = {}
    addresses: dict[str, list[bytes]] = {}
    with intact(place):
        for name, content in members(place, _wanted, progress):
            if films := FILMS.fullmatch(name):
                found = whole(content, ADDRESSES, f"{place}: {name}")
                if films[1] in addresses:
                    raise ValueError(f"{place}: {name} is there twice")
                addresses[films[1]] = [line.strip() for line in found.splitlines()]
            elif (review := _review(name, place)) in texts:
                raise ValueError(f"{place}: {name} is another review {review.number} of {review.part}/{review.kind}")
            elif text := whole(content, LONGEST, f"{place}: {name}"):
                texts[review] = text
            else:
                raise ValueError(f"{place}: {name} is empty")
    kinds = {(review.part, review.kind) for review in texts}
    for part in ("train", "test"):
        for kind in RATINGS:
            if (part, kind) not in kinds:
                raise ValueError(f"{place} holds no {part}/{kind}/<id>_<rating>.txt")
    return texts, addresses


def _wanted(name: str) -> bool:
    return bool(REVIEW.fullmatch(name) or FILMS.fullmatch(name))


def _review(name: str, place: Path) -> Review:
    parsed = REVIEW.fullmatch(name)
    assert parsed is not None, "only reviews are asked"
    part, kind, file = parsed.groups()
    if not (numbers := NAME.fullmatch(file)):
        raise ValueError(f"{place}: {part}/{kind} holds {ascii(file)}, expected <id>_<rating>.txt")
    if int(numbers[2]) not in (expected := RATINGS[kind]):
        rule = f"{kind} has {expected.start} to {expected.stop - 1}"
        raise ValueError(f"{place}: {part}/{kind}/{file} has rating {int(numbers[2])}, {rule}")
    return Review(part, kind, int(numbers[1]))


def reviews_by_film(
    train: Iterable[Review], addresses: dict[str, list[bytes]], place: Path
) -> dict[bytes, list[Review]]:
    """The train reviews of each film: line i of urls_<class>.txt, counted from 0, is the film's of review i."""
    films: dict[bytes, list[Review]] = {}
    for review in train:
        file = f"train/urls_{review.kind}.txt"
        if (lines := addresses.get(review.kind)) is None:
            raise ValueError(f"{place} holds no {file}, by which task.split=clean keeps films together")
        if review.number >= len(lines) or not (film := lines[review.number]):
            raise ValueError(f"{place}: {file} has no line for review {review.number}, it has {len(lines):,} lines")
        films.setdefault(film, []).append(review)
    return films


def films_of_validation(films: dict[bytes, list[Review]], place: Path) -> list[bytes]:
    """The films whose reviews validate: by hash, as long as neither class gives more than a tenth of its reviews."""
    total = Counter(review.kind for reviews in films.values() for review in reviews)
    taken: Counter[str] = Counter()
    chosen = []
    for film in sorted(films, key=lambda film: hashlib.sha256(film).digest()):
        more = taken + Counter(review.kind for review in films[film])
        if all(10 * more[kind] <= total[kind] for kind in RATINGS):
            taken = more
            chosen.append(film)
    for kind in RATINGS:
        if not taken[kind]:
            raise ValueError(f"{place}: no film fits into a tenth of train's {total[kind]:,} {kind} reviews")
    return chosen


def synthesize(seed: int, split: str, count: int) -> Iterator[tuple[bytes, int]]:
    """(text, label) of texts of 100 to 400 bytes in which nine of ten words of judgement are on the label's side."""
    draws = Draws(seed, list(SYNTHETIC_COUNTS).index(split), 0)
    sizes = 26 + draws.below(32, count)
    labels = draws.below(2, count)
    for size, label in zip(sizes.tolist(), labels.tolist(), strict=True):
        judges, strays = draws.below(2, size) == 0, draws.below(10, size) == 0
        sides = np.where(judges, label ^ strays, 2)
        lists = (BLAME, PRAISE, PLAIN)
        chosen = [lists[side][word % len(lists[side])] for side, word in zip(sides, draws.below(16, size), strict=True)]
        yield " ".join(chosen).encode(), label


# What a result is held against.


def words(text: bytes) -> list[bytes]:
    """The different words of a text, in small letters."""
    return list(dict.fromkeys(re.findall(rb"[a-z']+", text.lower())))


def naive_bayes(train: Examples, test: Examples, features: Callable[[bytes], Iterable[Hashable]]) -> float:
    """Share of test documents whose label is that of the larger posterior, features independent and counted in train.

    Every count has one added; features that train does not have say nothing.
    """
    seen: tuple[Counter[Hashable], Counter[Hashable]] = Counter(), Counter()
    for text, label in _texts(train):
        seen[label].update(features(text))
    known = seen[0] | seen[1]
    against, in_favour = (count.total() + len(known) for count in seen)
    odds = {each: log((seen[1][each] + 1) / in_favour) - log((seen[0][each] + 1) / against) for each in known}
    counts = np.bincount(train.labels, minlength=2).tolist()
    prior = log((counts[1] + 1) / (counts[0] + 1))
    right = sum(
        (prior + sum(odds.get(each, 0.0) for each in features(text)) > 0) == label for text, label in _texts(test)
    )
    return right / len(test.labels)


def _texts(split: Examples) -> Iterator[tuple[bytes, int]]:
    for (start, end), label in zip(pairwise(split.offsets.tolist()), split.labels.tolist(), strict=True):
        yield split.tokens[start:end].tobytes(), label
