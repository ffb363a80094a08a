"""Laws of the tables: terminal, Markdown and CSV say the same, on any width."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lra.budget import excess
from lra.notes import notes
from lra.outcomes import collect
from lra.published import read_published
from lra.table import COLUMNS, HEADERS, comma_separated, markdown, rows, show_published
from tests.results import MRA, printed, some_table, table_of, write_run


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
