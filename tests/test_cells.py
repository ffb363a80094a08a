"""Laws of the cells: what may be averaged, and what stands beside what."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from lra.intervals import student_interval, wilson
from lra.notes import notes
from lra.published import SOURCES
from lra.table import rows
from tests.results import published, table_of, write_run


def test_seeds_are_averaged_with_students_interval(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.36, 0.37, 0.38)):
        write_run(tmp_path / f"mlpen/listops/mra2/seed{seed}", seed=seed, accuracy=accuracy)
    (cell,) = table_of(tmp_path)
    low, high = student_interval([0.36, 0.37, 0.38])
    assert cell.accuracy == pytest.approx(37.0)
    assert cell.interval == pytest.approx((100 * low, 100 * high, "student"), abs=1e-9)
    assert [run.seed for run in cell.runs] == [0, 1, 2]


def test_one_seed_gets_wilsons_interval_and_says_so(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0")
    (cell,) = table_of(tmp_path)
    low, high = wilson(744, 2000)
    assert cell.interval == pytest.approx((100 * low, 100 * high, "wilson"), abs=1e-9)
    assert rows([cell])[0].interval == "35.1 to 39.3 (Wilson)"


def test_an_interval_stays_within_what_is_possible(tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.2, 0.9)):
        write_run(tmp_path / f"seed{seed}", seed=seed, accuracy=accuracy)
    (cell,) = table_of(tmp_path)
    assert cell.interval == (0.0, 100.0, "student")


@pytest.mark.parametrize(
    ("key", "value"),
    [("protocol", "google"), ("task", "text"), ("source", "release"), ("attn", "softmax"), ("data_sha256", "c" * 64)],
)
def test_runs_that_differ_in_more_than_the_seed_are_never_averaged(tmp_path: Path, key: str, value: str) -> None:
    write_run(tmp_path / "a/seed0", accuracy=0.3)
    write_run(tmp_path / "b/seed1", seed=1, accuracy=0.5, **{key: value})
    assert sorted(cell.accuracy or 0 for cell in table_of(tmp_path)) == [30.0, 50.0]


def test_rows_on_different_data_are_named_by_their_hash_and_a_note(tmp_path: Path) -> None:
    write_run(tmp_path / "mra2/seed0")
    write_run(tmp_path / "softmax/seed0", attn="softmax", data_sha256="c" * 64)
    table = table_of(tmp_path)
    assert [row.task for row in rows(table)] == [
        "listops (generated) data cccccccc",
        "listops (generated) data aaaaaaaa",
    ]
    assert any("saw different data" in line for line in notes(table))


def test_runs_on_equal_data_carry_no_hash(tmp_path: Path) -> None:
    write_run(tmp_path / "mra2/seed0")
    write_run(tmp_path / "softmax/seed0", attn="softmax")
    table = table_of(tmp_path)
    assert {row.task for row in rows(table)} == {"listops (generated)"}
    assert not any("saw different data" in line for line in notes(table))


def test_a_deviation_is_a_row_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path / "mlpen/listops/mra2/seed0", accuracy=0.37)
    write_run(tmp_path / "mlpen/listops/mra2/train.steps=600,seed0", accuracy=0.31, steps=600)
    table = table_of(tmp_path, published())
    assert [(row.deviation, row.test) for row in rows(table)] == [("-", "37.0"), ("train.steps=600", "31.0")]
    assert any(line.startswith("deviation:") for line in notes(table))


def test_failures_are_counted_and_never_averaged(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0", accuracy=0.37)
    write_run(tmp_path / "seed1", seed=1, status="diverged", test=None, train=None)
    write_run(tmp_path / "seed2", seed=2, status="out_of_memory", test=None, train=None, tokens_per_s=None)
    write_run(tmp_path / "seed3", seed=3, status="interrupted", accuracy=0.9)
    (cell,) = table_of(tmp_path)
    assert cell.accuracy == pytest.approx(37.0)
    row = rows([cell])[0]
    assert (row.seeds, row.failures) == ("1", "1 diverged, 1 out of memory; 1 unfinished")


def test_a_cell_without_a_finished_run_has_no_score(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0", status="diverged", test=None, train=None)
    (cell,) = table_of(tmp_path, published())
    row = rows([cell])[0]
    assert (row.test, row.interval, row.difference, row.failures) == ("-", "-", "-", "1 diverged")


def test_of_a_seed_that_ran_twice_the_newer_counts(tmp_path: Path) -> None:
    old, new = write_run(tmp_path / "a/seed0", accuracy=0.3), write_run(tmp_path / "b/seed0", accuracy=0.4)
    os.utime(old, (1_000, 1_000))
    os.utime(new, (2_000, 2_000))
    (cell,) = table_of(tmp_path)
    assert cell.accuracy == pytest.approx(40.0)
    assert any("seed 0 twice" in line and f"not {tmp_path / 'a/seed0'}" in line for line in notes([cell]))


def test_speed_and_memory_of_different_devices_are_not_averaged(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0")
    write_run(tmp_path / "seed1", seed=1, device="H100")
    (cell,) = table_of(tmp_path)
    row = rows([cell])[0]
    assert (row.speed, row.memory) == ("-", "-")
    assert any("differ in device" in line for line in notes([cell]))


def test_softmax_leads_each_task_and_tasks_keep_the_benchmarks_order(tmp_path: Path) -> None:
    for task, source in (("text", "imdb"), ("listops", "release")):
        for attn in ("adamra", "softmax", "mra2"):
            write_run(tmp_path / task / attn / "seed0", task=task, source=source, attn=attn)
    names = [(cell.task, cell.attn) for cell in table_of(tmp_path)]
    assert names == [(task, attn) for task in ("listops", "text") for attn in ("softmax", "adamra", "mra2")]


@pytest.mark.parametrize("task", SOURCES)
def test_only_the_real_source_carries_the_tasks_plain_name(tmp_path: Path, task: str) -> None:
    write_run(tmp_path / "real/seed0", task=task, source=SOURCES[task][0])
    write_run(tmp_path / "other/seed0", task=task, source="synthetic")
    assert {cell.task_name for cell in table_of(tmp_path)} == {task, f"{task} (synthetic)"}


@pytest.mark.parametrize(("source", "beside"), [("generated", True), ("release", True), ("synthetic", False)])
def test_published_values_stand_beside_their_own_distribution_only(tmp_path: Path, source: str, beside: bool) -> None:
    write_run(tmp_path / "seed0", source=source)
    (cell,) = table_of(tmp_path, published())
    assert (cell.published is not None) == beside
    assert (cell.difference is not None) == beside


@pytest.mark.parametrize(
    ("changed", "beside"),
    [({}, True), ({"train.lr": 1e-3}, True), ({"task.resolution": 64}, False), ({"task.difficulty": "easy"}, False)],
)
def test_nothing_published_stands_beside_other_images(tmp_path: Path, changed: dict[str, object], beside: bool) -> None:
    write_run(tmp_path / "seed0", task="pathfinder", deviations=changed)
    (cell,) = table_of(tmp_path, published(task="pathfinder"))
    assert (cell.published is not None) == beside


def test_published_values_join_on_protocol_attention_and_task(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0")
    strangers = (published(protocol="google"), published(attn="mra2_s"), published(task="text"))
    assert table_of(tmp_path, *strangers)[0].published is None
    mine = published(accuracy=36.2)
    (cell,) = table_of(tmp_path, *strangers, mine)
    assert cell.published == mine
    assert cell.difference == pytest.approx(1.0)


def test_the_protocols_own_paper_is_preferred_and_the_others_are_named(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0")
    own = published(source="Own paper", accuracy=37.2)
    other = published(source="Other paper", url="https://arxiv.org/abs/2102.03902", accuracy=37.1, status="read")
    (cell,) = table_of(tmp_path, other, own)
    assert (cell.published, cell.elsewhere) == (own, (other,))
    assert "published elsewhere: mlpen listops mra2 37.1 [2]." in notes([cell])


def test_an_unverified_value_is_marked_and_explained(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0")
    unverified, read = table_of(tmp_path, published()), table_of(tmp_path, published(status="read"))
    assert rows(unverified)[0].published == "37.2? [1]"
    assert rows(read)[0].published == "37.2 [1]"
    explained = [line for line in notes(unverified) if line.startswith("?:")]
    assert explained == ["?: unverified; the published value could not be checked in its source."]
    assert not any(line.startswith("?:") for line in notes(read))


def test_a_published_failure_has_no_difference(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0", task="pathx", source="release")
    (cell,) = table_of(tmp_path, published(task="pathx", accuracy=None, status="read"))
    assert (rows([cell])[0].published, rows([cell])[0].difference) == ("FAIL [1]", "-")


def test_the_floors_of_listops_are_told_only_where_listops_stands(tmp_path: Path) -> None:
    write_run(tmp_path / "text/seed0", task="text", source="imdb")
    write_run(tmp_path / "synthetic/seed0", source="synthetic")
    assert not any("36.2" in line for line in notes(table_of(tmp_path)))
    write_run(tmp_path / "listops/seed0")
    (line,) = [line for line in notes(table_of(tmp_path)) if "36.2" in line]
    assert "17.1" in line
    assert "2,000 items" in line
    assert "2.1 points" in line


# What is kept apart


def configured(seed: int = 0, **changes: Any) -> dict[str, Any]:
    return {"train.lr": 1e-4, "train.warmup": 1000, "seed": seed} | changes


def test_runs_of_one_configuration_but_for_the_seed_are_one_cell(tmp_path: Path) -> None:
    for seed in range(3):
        write_run(tmp_path / f"seed{seed}", seed=seed, config=configured(seed))
    (cell,) = table_of(tmp_path)
    assert [run.seed for run in cell.runs] == [0, 1, 2]
    assert cell.apart == ""
    assert not any("apart" in line for line in notes([cell]))


def test_runs_whose_configurations_differ_under_the_same_words_stand_apart_and_a_line_says_so(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"seed{seed}", seed=seed, accuracy=0.3, config=configured(seed))
    write_run(tmp_path / "seed2", seed=2, accuracy=0.6, config=configured(2, **{"train.warmup": 500}))
    many, one = table_of(tmp_path)
    assert (many.accuracy, one.accuracy) == (pytest.approx(30.0), pytest.approx(60.0))
    assert (many.words, one.words) == ("", "train.warmup=500 (not 1000)")
    expected = (
        "1 run of mlpen listops (generated)/mra2 stands apart from 2, never averaged: train.warmup=500 (not 1000)."
    )
    assert expected in notes([many, one])


def test_what_is_not_recorded_is_not_averaged_with_what_is(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"seed{seed}", seed=seed, config=configured(seed))
    write_run(tmp_path / "seed2", seed=2)
    assert [(len(cell.runs), cell.apart) for cell in table_of(tmp_path)] == [(2, ""), (1, "configuration not recorded")]


def test_a_key_of_another_codes_configuration_is_named(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"seed{seed}", seed=seed, config=configured(seed))
    write_run(tmp_path / "seed2", seed=2, config=configured(2, **{"train.new": None}))
    assert table_of(tmp_path)[1].apart == "train.new=null (not unset)"


def test_what_decides_nothing_parts_nothing(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0", config=configured(0, device="cpu", kernel="cpu"))
    write_run(tmp_path / "seed1", seed=1, config=configured(1, device="cuda", kernel="auto"))
    assert len(table_of(tmp_path)) == 1


def test_splits_are_never_averaged_and_named(tmp_path: Path) -> None:
    about = {"task": "text", "source": "imdb"}
    for seed, split in enumerate(("clean", "clean", "legacy")):
        write_run(tmp_path / f"seed{seed}", seed=seed, config=configured(seed, **{"task.split": split}), **about)
    table = table_of(tmp_path)
    assert [(cell.split, len(cell.runs)) for cell in table] == [("clean", 2), ("legacy", 1)]
    assert [row.task for row in rows(table)] == ["text split clean", "text split legacy"]
    lines = notes(table)
    assert "split: runs of mlpen text (imdb) are of different splits: never averaged, not comparable." in lines
    assert "1 run of mlpen text/mra2 stands apart from 2, never averaged: split legacy (not clean)." in lines


def test_other_data_of_one_cell_are_named_with_the_number_of_runs(tmp_path: Path) -> None:
    for seed in range(5):
        write_run(tmp_path / f"seed{seed}", seed=seed, data_sha256=("c" if seed > 2 else "a") * 64)
    expected = (
        "2 runs of mlpen listops (generated)/mra2 stand apart from 3, never averaged: data sha cccccccc (not aaaaaaaa)."
    )
    assert expected in notes(table_of(tmp_path))


def test_protocols_and_sources_side_by_side_are_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a/seed0")
    write_run(tmp_path / "b/seed0", source="synthetic")
    write_run(tmp_path / "c/seed0", protocol="google")
    lines = notes(table_of(tmp_path))
    assert "protocols mlpen (2 runs), google (1 run): never averaged, not comparable." in lines
    told = "sources of mlpen listops: generated (1 run), synthetic (1 run): never averaged, not comparable."
    assert told in lines


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("git_commit", "d" * 40, "its runs differ in commit (none, dddddddd)."),
        ("kernel", "cpu", "its runs differ in kernel (reference, cpu)."),
        ("dtype", "bfloat16", "its runs differ in dtype (float32, bfloat16)."),
        ("processes", 2, "its runs differ in processes (1, 2)."),
        ("device", "H100", "its runs differ in device; their speed and memory are not averaged."),
    ],
)
def test_what_a_cells_runs_stand_on_is_a_note_and_no_reason_to_part_them(
    tmp_path: Path, key: str, value: Any, says: str
) -> None:
    write_run(tmp_path / "seed0")
    write_run(tmp_path / "seed1", seed=1, **{key: value})
    (cell,) = table_of(tmp_path)
    assert f"mlpen listops (generated) mra2: {says}" in notes([cell])


def test_what_the_published_set_up_changes_is_told_beside_what_the_words_change(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0", declared={"attn.first_blocks": 1}, deviations={"train.lr": 1.0})
    write_run(tmp_path / "old/seed0", attn="softmax")
    softmax, mra2 = table_of(tmp_path)
    assert (softmax.declared, mra2.declared) == ({}, {"attn.first_blocks": 1})
    lines = notes([softmax, mra2])
    assert "declared: mlpen's own set-up of mra2 has attn.first_blocks=1 (listops)." in lines
    assert "declared: not told by 1 run of an older version." in lines
