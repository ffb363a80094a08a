"""Laws of the intervals: known values, symmetry, the printed tables."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lra.intervals import student_interval, student_quantile, wilson


def test_wilson_agrees_with_known_values() -> None:
    assert wilson(744, 2000) == pytest.approx((0.351, 0.393), abs=5e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(counts: tuple[int, int]) -> None:
    correct, n = counts
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n + 1e-12
    assert correct / n - 1e-12 <= high <= 1
    assert wilson(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(ValueError, match="needs n >= 1"):
        wilson(correct, n)


# Two-sided 95% points as every printed t table has them, df 1 to 30.
T_TABLE = """12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228 2.201 2.179 2.160 2.145 2.131
2.120 2.110 2.101 2.093 2.086 2.080 2.074 2.069 2.064 2.060 2.056 2.052 2.048 2.045 2.042"""


@pytest.mark.parametrize(("df", "quantile"), list(enumerate(map(float, T_TABLE.split()), start=1)))
def test_student_quantile_agrees_with_the_printed_table(df: int, quantile: float) -> None:
    assert student_quantile(df) == pytest.approx(quantile, abs=5.1e-4)


def test_student_quantile_falls_to_the_normal_one() -> None:
    assert student_quantile(120) == pytest.approx(1.980, abs=5e-4)
    assert student_quantile(10_000) == pytest.approx(1.9602, abs=1e-4)


def test_student_interval_agrees_with_a_worked_example() -> None:
    low, high = student_interval([0.36, 0.37, 0.38])
    assert (low, high) == pytest.approx((0.37 - 4.3027 * 0.01 / 3**0.5, 0.37 + 4.3027 * 0.01 / 3**0.5), abs=1e-6)
    assert student_interval([0.5, 0.5]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="at least 2"):
        student_interval([0.5])
