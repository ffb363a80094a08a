"""Laws of the published numbers: every row cited, no row guessed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from lra.published import MARKS, PUBLISHED, SOURCES, read_published
from tests.results import MRA


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
        ("a,https://a,mlpen,m,mra2,listops,many,read,", "'many' is not a number"),
        ("a,https://a,mlpen,m,mra2,listops,37.2,read,,too,long", "line 2"),
    ],
)
def test_a_published_row_that_breaks_a_rule_is_named(tmp_path: Path, line: str, rule: str) -> None:
    header = (PUBLISHED / "zeng_2022.csv").read_text().splitlines()[0]
    (tmp_path / "lra.csv").write_text(f"{header}\n{line}\n")
    with pytest.raises(ValueError, match=rule) as error:
        read_published(tmp_path)
    assert "lra.csv, line 2" in str(error.value)


def test_an_empty_published_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "lra.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"lra\.csv is empty; its first line must be source,url,"):
        read_published(tmp_path)


def test_empty_lines_between_published_rows_are_none(tmp_path: Path) -> None:
    header, first = (PUBLISHED / "zeng_2022.csv").read_text().splitlines()[:2]
    (tmp_path / "lra.csv").write_text(f"{header}\n\n{first}\n\n")
    assert [value.attn for value in read_published(tmp_path)] == ["softmax"]
