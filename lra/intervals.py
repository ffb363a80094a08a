"""95% intervals for accuracies: Wilson's for one run's test set, Student's over the seeds of several runs."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Sequence

LEVEL = 0.95
Z = statistics.NormalDist().inv_cdf(0.5 + LEVEL / 2)


def wilson(correct: float, n: int) -> tuple[float, float]:
    """Wilson's score interval (low, high) of a proportion, of which `correct` out of `n` were seen.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927.
    """
    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"wilson({correct}, {n}): needs n >= 1 and 0 <= correct <= n")
    share = correct / n
    centre = share + Z**2 / (2 * n)
    half = Z * math.sqrt(share * (1 - share) / n + (Z / (2 * n)) ** 2)
    scale = 1 + Z**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def student_interval(values: Sequence[float]) -> tuple[float, float]:
    """Student's interval (low, high) of the mean of two or more `values`, taken as independent normal draws."""
    if len(values) < 2:
        raise ValueError(f"student_interval of {len(values)} value(s): needs at least 2")
    mean = statistics.fmean(values)
    half = student_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


@functools.cache
def student_quantile(df: int) -> float:
    """The t for which |T| <= t has probability LEVEL at `df` degrees of freedom: 12.706 for 1, 2.776 for 4."""
    if df < 1:
        raise ValueError(f"student_quantile({df}): needs df >= 1")
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if student_mass(middle, df) < LEVEL:
            low = middle
        else:
            high = middle
    return math.sqrt(df) * math.tan(low)


def student_mass(angle: float, df: int) -> float:
    """P(|T| <= t) for t = sqrt(df) tan(angle): a finite sum, since df is whole.

    Abramowitz and Stegun, "Handbook of Mathematical Functions", 1964, formulas 26.7.3 and 26.7.4.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    if df % 2 == 0:
        return sine * _cosine_series(cosine, range(1, df - 1, 2), 1.0)
    if df == 1:
        return 2 * angle / math.pi
    return 2 / math.pi * (angle + sine * _cosine_series(cosine, range(2, df - 1, 2), cosine))


def _cosine_series(cosine: float, odds: range, term: float) -> float:
    """term (1 + a/(a+1) cos^2 + a/(a+1) (a+2)/(a+3) cos^4 + ...) with a running through `odds`."""
    total = term
    for a in odds:
        term *= a / (a + 1) * cosine**2
        total += term
    return total
