"""Laws of the verdicts, and of what a published table can show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lra.cells import cells
from lra.differences import (
    CANNOT,
    DEPENDS,
    SURVIVES,
    TEST_ITEMS,
    differences,
    least_favourable,
    most_favourable,
    printed,
    unpaired,
)
from lra.intervals import student_interval, wilson
from lra.ours import Row
from lra.outcomes import collect
from lra.paired import mcnemar
from lra.published import Published, read_published
from lra.tasks import listops, pathfinder, retrieval, text
from lra.verdicts import (
    ALONE,
    BETTER,
    FAILED,
    NOT_RUN,
    REPRODUCED,
    UNVERIFIED,
    WORSE,
    Standing,
    counted,
    recipe_steps,
    standings,
)
from tests.own_rows import row
from tests.results import published, write_run

DATA = Path(__file__).resolve().parent.parent / "docs" / "data.md"


def standing(*rows: Row, **value: object) -> Standing:
    (one,) = standings(rows, [published(status="read", **value)], "mlpen")
    return one


@pytest.mark.parametrize(
    ("correct", "verdict"),
    [
        (744, REPRODUCED),  # 37.2, as published
        (704, REPRODUCED),  # 35.2: its interval, 33.1 to 37.3, has 37.2
        (690, WORSE),  # 34.5: 32.4 to 36.6
        (784, REPRODUCED),  # 39.2: 37.1 to 41.4
        (800, BETTER),  # 40.0: 37.9 to 42.2
    ],
)
def test_a_verdict_is_about_the_interval(correct: int, verdict: str) -> None:
    assert standing(row(correct=correct)).verdict == verdict


@pytest.mark.parametrize(("correct", "verdict"), [(14_640, REPRODUCED), (14_639, WORSE), (15_041, BETTER)])
def test_a_point_is_close_enough_where_the_interval_is_narrower(correct: int, verdict: str) -> None:
    one = row(task="pathfinder", n=20_000, correct=correct)
    assert standing(one, task="pathfinder", accuracy=74.2).verdict == verdict


def test_an_unverified_value_gets_a_difference_and_no_claim() -> None:
    (one,) = standings([row(correct=200)], [published(status="unverified")], "mlpen")
    assert one.verdict == UNVERIFIED
    assert one.difference(one.value) == pytest.approx(-27.2)


def test_what_was_not_run_failed_or_never_published_says_so() -> None:
    stopped = row(status="interrupted", steps=1234)
    assert standing().verdict == NOT_RUN
    assert (standing(stopped).verdict, standing(stopped).progress) == (
        NOT_RUN,
        "seed 0 interrupted at step 1,234 of 5,000",
    )
    assert standing(row(status="out_of_memory", steps=3)).progress == "seed 0 out of memory at step 3 of 5,000"
    assert standing(row(status="diverged")).verdict == FAILED
    (alone,) = standings([row(attn="adamra")], [], "mlpen")
    assert (alone.verdict, alone.difference(alone.value)) == (ALONE, None)
    # One seed that finished is a number; the others are told beside it.
    both = standing(row(), row(seed=1, status="diverged", steps=70))
    assert (both.verdict, both.progress) == (REPRODUCED, "seed 1 diverged at step 70 of 5,000")


def test_a_checked_value_counts_before_the_papers_own_unchecked_one_and_the_others_are_listed() -> None:
    own = published(accuracy=37.2)
    other = published(source="Other paper", url="https://arxiv.org/abs/2102.03902", accuracy=30.0, status="read")
    elsewhere = published(protocol="google", accuracy=1.0, status="read")
    (one,) = standings([row(correct=744)], [own, other, elsewhere], "mlpen")
    assert (one.value, one.others) == (other, (own,))
    assert (one.verdict, one.against(own)) == (BETTER, UNVERIFIED)
    checked = published(accuracy=37.2, status="read")
    (one,) = standings([row(correct=744)], [other, checked], "mlpen")
    assert (one.value, one.others) == (checked, (other,))


def test_one_seed_has_the_interval_of_make_compare(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0", accuracy=0.37)
    (cell,) = cells(collect(tmp_path)[0])
    one = standing(row(correct=740))
    assert cell.interval is not None
    assert one.interval is not None
    assert one.interval[:2] == pytest.approx(cell.interval[:2])
    assert one.interval.kind == "Wilson"
    assert one.accuracy == pytest.approx(cell.accuracy)


@pytest.mark.parametrize(("correct", "kind"), [((740, 741, 742), "Wilson"), ((500, 740, 980), "t")])
def test_seeds_that_agree_do_not_make_the_test_set_larger(correct: tuple[int, ...], kind: str) -> None:
    one = standing(*(row(seed=seed, correct=right) for seed, right in enumerate(correct)))
    shares = [right / 2000 for right in correct]
    ends = zip(wilson(sum(correct) / 3, 2000), student_interval(shares), strict=True)
    low, high = (100 * choose(both) for choose, both in zip((min, max), ends, strict=True))
    assert one.interval is not None
    assert one.interval[:2] == pytest.approx((low, high))
    assert one.interval.kind == kind


def test_runs_on_other_data_are_a_cell_of_their_own_and_devices_are_kept_apart() -> None:
    rows = [row(data_sha256="a" * 64), row(seed=1), row(seed=2, device="another")]
    first, second = standings(rows, [published()], "mlpen")
    assert ([r.seed for r in first.rows], [r.seed for r in second.rows]) == ([1, 2], [0])
    assert {device: len(found) for device, found in first.by_device().items()} == {rows[0].device: 1, "another": 1}


def test_cells_come_as_in_make_compare_and_are_counted() -> None:
    values = [
        published(attn=attn, task=task) for task in ("text", "listops") for attn in ("yoso", "softmax", "bigbird")
    ]
    table = standings([row(attn="bigbird")], values, "mlpen")
    assert [(one.task, one.attn) for one in table] == [
        (task, attn) for task in ("listops", "text") for attn in ("softmax", "bigbird", "yoso")
    ]
    found = counted(table)
    assert (found[UNVERIFIED], found[NOT_RUN], sum(found.values())) == (1, 5, 6)


def test_the_steps_of_a_recipe_are_those_of_its_file() -> None:
    assert [recipe_steps("mlpen", task) for task in ("listops", "pathfinder")] == [5000, 62_400]


# What a published table can show


def test_the_items_of_a_test_set_are_those_that_the_data_have() -> None:
    counts = {"listops": listops.COUNTS, "retrieval": retrieval.COUNTS, "pathfinder": pathfinder.COUNTS}
    counts["text"] = text.PUBLISHED["clean"]
    assert {task: TEST_ITEMS[task] for task in counts} == {task: sizes["test"] for task, sizes in counts.items()}
    said = DATA.read_text()
    for task, n in TEST_ITEMS.items():
        assert re.search(rf"^\| `{task}`.*\| [\d,]+, [\d,]+, {n:,} [(|]", said, re.MULTILINE), task


def test_two_proportions_are_told_apart_as_chi_squared_tells_them() -> None:
    # 2 x 2 table (60, 40; 45, 55): chi-squared 4.5113 with one degree of freedom, p 0.0337.
    assert unpaired(0.60, 0.45, 100) == pytest.approx(0.03367, abs=1e-4)
    assert unpaired(0.3, 0.3, 50) == 1.0
    assert unpaired(1.0, 1.0, 50) == 1.0


@pytest.mark.parametrize(("first", "second"), [(7, 4), (9, 8), (3, 1), (6, 6)])
def test_every_way_that_mistakes_can_coincide_is_between_the_two_bounds(first: int, second: int) -> None:
    n = 10
    for together in range(max(0, first + second - n), min(first, second) + 1):
        p = mcnemar(first - together, second - together)
        best, worst = most_favourable(first / n, second / n, n), least_favourable(first / n, second / n, n)
        assert best - 1e-12 <= p <= worst + 1e-12


def test_differences_are_sorted_by_what_can_be_said_of_them() -> None:
    kinds = {
        (found.first, found.second): found.kind
        for found in differences({"low": 24.7, "middle": 36.3, "near": 37.4, "same": 37.45}, 2000)
    }
    assert kinds["low", "middle"] == SURVIVES
    assert kinds["middle", "near"] == DEPENDS
    assert kinds["near", "same"] == CANNOT


def test_sources_are_never_mixed_and_a_failure_is_no_number() -> None:
    values = [
        published(attn="a", accuracy=30.0),
        published(attn="b", accuracy=40.0),
        published(attn="c", accuracy=None),
        published(attn="d", url="https://elsewhere", accuracy=50.0),
    ]
    (table,) = printed(values)
    assert table.accuracies == {"a": 30.0, "b": 40.0}
    assert len(table.differences) == 1


def test_the_smallest_difference_is_the_first_that_is_significant() -> None:
    def value(attn: str, accuracy: float) -> Published:
        return published(attn=attn, accuracy=accuracy)

    (table,) = printed([value("a", 49.0), value("b", 51.0)])
    # Six items that one alone got right: 2 / 2^6 is the first power below 5%.
    assert table.smallest(most_favourable) == pytest.approx(100 * 6 / 2000)
    items = round(table.smallest(unpaired) / 100 * 2000)
    p_values = [unpaired(0.5 + half / 4000, 0.5 - half / 4000, 2000) for half in (items - 1, items)]
    assert p_values[1] < 0.05 <= p_values[0]


def test_the_published_tables_are_counted_whole() -> None:
    tables = printed(read_published())
    assert {table.task for table in tables} == set(TEST_ITEMS)
    for table in tables:
        models = len(table.accuracies)
        assert sum(table.count(kind) for kind in (SURVIVES, DEPENDS, CANNOT)) == models * (models - 1) // 2
        # What is significant at the worst is so in every other case.
        assert table.whatever <= table.count(SURVIVES) + table.count(DEPENDS)
