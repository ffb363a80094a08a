"""Laws of the comparison: what may be averaged, what stands beside what, and what no broken file can do."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lra.budget import excess
from lra.cells import MARKS, PUBLISHED, SOURCES, Cell, Published, deviation, read_published
from lra.intervals import student_interval, student_quantile, wilson
from lra.results import cells, collect, main
from lra.table import COLUMNS, HEADERS, comma_separated, markdown, notes, rows, show, show_published

REPOSITORY = Path(__file__).resolve().parents[1]
MRA = "https://arxiv.org/abs/2207.10284"


def write_run(folder: Path, **changes: Any) -> Path:
    """A finished ListOps run of 2,000 test items in `folder`, with `changes` to its result.json; None removes a key."""
    accuracy = changes.pop("accuracy", 0.372)
    result = {
        "schema": 1,
        "status": "finished",
        "protocol": "mlpen",
        "task": "listops",
        "source": "generated",
        "attn": "mra2",
        "seed": 0,
        "test": {"accuracy": accuracy, "n": 2000, "ci95": [0.0, 1.0]},
        "val": {"accuracy": 0.38, "n": 2000, "best_step": 4000},
        "train": {"accuracy": 0.39},
        "params": 216_138,
        "steps": 5000,
        "tokens_per_s": 20_000.0,
        "train_seconds": 100.0,
        "peak_memory_mb": 800.0,
        "device": "cpu",
        "dtype": "float32",
        "kernel": "reference",
        "data_sha256": "a" * 64,
        "config_sha256": "b" * 64,
        "git_commit": "",
        "versions": {},
    } | changes
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.json"
    path.write_text(json.dumps({key: value for key, value in result.items() if value is not None}))
    return path


def published(**changes: Any) -> Published:
    facts: dict[str, Any] = {
        "source": "A paper",
        "url": MRA,
        "protocol": "mlpen",
        "model": "MRA-2",
        "attn": "mra2",
        "task": "listops",
    }
    return Published(**(facts | {"accuracy": 37.2, "status": "unverified", "note": ""} | changes))


def table_of(root: Path, *values: Published) -> list[Cell]:
    runs, problems = collect(root)
    assert problems == []
    return cells(runs, values)


def printed(table: list[Cell], **console: Any) -> str:
    out = io.StringIO()
    show(Console(file=out, highlight=False, **console), table)
    return out.getvalue()


# Intervals


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


# Grouping


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


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("seed0", ""),
        ("train.lr=0.0003,seed0", "train.lr=0.0003"),
        ("train.lr=0.0003,train.steps=600,seed12", "train.lr=0.0003,train.steps=600"),
        ("attn.scales=[32,8,1],train.lr=1e-3,seed0", "attn.scales=[32,8,1],train.lr=1e-3"),
        ("task.source=release,seed0", ""),
        ("attn.block_size=16,task.source=release,train.steps=600,seed3", "attn.block_size=16,train.steps=600"),
        ("my_run", "my_run"),
    ],
)
def test_a_deviation_is_the_words_before_the_seed(folder: str, words: str) -> None:
    assert deviation(None, folder) == words


def test_a_result_that_lists_its_deviations_is_believed_over_its_folder() -> None:
    changed = {"attn.name": "mra2_s", "task.source": "release", "train.lr": 0.0003}
    assert deviation(changed, "anything") == "attn.name=mra2_s,train.lr=0.0003"
    assert deviation({}, "my_run") == ""


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


# Task names and published values


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


def test_every_published_row_keeps_the_rules() -> None:
    values = read_published()
    names = "softmax mra2 mra2_s mra performer linformer soft soft_conv nystromformer nystromformer_conv yoso yoso_conv"
    names += (
        " reformer longformer bigbird h_transformer_1d scatterbrain adamra local linear sparse sinkhorn synthesizer"
    )
    assert len(values) == 216
    for value in values:
        assert value.source
        assert value.model
        assert value.url.startswith("https://")
        assert value.status in MARKS
        assert value.task in SOURCES
        assert value.attn in names.split() or (value.attn == "" and value.protocol == "own")
        assert value.accuracy is not None or value.note == "FAIL"
    assert max(Counter((value.source, value.model, value.task) for value in values).values()) == 1


def test_what_was_not_read_in_the_paper_is_published_as_unverified() -> None:
    mra_paper = [value for value in read_published() if value.url == MRA]
    assert len(mra_paper) == 80
    assert {value.status for value in mra_paper} == {"unverified"}


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("a,https://a,mlpen,m,mra2,listops,37.2,guessed,", "'guessed' is not one of"),
        ("a,https://a,mlpen,m,mra2,listops,372,read,", "not between 0 and 100"),
        ("a,https://a,mlpen,m,mra2,listops,many,read,", "could not convert"),
        ("a,https://a,mlpen,m,mra2,listops,37.2,read,,too,long", "line 2"),
    ],
)
def test_a_published_row_that_breaks_a_rule_is_named(tmp_path: Path, line: str, rule: str) -> None:
    header = (PUBLISHED / "zeng_2022.csv").read_text().splitlines()[0]
    (tmp_path / "lra.csv").write_text(f"{header}\n{line}\n")
    with pytest.raises(ValueError, match=rule) as error:
        read_published(tmp_path)
    assert "lra.csv, line 2" in str(error.value)


# Files that are not what they should be


@pytest.mark.parametrize(
    "text",
    [
        "",
        '{"schema": 1, "sta',
        "[]",
        "null",
        "[" * 100_000,
        '{"schema": 2}',
        '{"schema": 1}',
        '{"schema": 1, "status": "fine"}',
        '{"schema": 1, "status": ["finished"]}',
        '{"schema": 1, "status": "finished", "protocol": 3}',
        "\x00\xff",
    ],
)
def test_a_broken_result_is_one_line_and_hurts_no_other(tmp_path: Path, text: str) -> None:
    write_run(tmp_path / "good/seed0")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/result.json").write_text(text)
    runs, problems = collect(tmp_path)
    assert [run.path.parent.parent.name for run in runs] == ["good"]
    (line,) = problems
    assert line.startswith("left out bad/result.json: ")
    assert "\n" not in line
    assert len(line) < 200


@pytest.mark.parametrize(
    "changes",
    [
        {"accuracy": 37.2},
        {"accuracy": float("nan")},
        {"accuracy": "0.372"},
        {"accuracy": True},
        {"test": {"accuracy": 0.372, "n": 0}},
        {"test": {"accuracy": 0.372}},
        {"test": None},
        {"seed": "0"},
        {"seed": True},
        {"source": None},
        {"data_sha256": None},
        {"tokens_per_s": "fast"},
        {"tokens_per_s": 10**400},
    ],
)
def test_a_result_that_says_the_impossible_is_left_out(tmp_path: Path, changes: dict[str, Any]) -> None:
    write_run(tmp_path / "seed0", **changes)
    runs, problems = collect(tmp_path)
    assert runs == []
    assert len(problems) == 1
    assert problems[0].startswith("left out seed0/result.json: ")


@pytest.mark.parametrize("key", ["kernel", "tokens_per_s", "peak_memory_mb", "train"])
def test_a_result_may_lack_what_a_variant_or_a_device_does_not_have(tmp_path: Path, key: str) -> None:
    write_run(tmp_path / "seed0", **{key: None})
    assert [cell.accuracy for cell in table_of(tmp_path)] == [pytest.approx(37.2)]


def test_a_run_without_a_result_yet_is_named(tmp_path: Path) -> None:
    (tmp_path / "mlpen/listops/mra2/seed0").mkdir(parents=True)
    (tmp_path / "mlpen/listops/mra2/seed0/metrics.jsonl").write_text("")
    runs, problems = collect(tmp_path)
    assert runs == []
    assert len(problems) == 1
    assert "mlpen/listops/mra2/seed0" in problems[0]


def test_published_hidden_and_put_aside_folders_are_not_read(tmp_path: Path) -> None:
    for folder in ("published/seed0", ".data/seed0", "mlpen/seed0.old-1", "report/seed0", "mlpen/.trash/seed0"):
        write_run(tmp_path / folder)
    assert collect(tmp_path) == ([], [])


# The benchmark's rule of parameters


@pytest.mark.parametrize(
    ("params", "softmax", "mark"), [(110, 100, ""), (111, 100, "+11%"), (602, 100, "+502%"), (50, 100, "")]
)
def test_more_than_ten_percent_more_parameters_are_told(params: int, softmax: int, mark: str) -> None:
    assert excess(params, softmax) == mark


def test_a_run_beyond_the_rule_is_marked_in_every_table(tmp_path: Path) -> None:
    write_run(tmp_path / "mra2/seed0", params_softmax=216_138)
    write_run(tmp_path / "linformer/seed0", attn="linformer", params=1_257_354, params_softmax=208_778)
    write_run(tmp_path / "old/seed0", attn="soft", params=9_999_999)
    table = table_of(tmp_path)
    marked = {cell.attn: (row.attention, row.params) for cell, row in zip(table, rows(table), strict=True)}
    assert marked["linformer"] == ("linformer†", "1,257,354 (+502%)")
    assert marked["mra2"] == ("mra2", "216,138")
    assert marked["soft"] == ("soft", "9,999,999")
    assert [line for line in notes(table) if line.startswith("†")]
    assert "| linformer† |" in markdown(table)
    for width in (80, 200):
        assert "linformer†" in printed(table, force_terminal=True, no_color=True, color_system=None, width=width)
    told = {record["attn"]: record for record in csv.DictReader(io.StringIO(comma_separated(table)))}
    assert (told["linformer"]["params_softmax"], told["linformer"]["params_excess"]) == ("208778", "+502%")
    assert (told["soft"]["params_softmax"], told["soft"]["params_excess"]) == ("", "")
    assert not any(line.startswith("†") for line in notes([cell for cell in table if cell.attn != "linformer"]))


@pytest.mark.parametrize("value", ["many", 0, -3, 1.5, True])
def test_a_count_of_softmaxs_parameters_that_is_none_is_left_out_with_its_run(tmp_path: Path, value: Any) -> None:
    write_run(tmp_path / "seed0", params_softmax=value)
    runs, problems = collect(tmp_path)
    assert (runs, len(problems)) == ([], 1)
    assert "params_softmax" in problems[0]


# What is written


def some_table(root: Path) -> list[Cell]:
    write_run(root / "mlpen/listops/mra2/seed0", accuracy=0.372)
    write_run(root / "mlpen/listops/mra2/seed1", accuracy=0.3615, seed=1)
    write_run(root / "mlpen/listops/mra2_s/seed0", attn="mra2_s", accuracy=0.301)
    write_run(root / "mlpen/listops/softmax/seed0", attn="softmax", status="diverged", test=None, train=None)
    write_run(
        root / "google/text/bigbird/train.steps=9,seed0", protocol="google", task="text", source="imdb", attn="bigbird"
    )
    return table_of(root, published(), published(attn="mra2_s", accuracy=37.4, status="read"))


def test_markdown_and_csv_agree(tmp_path: Path) -> None:
    table = some_table(tmp_path)
    page = [line.strip("| ").split(" | ") for line in markdown(table).splitlines() if line.startswith("| ")]
    lines = [line for line in page if line[0] not in ("task", "---")]
    records = list(csv.DictReader(io.StringIO(comma_separated(table))))
    assert len(lines) == len(records) == 4
    assert all(len(line) == len(HEADERS) for line in page)

    def shown(value: str, form: str) -> str:
        return format(float(value), form) if value else "-"

    for line, record in zip(lines, records, strict=True):
        cell = dict(zip(HEADERS, line, strict=True))
        assert cell["attention"].replace("\\", "") == record["attn"]
        assert cell["test %"] == shown(record["accuracy"], ".1f")
        assert cell["diff"] == shown(record["difference"], "+.1f")
        assert cell["seeds"] == record["n_seeds"]
        assert cell["failures"].split()[0] == record["failures"]
        assert cell["published"].split("?")[0].split(" [")[0] == (record["published"] or "-")
        assert cell["95% interval"].split(" (")[0] == (
            f"{float(record['interval_low']):.1f} to {float(record['interval_high']):.1f}"
            if record["accuracy"]
            else "-"
        )


def test_csv_keeps_full_precision_and_every_fact(tmp_path: Path) -> None:
    records = {record["attn"]: record for record in csv.DictReader(io.StringIO(comma_separated(some_table(tmp_path))))}
    record = records["mra2"]
    assert list(record) == list(COLUMNS)
    assert float(record["accuracy"]) == 100 * (0.372 + 0.3615) / 2
    assert (record["interval_kind"], record["seeds"], record["published_status"]) == ("student", "0 1", "unverified")
    assert (record["published_url"], record["data_sha256"], record["config_sha256"]) == (MRA, "a" * 64, "b" * 64)
    assert (records["softmax"]["accuracy"], records["softmax"]["diverged"]) == ("", "1")


def test_markdown_escapes_what_would_break_its_table(tmp_path: Path) -> None:
    write_run(tmp_path / "seed0", attn="a|b_c*d")
    assert "| a\\|b\\_c\\*d |" in markdown(table_of(tmp_path))


def test_without_a_terminal_no_line_is_wrapped(tmp_path: Path) -> None:
    table = some_table(tmp_path)
    lines = printed(table, force_terminal=False, width=40).splitlines()
    assert any(all(header in line for header in (*HEADERS[:2], *HEADERS[3:])) for line in lines)
    assert sum("mra2" in line and "Wilson" in line or "(t)" in line for line in lines) == 2


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_on_a_terminal_every_line_fits(tmp_path: Path, width: int) -> None:
    text = printed(some_table(tmp_path), force_terminal=True, no_color=True, color_system=None, width=width)
    assert all(len(line) <= width for line in text.splitlines())
    for fact in ("mra2_s", "30.1", "37.2? [1]", "1 diverged", "train.steps=9", "20,000"):
        assert fact in text


def test_square_brackets_are_text_and_not_markup(tmp_path: Path) -> None:
    write_run(tmp_path / "attn.scales=[32,8,1],seed0")
    assert "[32, 8, 1]" in printed(table_of(tmp_path), force_terminal=False)


def test_the_published_table_has_a_row_per_model(tmp_path: Path) -> None:
    out = io.StringIO()
    show_published(Console(file=out, highlight=False, force_terminal=False), read_published())
    text = out.getvalue()
    line = next(line for line in text.splitlines() if "MRA-2-s" in line)
    assert line.split() == ["mlpen", "MRA-2-s", "mra2_s", "37.4?", "64.3?", "80.3?", "41.1?", "73.8?", "-", "[1]"]
    assert MRA in text
    assert "FAIL" in text
    assert "unverified" in text
    assert "secondary" in text


def test_on_a_narrow_terminal_the_published_values_still_fit() -> None:
    out = io.StringIO()
    console = Console(file=out, highlight=False, force_terminal=True, color_system=None, width=100)
    show_published(console, read_published())
    lines = out.getvalue().splitlines()
    assert all(len(line) <= 100 for line in lines)
    expected = "mlpen mra2_s [1]: listops 37.4?, text 64.3?, retrieval 80.3?, image 41.1?, pathfinder 73.8?"
    assert expected in (line.rstrip() for line in lines)


# The command


def test_compare_prints_the_table_and_names_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_table(tmp_path)
    assert main([f"runs={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    report = tmp_path / "report"
    assert lines[-1] == f"written: {report / 'compare.md'}, {report / 'compare.csv'}, {report / 'curves.svg'}"
    assert sorted(path.name for path in report.iterdir()) == ["compare.csv", "compare.md", "curves.svg"]
    assert any("mra2_s" in line and "37.4?" in line for line in lines)


def test_the_same_runs_give_the_same_files(tmp_path: Path) -> None:
    some_table(tmp_path)
    contents = []
    for _ in range(2):
        assert main([f"runs={tmp_path}"]) == 0
        contents.append({path.name: path.read_bytes() for path in (tmp_path / "report").iterdir()})
    assert contents[0] == contents[1]


def test_filters_choose_rows_and_are_named_in_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some_table(tmp_path)
    assert main([f"runs={tmp_path}", "attn=mra2,softmax", "protocol=mlpen"]) == 0
    assert "mra2_s" not in capsys.readouterr().out.split("written:")[0]
    assert "Only attn=mra2,softmax protocol=mlpen." in (tmp_path / "report/compare.md").read_text()


def test_no_runs_is_one_friendly_line_and_the_published_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"runs={tmp_path}", "task=listops"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].endswith("yet: make lra task=listops attn=mra2")
    assert "MRA-2-s" in out
    assert "pathfinder" not in out
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("tsk=listops", "unknown key 'tsk', known are runs, task, attn, protocol; did you mean 'task'?"),
        ("listops", "'listops' is not of the form key=value; keys: runs, task, attn, protocol"),
        ("task=listop", "did you mean 'listops'?"),
        ("runs=no/such/folder", "runs=no/such/folder is not a folder"),
        ("--tasks", "unrecognized arguments: --tasks"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(word: str, message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lra.results", word], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_help_names_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert out.startswith("usage: python -m lra.results")
    assert all(f"{key}=" in out for key in ("runs", "task", "attn"))


def test_comparing_loads_neither_torch_nor_hydra_nor_trackers() -> None:
    heavy = "torch, hydra, wandb, tensorflow_datasets, matplotlib, numpy"
    code = f"import lra.results, sys; print([name for name in '{heavy}'.split(', ') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
