"""The page of our own results: what is committed is what the CSV files give, with no run, with one, with many."""

from __future__ import annotations

from pathlib import Path

import pytest

from lra.ours import Row
from lra.published import PUBLISHED, floors
from lra.verdict_figure import NOTHING, said
from lra.verdict_page import PAGE, PICTURE, README, made, main
from lra.verdict_text import BEGIN, END, ROOT, between, half_width
from tests.own_rows import CPU, GPU, folder_of, row

PROJECT = PUBLISHED.parents[1]
DIAGNOSIS = "# Why\n\n## The rate\n\nTried.\n\n## The data\n\nTried.\n\n## The seed\n\nTried.\n"


def place(folder: Path, *rows: Row) -> list[str]:
    """A repository with these rows; returns the words that make its results."""
    published = folder_of(folder / "published", rows)
    (folder / "docs").mkdir()
    (folder / README).write_text(f"# Title\n\n{BEGIN}old\n{END}\n\nbelow\n")
    return [f"published={published}", f"out={folder}"]


def table_rows(text: str) -> dict[str, str]:
    """The README's rows by their first cell."""
    section = text.partition(BEGIN)[2].partition(END)[0]
    return {line.split("`")[1]: line for line in section.splitlines() if line.startswith("| `")}


def many() -> list[Row]:
    speeds = {"softmax": 6000.0, "mra2": 40_000.0, "linformer": 52_000.0}
    found = [
        row(attn=attn, seed=seed, correct=740 + 3 * seed, tokens_per_s=speed, device=GPU if seed else CPU)
        for attn, speed in speeds.items()
        for seed in range(3)
    ]
    found.append(row(attn="mra2_s", status="interrupted", steps=1234))
    found.append(row(task="pathfinder", attn="performer", n=20_000, correct=14_000, steps=62_400))
    return found


def test_what_is_committed_is_what_the_csv_files_give() -> None:
    files, _, undiagnosed = made(PUBLISHED, PROJECT)
    assert undiagnosed == [], "a cell that is worse needs its diagnosis"
    for name in (PAGE, README):
        assert (PROJECT / name).read_text() == files[name].decode(), "make results"
    assert said((PROJECT / PICTURE).read_bytes()) == said(files[PICTURE]), "make results"


def test_without_a_run_everything_published_stands_in_brackets(tmp_path: Path) -> None:
    words = place(tmp_path)
    (tmp_path / "published" / "ours.csv").unlink()
    assert main(words) == 0
    rows = table_rows((tmp_path / README).read_text())
    assert "(37.2?)" in rows["mra2"]
    assert "(37.1)" in rows["softmax"]
    assert not any("**" in line for line in rows.values())
    assert NOTHING in said((tmp_path / PICTURE).read_bytes())
    assert "No two variants" in (tmp_path / PAGE).read_text()


def test_one_run_stands_beside_the_published_values(tmp_path: Path) -> None:
    assert main(place(tmp_path, row(attn="softmax", correct=743))) == 0
    assert "| **37.1** [35.1, 39.3] ✓ | (65.02) |" in table_rows((tmp_path / README).read_text())["softmax"]
    page = (tmp_path / PAGE).read_text()
    assert "| 37.1 | 35.1 to 39.3 (Wilson) | 0 | 5,000 | 37.1 [1] | +0.1 | reproduced |" in page
    assert "743 of 2,000" in page
    assert any("softmax: 37.1%, 40,000 tokens/s" in text for text in said((tmp_path / PICTURE).read_bytes()))


def test_many_runs_are_told_by_device_and_never_compared_across(tmp_path: Path) -> None:
    assert main(place(tmp_path, *many())) == 0
    page = (tmp_path / PAGE).read_text()
    assert f"On {CPU}, in training steps" in page
    assert f"On {GPU}, in training steps" in page
    assert "do not compare with those of another" in page
    assert "not run (seed 0 interrupted at step 1,234 of 5,000)" in page
    assert "| listops | `softmax` | `linformer` | 0, 1, 2 |" in page
    texts = said((tmp_path / PICTURE).read_bytes())
    assert sum(text.startswith("listops") for text in texts) == 2
    assert sum(text.startswith("pathfinder") for text in texts) == 1
    assert "…" in table_rows((tmp_path / README).read_text())["mra2_s"]


def test_the_same_files_give_the_same_bytes_and_check_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = place(tmp_path, row(attn="softmax"), row(attn="mra2"))
    assert main([*words, "check=true"]) == 1
    assert not (tmp_path / PAGE).exists()
    assert capsys.readouterr().err.count("is not what runs/published gives: make results") == 3
    assert main(words) == 0
    first = {name: (tmp_path / name).read_bytes() for name in (PAGE, PICTURE, README)}
    assert main([*words, "check=true"]) == 0
    for name in first:
        (tmp_path / name).unlink()
    (tmp_path / README).write_text(f"# Title\n\n{BEGIN}{END}\n\nbelow\n")
    assert main(words) == 0
    assert {name: (tmp_path / name).read_bytes() for name in first} == first


def test_a_worse_cell_is_named_until_it_has_three_hypotheses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = place(tmp_path, row(attn="linformer", correct=600))
    file = tmp_path / "docs/diagnoses/mlpen-listops-linformer.md"
    assert main(words) == 1
    assert capsys.readouterr().err.startswith("mlpen-listops-linformer is worse than published and has no docs/diag")
    assert "without a diagnosis of three hypotheses yet: mlpen-listops-linformer" in (tmp_path / PAGE).read_text()
    file.parent.mkdir()
    file.write_text(DIAGNOSIS.replace("## The seed", "The seed"))
    assert main(words) == 1
    file.write_text(DIAGNOSIS)
    assert main(words) == 0
    page = (tmp_path / PAGE).read_text()
    assert "### listops, linformer: worse\n\n#### The rate\n" in page


def test_listops_says_how_much_its_numbers_can_tell(tmp_path: Path) -> None:
    assert main(place(tmp_path)) == 0
    root = floors("listops", "generated")[ROOT]
    beside = f"±{half_width(root, 2000):.1f}"
    assert beside == "±2.1"
    for name in (README, PAGE):
        text = (tmp_path / name).read_text()
        assert beside in text
        assert str(root) in text
        assert "2,000" in text
    assert "`make data-doctor task=listops`" in (tmp_path / PAGE).read_text()


def test_a_readme_without_its_marks_and_a_damaged_prediction_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = place(tmp_path, row(attn="softmax"), row(attn="mra2"))
    (tmp_path / README).write_text("no marks")
    assert main(words) == 2
    assert (
        capsys.readouterr().err
        == f"error: {tmp_path / README}: the file has no lines {BEGIN.strip()} and {END}, once each\n"
    )
    assert main([f"published={tmp_path / 'none'}", f"out={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"error: published={tmp_path / 'none'} is not a folder\n"
    (tmp_path / README).write_text(BEGIN + END)
    (tmp_path / "published/ours/mlpen-listops-mra2-seed0.npz").write_bytes(b"no")
    assert main(words) == 2
    assert "mlpen-listops-mra2-seed0.npz is damaged" in capsys.readouterr().err
    assert not (tmp_path / PAGE).exists()


def test_a_section_is_put_between_its_marks_alone() -> None:
    assert between(f"a\n{BEGIN}b\n{END}\nc\n", "d\n") == f"a\n{BEGIN}d\n{END}\nc\n"
    for text in ("", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"):
        with pytest.raises(ValueError, match="once each"):
            between(text, "d")
