"""Paired tests of two variants on the same test items: is the difference more than the luck of these items?

A pair of runs of one seed tells of the two trained models; how far other seeds would go, runs of several seeds tell.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from lra.intervals import LEVEL
from lra.ours import Predictions, Row

# What a corrected p-value must be below.
ALPHA = 1 - LEVEL
# Of the bootstrap: resamples, and the seed that makes them the same every time.
DRAWS, SEED = 10_000, 0


def mcnemar(only_first: int, only_second: int) -> float:
    """The exact two-sided p-value of McNemar's test, from the items that one alone of the two got right.

    Items on which both are right, or both wrong, say nothing. If the two were equally good, each of the others would be
    the first's with probability 1/2: twice the smaller tail of that binomial, at most 1. It is summed from its largest
    term down, each term a ratio of the one before, which loses nothing at any count.
    McNemar, "Note on the sampling error of the difference between correlated proportions or percentages", 1947.
    """
    if only_first < 0 or only_second < 0:
        raise ValueError(f"mcnemar({only_first}, {only_second}): needs counts from 0 on")
    n, k = only_first + only_second, min(only_first, only_second)
    largest = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
    total = term = 1.0
    for i in range(k, 0, -1):
        term *= i / (n - i + 1)
        total += term
        if term < 1e-17 * total:
            break
    return min(1.0, 2 * total * math.exp(largest))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number: among those below a level, any is false with less than that chance.

    The smallest is multiplied by how many there are, the next by one less and so on; none is below the one before it.
    No independence is asked for. Holm, "A simple sequentially rejective multiple test procedure", 1979.
    """
    corrected = [1.0] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, (len(p_values) - rank) * p_values[i])
        corrected[i] = min(1.0, highest)
    return corrected


def merged(p_values: Sequence[float]) -> float:
    """One p-value of several of one hypothesis, whatever their dependence: twice their mean; of one, itself.

    Vovk and Wang, "Combining p-values via averaging", 2020.
    """
    return p_values[0] if len(p_values) == 1 else min(1.0, 2 * math.fsum(p_values) / len(p_values))


def bootstrap(gains: np.ndarray, draws: int = DRAWS, seed: int = SEED) -> tuple[float, float]:
    """The percentile interval (low, high) of the mean gain at LEVEL, over items, and over seeds if there are several.

    gains: (S, E) for S seeds and E items: 1 where the first alone is right, -1 where the second alone is, else 0.
    Efron, "Bootstrap methods: another look at the jackknife", 1979. Items whose gains are the same in every seed are
    one kind, and to draw E items is to draw how many there are of each kind: the same distribution, without E draws.
    """
    seeds, items = gains.shape
    kinds, counts = np.unique(gains, axis=1, return_counts=True)  # (S, kinds), (kinds,)
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(items, counts / items, size=draws) @ kinds.T.astype(np.int64)  # (draws, S)
    weights = generator.multinomial(seeds, [1 / seeds] * seeds, size=draws)  # (draws, S)
    means = (drawn * weights).sum(1) / (seeds * items)
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2]).tolist()
    return low, high


class Pair(NamedTuple):
    """Two variants on the same items, seed by seed. Accuracies and their difference (first - second) in points.

    only_first, only_second: by seed, the items that one alone got right. p: of McNemar's tests, merged over seeds.
    corrected: by Holm over all pairs of the same items.
    """

    protocol: str
    task: str
    source: str
    data_sha256: str
    first: str
    second: str
    seeds: tuple[int, ...]
    n: int
    difference: float
    low: float
    high: float
    only_first: tuple[int, ...]
    only_second: tuple[int, ...]
    p: float
    corrected: float

    @property
    def real(self) -> bool:
        """Whether the two models differ by more than the luck of the items, among all pairs that were asked about."""
        return self.corrected < ALPHA


def pairs(rows: Sequence[Row], predictions: Callable[[Row], Predictions]) -> list[Pair]:
    """Every two variants with finished runs of a common seed on the same items, in the order of `rows`.

    predictions: of a row. Raises ValueError where runs of the same data have different labels.
    """
    found: list[Pair] = []
    same_items: dict[tuple[str, ...], dict[str, dict[int, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row.status == "finished":
            same_items[row.protocol, row.task, row.source, row.data_sha256][row.attn][row.seed] = row
    for (protocol, task, source, data), by_attn in same_items.items():
        right = _right(by_attn, predictions)
        group = []
        for first, second in itertools.combinations(by_attn, 2):
            seeds = sorted(by_attn[first].keys() & by_attn[second].keys())
            if seeds:
                ours = np.stack([right[first, seed] for seed in seeds]).astype(np.int8)
                gains = ours - np.stack([right[second, seed] for seed in seeds])
                group.append(_pair((protocol, task, source, data, first, second), tuple(seeds), gains))
        corrected = holm([pair.p for pair in group])
        found += [pair._replace(corrected=p) for pair, p in zip(group, corrected, strict=True)]
    return found


def _right(
    by_attn: dict[str, dict[int, Row]], predictions: Callable[[Row], Predictions]
) -> dict[tuple[str, int], np.ndarray]:
    """(E,) bool by attention and seed: which items were right."""
    right: dict[tuple[str, int], np.ndarray] = {}
    known: tuple[str, np.ndarray] | None = None
    for attn, by_seed in by_attn.items():
        for seed, row in by_seed.items():
            found = predictions(row)
            known = known or (row.name, found.labels)
            if not np.array_equal(found.labels, known[1]):
                raise ValueError(f"{row.name} and {known[0]} say the same data_sha256 and have different labels")
            right[attn, seed] = found.predictions == found.labels
    return right


def _pair(names: tuple[str, str, str, str, str, str], seeds: tuple[int, ...], gains: np.ndarray) -> Pair:
    low, high = bootstrap(gains)
    only_first, only_second = ((gains == sign).sum(1).tolist() for sign in (1, -1))
    p = merged([mcnemar(*counts) for counts in zip(only_first, only_second, strict=True)])
    return Pair(
        *names,
        seeds=seeds,
        n=gains.shape[1],
        difference=100 * float(gains.mean()),
        low=100 * low,
        high=100 * high,
        only_first=tuple(only_first),
        only_second=tuple(only_second),
        p=p,
        corrected=p,
    )
