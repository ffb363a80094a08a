"""What logits are multiplied by, so that heads of any entropy become heads of every entropy.

The MRA paper takes nine powers of two. Where heads differ, their entropies at these fill the range. Where heads are
alike, as generated ones are, nine leave gaps: then more are put between them until no gap is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.studies.smoothing import gaps
from lra.words import WordError

NINE = tuple(2.0**power for power in range(-4, 5))
# The range that should be covered: from LEAST nats to BELOW under the entropy of uniform attention.
LEAST, BELOW = 0.5, 0.1
MOST_ADDED = 12

Entropies = dict[float, np.ndarray]


def temperatures(text: str) -> list[float]:
    """The numbers in a list with commas, in their order, each once: 0.5 or 1/2; WordError unless all are above 0."""
    return list(dict.fromkeys(temperature(word) for word in text.split(",")))


def temperature(word: str) -> float:
    over, slash, under = word.partition("/")
    try:
        value = float(over) / (float(under) if slash else 1)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    # What is too large for float32, or too small, is no temperature of float32 inputs.
    if not 1e-6 <= value <= 1e6:
        raise WordError(f"temperatures={word} must be a number from 1e-6 to 1e6, such as 0.5 or 1/2")
    return float(f"{value:.6g}")


def covered(n: int) -> tuple[float, float]:
    """The entropies of n tokens that points should cover, nats; an empty range where n is small."""
    return LEAST, max(math.log(n) - BELOW, LEAST)


def heat(
    entropies: Callable[[float], np.ndarray], n: int, given: Sequence[float] | None
) -> tuple[list[float], Entropies]:
    """The temperatures, ascending, and the entropies at each in nats: those that are given, or NINE and what is put
    between them.

    `entropies` gives those of all heads at a temperature, `n` the number of real tokens. The search ends with
    MOST_ADDED more, gaps or none.
    """
    found: Entropies = {each: entropies(each) for each in (NINE if given is None else given)}
    while given is None and len(found) < len(NINE) + MOST_ADDED:
        between = next((s for gap in gaps_of(found, n) if (s := _between(gap, found)) is not None), None)
        if between is None:
            break
        found[between] = entropies(between)
    return sorted(found), found


def gaps_of(found: Entropies, n: int) -> list[tuple[float, float]]:
    """The parts of the range that lie near no point."""
    points = np.concatenate([np.ravel(values) for values in found.values()]) if found else np.empty(0)
    return gaps(points, *covered(n))


def _between(gap: tuple[float, float], found: Entropies) -> float | None:
    """A temperature whose entropies lie in a gap: between two neighbours whose entropies lie on either side of it."""
    middle, order = sum(gap) / 2, sorted(found)
    for low, high in zip(order, order[1:], strict=False):
        # A head that crosses the gap from one temperature to the next.
        crosses = (found[low] > middle) & (found[high] < middle)
        between = temperature(f"{math.sqrt(low * high):.4g}")
        if crosses.any() and low < between < high:
            return between
    return None
