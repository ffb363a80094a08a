"""What a sceptic asks about pairs of documents: what train gives away, and what can be guessed without a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from lra.tasks.base import Examples

# Byte bigrams share 2^11 counters, so that the counts of all documents fit into memory.
COUNTER_BITS = 11
PAIRS_PER_BLOCK = 4_096
THRESHOLDS = 256


def questions(train: Examples, val: Examples, test: Examples) -> list[tuple[str, str]]:
    """(question, answer) about three splits of pairs. A document is its text, under whatever index it stands."""
    splits = {"train": train, "val": val, "test": test}
    texts = dict(zip(splits, number(splits), strict=True))
    pairs = {name: texts[name][_pairs(split)] for name, split in splits.items()}
    answers = [(f"pairs of a document, {name}", _uses(split)) for name, split in splits.items()]
    seen = np.isin(texts["test"], texts["train"]).mean()
    known = np.bincount(np.isin(pairs["test"], texts["train"]).sum(axis=1), minlength=3) / len(test.labels)
    by_text = texts["train"].max() + 1, pairs["train"], train.labels, pairs["test"]
    return [
        *answers,
        ("share of test's documents that are in train", f"{seen:.1%}"),
        ("test pairs of which 0, 1, 2 documents are in train", ", ".join(f"{share:.1%}" for share in known)),
        (
            "accuracy on test of the labels that the two documents have in train",
            f"{_recall(*by_text, test.labels):.1%}",
        ),
        (
            "accuracy on test of the cosine of byte-bigram counts, threshold fitted on train",
            f"{_alike(train, test):.1%}",
        ),
    ]


def _pairs(split: Examples) -> np.ndarray:
    assert split.pairs is not None, "these are questions about pairs"
    return split.pairs


def number(splits: Mapping[str, Examples]) -> list[np.ndarray]:
    """For each split (M,) int64: the number of each document's text, the same for the same text in every split."""
    numbers: dict[bytes, int] = {}
    return [
        np.array(
            [
                numbers.setdefault(hashlib.sha256(split.tokens[start:end].data).digest(), len(numbers))
                for start, end in pairwise(split.offsets.tolist())
            ]
        )
        for split in splits.values()
    ]


def _uses(split: Examples) -> str:
    uses = np.bincount(_pairs(split).ravel(), minlength=len(split.offsets) - 1)
    return f"{uses.mean():.1f} on average, {uses.min():,} to {uses.max():,}"


def _recall(count: int, pairs: np.ndarray, labels: np.ndarray, asked: np.ndarray, expected: np.ndarray) -> float:
    """Accuracy of guessing from the mean label that each document has in the pairs of train, and nothing else.

    count: the documents of train have numbers below it.
    """
    uses = np.bincount(pairs.ravel(), minlength=count)
    # A document that train does not have is as likely as any to have label 1.
    mean = np.append(
        np.divide(_sum(pairs, labels, count), uses, where=uses > 0, out=np.full(count, labels.mean())), labels.mean()
    )
    scores = mean[np.minimum(asked, count)].mean(axis=1)
    return float(((scores >= 0.5) == expected).mean())


def _sum(pairs: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    return np.bincount(pairs.ravel(), weights=np.repeat(labels, 2), minlength=count)


def _alike(train: Examples, test: Examples) -> float:
    """Accuracy of calling a pair 1 where its documents have like bigrams, by the threshold that is best on train."""
    counts = bigrams(train)
    mean = counts.mean(axis=0)
    scores = cosines(counts - mean, _pairs(train))
    thresholds = np.quantile(scores, np.linspace(0, 1, THRESHOLDS))
    best = max(thresholds, key=lambda threshold: ((scores >= threshold) == train.labels).sum())
    return float(((cosines(bigrams(test) - mean, _pairs(test)) >= best) == test.labels).mean())


def bigrams(split: Examples) -> np.ndarray:
    """(M, 2^COUNTER_BITS) float32: the square root of how often each document has each group of byte bigrams."""
    counts = np.empty((len(split.offsets) - 1, 1 << COUNTER_BITS), dtype=np.float32)
    for row, (start, end) in zip(counts, pairwise(split.offsets.tolist()), strict=True):
        tokens = split.tokens[start:end].astype(np.uint16)
        # The high bits of a product with 2^16 / golden ratio spread neighbours apart.
        group = (tokens[:-1] << 8 | tokens[1:]) * np.uint16(40_503) >> (16 - COUNTER_BITS)
        np.sqrt(np.bincount(group, minlength=len(row)), out=row, casting="unsafe")
    return counts


def cosines(vectors: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """(E,) float64: the cosine of the two vectors of each pair, 0 where one of them is zero."""
    squares = np.einsum("md,md->m", vectors, vectors)
    result = np.zeros(len(pairs))
    for start in range(0, len(pairs), PAIRS_PER_BLOCK):
        first, second = pairs[start : start + PAIRS_PER_BLOCK].T
        product = np.einsum("ed,ed->e", vectors[first], vectors[second])
        size = np.sqrt(squares[first] * squares[second])
        np.divide(product, size, where=size > 0, out=result[start : start + PAIRS_PER_BLOCK])
    return result
