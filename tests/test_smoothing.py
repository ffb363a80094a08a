"""The smoothing of errors over entropies: a kernel regression with honest ends."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.studies.smoothing import NEAR, Curve, curve, gaps, grid, smooth


def points(seed: int, number: int = 60, heads: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    return draws.uniform(1, 7, number), draws.uniform(0, 1, number), draws.integers(heads, size=number)


def slow(entropy: np.ndarray, error: np.ndarray, at: np.ndarray) -> list[float]:
    """The formula of the paper, point by point, and the rule of the ends."""
    found = []
    for x in at:
        weights = [math.exp(-5 * (x - y) ** 2) for y in entropy]
        mean = sum(w * e for w, e in zip(weights, error, strict=True)) / sum(weights)
        found.append(mean if min(abs(x - y) for y in entropy) <= 2 / math.sqrt(10) else math.nan)
    return found


@pytest.mark.parametrize("seed", range(3))
def test_the_curve_is_the_weighted_mean_of_the_points(seed: int) -> None:
    entropy, error, heads = points(seed)
    at = grid(4096)
    expected = slow(entropy, error, at)
    assert np.isnan(expected).any()
    np.testing.assert_allclose(smooth(entropy, error, at), expected, rtol=1e-12)
    np.testing.assert_allclose(curve(entropy, error, heads, at).error, expected, rtol=1e-12)


def test_the_grid_goes_from_none_to_the_entropy_of_uniform_attention() -> None:
    assert (grid(4096)[0], grid(4096)[-1], len(grid(4096))) == (0, math.log(4096), 100)


def test_a_constant_stays_constant() -> None:
    entropy, _, heads = points(0)
    found = curve(entropy, np.full(len(entropy), 0.25), heads, grid(4096))
    for line in found[1:]:
        there = ~np.isnan(line)
        assert there.sum() > 60
        np.testing.assert_allclose(line[there], 0.25, rtol=1e-12)


def test_one_point_gives_its_value_near_it_and_nothing_elsewhere_and_no_band() -> None:
    found = curve(np.array([3.0]), np.array([0.4]), np.array([0]), np.array([3 - 1.01 * NEAR, 2.5, 3, 3 + 1.01 * NEAR]))
    np.testing.assert_allclose(found.error, [math.nan, 0.4, 0.4, math.nan], rtol=1e-12)
    assert np.isnan(found.low).all()
    assert np.isnan(found.high).all()


def test_many_points_far_away_make_no_curve() -> None:
    at = np.array([3.0])
    assert np.isnan(smooth(np.full(10**4, 3 + 1.01 * NEAR), np.ones(10**4), at)).all()


def test_no_points_make_no_curve() -> None:
    none = np.empty(0)
    found = curve(none, none, none, grid(64))
    assert all(np.isnan(line).all() for line in found[1:])


def test_the_order_of_the_points_does_not_matter() -> None:
    entropy, error, heads = points(1)
    order = np.random.default_rng(2).permutation(len(entropy))
    at = grid(4096)
    for one, other in zip(
        curve(entropy, error, heads, at), curve(entropy[order], error[order], heads[order], at), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-10)


def test_an_error_that_is_no_number_leaves_a_hole_and_changes_nothing_elsewhere() -> None:
    entropy, error, heads = points(3)
    error[np.argmin(np.abs(entropy - 4))] = math.inf
    worst = entropy[~np.isfinite(error)][0]
    at = grid(4096)
    hole = np.abs(at - worst) <= NEAR
    found = smooth(entropy, error, at)
    assert np.isnan(found[hole]).all()
    finite = np.isfinite(error)
    np.testing.assert_allclose(found[~hole], smooth(entropy[finite], error[finite], at)[~hole])
    np.testing.assert_array_equal(np.isnan(curve(entropy, error, heads, at).low[hole]), True)


def test_the_band_holds_the_curve_between_the_heads_and_is_the_same_every_time() -> None:
    entropy = np.tile(np.linspace(0.5, 8, 9), 2)
    heads = np.repeat([0, 1], 9)
    error = np.where(heads == 0, 0.2, 0.6)
    at = np.array([1.0, 3.0, 5.0])
    found = curve(entropy, error, heads, at)
    np.testing.assert_allclose([found.low, found.error, found.high], [[0.2] * 3, [0.4] * 3, [0.6] * 3])
    again = curve(entropy, error, heads, at)
    np.testing.assert_array_equal(found, again)


def test_the_band_narrows_with_the_number_of_heads() -> None:
    def width(heads: int) -> float:
        draws = np.random.default_rng(0)
        names = np.repeat(np.arange(heads), 9)
        found: Curve = curve(
            np.tile(np.linspace(0.5, 8, 9), heads), draws.normal(0.5, 0.1, heads)[names], names, grid(4096)[10:-10]
        )
        return float(np.mean(found.high - found.low))

    # A standard error of the mean falls with the square root of the number.
    assert 3 < width(10) / width(160) < 5.5


def test_gaps_are_where_no_point_lies_near() -> None:
    assert gaps(np.empty(0), 1, 2) == [(1, 2)]
    assert gaps(np.arange(0, 9, 1.0), 0.5, 8) == []
    np.testing.assert_allclose(
        gaps(np.array([2.0, math.nan, 5.0]), 1, 7), [(1, 2 - NEAR), (2 + NEAR, 5 - NEAR), (5 + NEAR, 7)]
    )
    assert gaps(np.array([10.0]), 1, 7) == [(1, 7)]
