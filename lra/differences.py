"""Which differences of a published table are real at all, from its accuracies and the size of the test set alone.

Nobody published which items were right, so how two models' mistakes coincide is not known; but it is bounded. With
accuracies a and b of n items, the items that one alone got right are at least |a - b| n, all on one side (the most
favourable case of a paired test), and at most what is left when the two are right together as rarely as a + b allows
(the least favourable). All of it is about the models behind the table: it says nothing of other seeds.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lra.paired import ALPHA, holm, mcnemar
from lra.published import OWN_PAPER, Published

# Test items of the benchmark. Public code drops the last batch that is not full: 16 fewer of ListOps, 8 of Text.
TEST_ITEMS = {"listops": 2_000, "text": 25_000, "retrieval": 17_437, "image": 10_000, "pathfinder": 20_000}
# What can be said of a difference, and its sign in a matrix.
SURVIVES, DEPENDS, CANNOT = "survives", "depends on the pairing", "cannot"
SIGNS = {SURVIVES: "#", DEPENDS: "+", CANNOT: "."}


def unpaired(first: float, second: float, n: int) -> float:
    """The two-sided p-value of two proportions, each of `n` items of its own, with their pooled variance.

    Pearson, "On the criterion that a given system of deviations ... can be reasonably supposed to have arisen from
    random sampling", 1900: the square of z is his chi-squared of the 2 x 2 table.
    """
    share = (first + second) / 2
    spread = math.sqrt(2 * share * (1 - share) / n)
    return math.erfc(abs(first - second) / spread / math.sqrt(2)) if spread else 1.0


def most_favourable(first: float, second: float, n: int) -> float:
    """McNemar's p-value where the worse model is right on no item that the better one is wrong on."""
    return mcnemar(round(abs(first - second) * n), 0)


def least_favourable(first: float, second: float, n: int) -> float:
    """McNemar's p-value where the two are right together on as few items as can be."""
    right, other = round(first * n), round(second * n)
    together = max(0, right + other - n)
    return mcnemar(right - together, other - together)


class Difference(NamedTuple):
    """Two attentions of one published table; the p-values are corrected by Holm over all pairs of the task."""

    first: str
    second: str
    points: float
    unpaired: float
    most_favourable: float
    least_favourable: float

    @property
    def kind(self) -> str:
        """SURVIVES an unpaired test; CANNOT, even if every pair were at its most favourable; or DEPENDS."""
        if self.unpaired < ALPHA:
            return SURVIVES
        return DEPENDS if self.most_favourable < ALPHA else CANNOT


class Printed(NamedTuple):
    """One task of one source's table: accuracies in percent by attention, worst first, and every difference."""

    source: str
    url: str
    protocol: str
    task: str
    n: int
    statuses: tuple[str, ...]
    accuracies: dict[str, float]
    differences: list[Difference]

    def count(self, kind: str) -> int:
        return sum(difference.kind == kind for difference in self.differences)

    @property
    def whatever(self) -> int:
        """How many differences are significant however the mistakes of all the models coincide."""
        return sum(difference.least_favourable < ALPHA for difference in self.differences)

    def smallest(self, test: Callable[[float, float, int], float], level: float = ALPHA) -> float:
        """The smallest difference in points, around the table's median accuracy, whose p-value is below `level`."""
        middle = statistics.median(self.accuracies.values()) / 100
        low, high = 1, round(2 * min(middle, 1 - middle) * self.n)
        # The p-value falls as the difference grows, but for the rounding of halves of items.
        while low < high:
            items = (low + high) // 2
            half = items / self.n / 2
            if test(middle + half, middle - half, self.n) < level:
                high = items
            else:
                low = items + 1
        return 100 * low / self.n


def printed(published: Sequence[Published]) -> list[Printed]:
    """The tables of every source with two models or more of a task, of the protocols that runs can follow.

    Values of two sources are never mixed. A model that is no variant here has the name that the paper gives it.
    """
    tables: dict[tuple[str, str, str, str], list[Published]] = defaultdict(list)
    for value in published:
        if value.protocol in OWN_PAPER and value.accuracy is not None and value.task in TEST_ITEMS:
            tables[value.source, value.url, value.protocol, value.task].append(value)
    found = []
    for (source, url, protocol, task), values in tables.items():
        accuracies = {value.attn or value.model: value.accuracy for value in values if value.accuracy is not None}
        if len(accuracies) > 1:
            ordered = dict(sorted(accuracies.items(), key=lambda pair: (pair[1], pair[0])))
            statuses = tuple(sorted({value.status for value in values}))
            n = TEST_ITEMS[task]
            found.append(Printed(source, url, protocol, task, n, statuses, ordered, differences(ordered, n)))
    return sorted(found, key=lambda table: list(TEST_ITEMS).index(table.task))


def differences(accuracies: dict[str, float], n: int) -> list[Difference]:
    """Every pair of `accuracies` (percent) on a test set of `n` items."""
    both = list(itertools.combinations(accuracies, 2))
    shares = [(accuracies[first] / 100, accuracies[second] / 100) for first, second in both]
    tests = (unpaired, most_favourable, least_favourable)
    corrected = [holm([test(first, second, n) for first, second in shares]) for test in tests]
    return [
        Difference(first, second, abs(accuracies[first] - accuracies[second]), *p_values)
        for (first, second), *p_values in zip(both, *corrected, strict=True)
    ]
