"""Laws of the paired tests, against enumeration, the definition, and a simulation."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest

from lra.ours import Predictions, Row
from lra.paired import bootstrap, holm, mcnemar, merged, pairs
from tests.own_rows import guesses, row


@pytest.mark.parametrize("n", range(13))
def test_mcnemar_is_what_counting_every_outcome_gives(n: int) -> None:
    # Of all 2^n ways in which n items could fall to one of two equal models, those at least as one-sided as (b, n - b).
    outcomes = [sum(sides) for sides in itertools.product((0, 1), repeat=n)]
    for b in range(n + 1):
        as_extreme = sum(abs(2 * outcome - n) >= abs(2 * b - n) for outcome in outcomes)
        assert mcnemar(b, n - b) == pytest.approx(float(Fraction(as_extreme, 2**n)), rel=1e-12)


def exact(b: int, c: int) -> float:
    """The same in whole numbers, by Pascal's rule."""
    term = total = 1
    for i in range(1, min(b, c) + 1):
        term = term * (b + c - i + 1) // i
        total += term
    return float(min(Fraction(2 * total, 2 ** (b + c)), Fraction(1)))


@pytest.mark.parametrize(("b", "c"), [(40, 70), (300, 401), (700, 690), (1500, 1800), (0, 800), (5000, 5200)])
def test_mcnemar_keeps_its_digits_at_every_count(b: int, c: int) -> None:
    assert mcnemar(b, c) == pytest.approx(exact(b, c), rel=1e-9)
    assert mcnemar(b, c) == mcnemar(c, b)


def test_mcnemar_wants_counts() -> None:
    with pytest.raises(ValueError, match=r"mcnemar\(-1, 3\): needs counts from 0 on"):
        mcnemar(-1, 3)


def rejected_by_definition(p_values: list[float], level: float) -> set[int]:
    """Holm's steps in words: from the smallest on, each against level / (how many are left), until one is too large."""
    rejected: set[int] = set()
    left = sorted(range(len(p_values)), key=lambda i: p_values[i])
    while left and p_values[left[0]] <= level / len(left):
        rejected.add(left.pop(0))
    return rejected


def test_holm_rejects_what_its_definition_rejects() -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        p_values = (generator.random(generator.integers(1, 9)) ** 4).tolist()
        for level in (0.01, 0.05, 0.2):
            assert {i for i, p in enumerate(holm(p_values)) if p <= level} == rejected_by_definition(p_values, level)


def test_holm_of_a_known_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_p_values_of_several_seeds_merge_to_twice_their_mean() -> None:
    assert merged([0.03]) == 0.03
    assert merged([0.01, 0.02, 0.03]) == pytest.approx(0.04)
    assert merged([0.9, 0.8]) == 1.0


def test_the_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    # Gains of known mean: the first alone is right on 20%, the second alone on 15%.
    generator = np.random.default_rng(2)
    trials, inside = 300, 0
    for _ in range(trials):
        gains = generator.choice([1, -1, 0], p=[0.2, 0.15, 0.65], size=(1, 400)).astype(np.int8)
        low, high = bootstrap(gains, draws=500)
        inside += low <= 0.05 <= high
    # Five standard errors of 300 trials at 95%.
    assert abs(inside / trials - 0.95) < 5 * (0.95 * 0.05 / trials) ** 0.5


def test_drawing_kinds_is_drawing_items() -> None:
    generator = np.random.default_rng(3)
    gains = generator.choice([1, -1, 0], p=[0.2, 0.1, 0.7], size=(1, 500)).astype(np.int8)
    plain = [gains[0, generator.integers(0, 500, 500)].mean() for _ in range(4000)]
    low, high = bootstrap(gains, draws=4000)
    # An end of the interval is known to about 0.06 of its distance from the mean.
    assert (low, high) == pytest.approx(np.quantile(plain, [0.025, 0.975]).tolist(), abs=0.005)


def test_the_bootstrap_is_the_same_every_time_and_knows_of_seeds() -> None:
    gains = np.zeros((2, 1000), np.int8)
    gains[0, :100], gains[1, :100] = 1, -1
    assert bootstrap(gains) == bootstrap(gains)
    low, high = bootstrap(gains)
    # Two seeds that say the opposite: a resample may have one of them twice.
    assert low < -0.08
    assert high > 0.08
    assert bootstrap(gains[:1])[0] > 0.08


def given(*rows: Row) -> dict[str, Predictions]:
    return {one.name: guesses(one, shift=100 * i) for i, one in enumerate(rows)}


def test_pairs_are_of_one_seed_and_the_same_items() -> None:
    rows = [
        row(attn="softmax", correct=900),
        row(attn="mra2", correct=740),
        row(attn="mra2", seed=1, correct=740),
        row(attn="mra2_s", status="interrupted"),
        row(attn="linformer", data_sha256="a" * 64),
        row(attn="linformer", task="text", source="imdb"),
    ]
    found = given(*rows[:3], *rows[4:])
    (pair,) = pairs(rows, lambda one: found[one.name])
    assert (pair.first, pair.second, pair.seeds, pair.n) == ("softmax", "mra2", (0,), 2000)
    # Right: softmax 0 to 899, MRA-2 100 to 839.
    assert (pair.only_first, pair.only_second) == ((160,), (0,))
    assert pair.difference == pytest.approx(8.0)
    assert pair.low < 8 < pair.high
    assert pair.p == pair.corrected == mcnemar(160, 0)
    assert pair.real


def test_pairs_of_a_task_are_corrected_together_and_seeds_are_averaged() -> None:
    rows = [row(attn=attn, seed=seed, correct=c) for attn, c in (("a", 700), ("b", 720), ("c", 701)) for seed in (0, 1)]
    found = {one.name: guesses(one) for one in rows}
    table = pairs(rows, lambda one: found[one.name])
    assert [(pair.first, pair.second) for pair in table] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert [pair.seeds for pair in table] == [(0, 1)] * 3
    assert [pair.difference for pair in table] == pytest.approx([-1.0, -0.05, 0.95])
    assert [pair.p for pair in table] == pytest.approx([2 * mcnemar(0, 20), 1.0, 2 * mcnemar(19, 0)])
    assert [pair.corrected for pair in table] == holm([pair.p for pair in table])


def test_the_same_data_with_other_labels_is_named() -> None:
    rows = [row(attn="softmax"), row(attn="mra2")]
    found = given(*rows)
    found[rows[1].name] = found[rows[1].name]._replace(labels=1 - found[rows[1].name].labels)
    with pytest.raises(ValueError, match="mlpen/listops/mra2/seed0 and mlpen/listops/softmax/seed0 say the same"):
        pairs(rows, lambda one: found[one.name])
