"""Error as a smooth function of entropy: the Gaussian kernel regression of the MRA paper, and how far to trust it.

A curve is the mean of all errors, each with the weight exp(-5 d^2), d its distance in entropy. There is a curve only
where a point lies near, within two standard deviations of that weight: elsewhere the same formula would repeat the
error of points far away, however many. Where a point that lies near has an error that is no number, there is none.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

SHARPNESS = 5.0
# Two standard deviations of exp(-5 d^2), nats.
NEAR = 2 / math.sqrt(2 * SHARPNESS)
POINTS = 100
# Of the band: the share of resamples within it, how many there are, and their seed.
SHARE, RESAMPLES, SEED = 0.95, 1000, 0


class Curve(NamedTuple):
    """Arrays of one length P: entropies in nats, the smoothed error there, and its band; nan where there is none."""

    entropy: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray


def grid(n: int) -> np.ndarray:
    """(100,) entropies from 0 to that of uniform attention over n tokens."""
    return np.linspace(0, math.log(n), POINTS)


def smooth(entropy: np.ndarray, error: np.ndarray, at: np.ndarray) -> np.ndarray:
    """(P,) smoothed errors at the entropies `at`, nan where there is no curve; entropy and error (M,) of the points."""
    sums, weights, near, wrong = _of_groups(entropy, error, np.zeros(len(entropy)), at)
    return _means(sums.sum(0), weights.sum(0), near.any(0) & ~wrong)


def curve(entropy: np.ndarray, error: np.ndarray, heads: np.ndarray, at: np.ndarray) -> Curve:
    """The curve and its band: 95% of the curves of as many heads, drawn from these with replacement.

    entropy, error (M,) of the points; heads (M,) names the head of each, whose points at all temperatures stay
    together, since they depend on each other. There is no band where fewer than two heads have a point near.
    """
    sums, weights, near, wrong = _of_groups(entropy, error, heads, at)
    there = near.any(0) & ~wrong
    middle = _means(sums.sum(0), weights.sum(0), there)
    low, high = np.full((2, len(at)), np.nan)
    number = len(sums)
    banded = there & (near.sum(0) > 1)
    if banded.any():
        times = np.random.default_rng(SEED).multinomial(number, np.full(number, 1 / number), RESAMPLES)
        # A resample without any head near has no curve there, and no say.
        drawn = _means(times @ sums[:, banded], times @ weights[:, banded], times @ near[:, banded] > 0)
        low[banded], high[banded] = np.nanquantile(drawn, [(1 - SHARE) / 2, (1 + SHARE) / 2], axis=0)
    return Curve(at, middle, low, high)


def gaps(entropy: np.ndarray, first: float, last: float) -> list[tuple[float, float]]:
    """The parts of [first, last] where no point lies near, each from where to where."""
    found, reached = [], first
    for point in sorted(float(x) for x in entropy if np.isfinite(x)):
        if reached < min(point - NEAR, last):
            found.append((reached, min(point - NEAR, last)))
        reached = max(reached, point + NEAR)
    return [*found, (reached, last)] if reached < last else found


def _of_groups(
    entropy: np.ndarray, error: np.ndarray, groups: np.ndarray, at: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each group, (G, P): the weighted sum of errors, the sum of weights, whether one of its points lies near.
    And (P,) whether one that lies near has an error that is no number."""
    entropy, error, at = (np.asarray(x, np.float64) for x in (entropy, error, at))
    distance = np.abs(at - entropy[:, None])  # (M, P)
    finite = np.isfinite(error)
    weight = np.exp(-SHARPNESS * distance**2) * finite[:, None]
    close = distance <= NEAR
    names, index = np.unique(groups, return_inverse=True)
    belongs = (index[None, :] == np.arange(len(names))[:, None]).astype(np.float64)  # (G, M)
    weighted = weight * np.where(finite, error, 0)[:, None]
    return belongs @ weighted, belongs @ weight, belongs @ close > 0, np.any(close & ~finite[:, None], axis=0)


def _means(sums: np.ndarray, weights: np.ndarray, there: np.ndarray) -> np.ndarray:
    return np.divide(sums, weights, out=np.full(np.shape(sums), np.nan), where=there & (weights > 0))
