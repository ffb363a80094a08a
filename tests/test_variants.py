"""The table of variants: what a docstring must say, and that the README says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from attention_zoo import ZOO
from lra.variants import ATTN, BEGIN, END, Row, facts, limit, main, markdown, replaced, rows

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.fixture(scope="module")
def table() -> list[Row]:
    return rows()


def test_the_readme_has_the_table_of_the_registry(table: list[Row]) -> None:
    text = README.read_text()
    assert replaced(text, markdown(table)) == text, "make variants write=README.md"


def test_every_configured_attention_has_a_row(table: list[Row]) -> None:
    assert sorted(row.name for row in table) == sorted(file.stem for file in ATTN.glob("*.yaml"))


@pytest.mark.parametrize("name", ZOO)
def test_a_docstring_says_what_it_is_whose_it_is_and_what_it_costs(name: str) -> None:
    found = facts(ZOO[name].__doc__ or "")
    assert found.url.startswith("https://")
    assert 1950 < int(found.year) < 2100
    assert found.cost.startswith("O(")
    assert len(found.what) < 160
    assert len(found.authors) < 30


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (None, "none"),
        ({}, "always"),
        ({"rank": 64, "window": 128}, "`rank` = N, `window` = 2 N"),
        ({"blocks": 63}, "`blocks` = 63"),
        ({"blocks": 129}, "`blocks` = 2 N + 1"),
        ({"budgets": (64, 3)}, "`budgets` = (N, 3)"),
    ],
)
def test_an_exact_limit_is_told_in_tokens(parameters: dict[str, int] | None, said: str) -> None:
    assert limit(parameters, 64) == said


def test_a_docstring_without_its_facts_is_answered() -> None:
    with pytest.raises(ValueError, match="a variant's docstring"):
        facts("Attention.")


def test_the_table_is_written_between_its_marks_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"above\n{BEGIN}old\n{END}\nbelow\n")
    assert main([f"write={file}"]) == 0
    text = file.read_text()
    assert text.startswith(f"above\n{BEGIN}| name ")
    assert text.endswith(f"|\n{END}\nbelow\n")
    file.write_text("no marks")
    assert main([f"write={file}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert file.read_text() == "no marks"
