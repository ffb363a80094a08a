"""The figures of the studies, and the measured numbers beside the published ones."""

from __future__ import annotations

import csv
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from benchmarks.studies import beside, pivots
from benchmarks.studies.figures import drawings, main
from benchmarks.studies.found import find, slug
from benchmarks.studies.look import spread
from benchmarks.studies.published import KINDS, published
from tests.study_results import approximation, crossover, efficiency, entropy, machine, save

SMALL = 64


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one machine, its figures drawn."""
    folder = tmp_path_factory.mktemp("studies")
    machine(folder / "made-up", ["mra2", "mra", "longformer", "scatterbrain", "linformer", "soft", "performer"])
    assert main([f"folder={folder}"]) == 0
    return folder


def texts(figure: Path) -> list[str]:
    """The texts of an SVG, whole."""
    return ["".join(node.itertext()) for node in ET.parse(figure).iter("{http://www.w3.org/2000/svg}text")]


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_every_study_of_a_machine_is_drawn_with_its_texts_as_text(drawn: Path) -> None:
    figures = {file.stem: texts(file) for file in (drawn / "made-up").glob("*.svg")}
    assert figures.keys() == {"approximation_4096_generated", "entropy_generated", "efficiency", "crossover"}
    for name, said in figures.items():
        assert any("Made-up(R) CPU @ 2.00GHz" in text and "torch 2.13.0+cpu" in text for text in said), name
        for attn in ("mra2", "longformer", "linformer", "mra"):
            assert any(text.split()[0].rstrip("*") == attn for text in said if text), (name, attn)


def test_what_gave_no_number_is_listed(drawn: Path) -> None:
    folder = drawn / "made-up"
    assert "out of memory: mra 128." in texts(folder / "approximation_4096_generated.svg")
    assert any(text.startswith("out of memory: eager (core, n = 8192") for text in texts(folder / "efficiency.svg"))
    assert "nothing within it: scatterbrain" in texts(folder / "entropy_generated.svg")
    assert "never up to 8,192 · against sdpa flash" in texts(folder / "crossover.svg")
    assert "always, from 512 · against sdpa flash" in texts(folder / "crossover.svg")


def test_a_figure_has_the_same_bytes_each_time(drawn: Path, tmp_path: Path) -> None:
    folder = drawn / "made-up"
    name = "approximation_4096_generated"
    dict(drawings(find(folder)))[name](tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (folder / f"{name}.svg").read_bytes()


def test_drawing_measures_nothing_and_loads_no_torch() -> None:
    program = "import sys, benchmarks.studies.figures, benchmarks.studies.smoothing; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_names_that_somebody_else_gave_do_no_harm(tmp_path: Path) -> None:
    hostile = "</text><script>$\\frac{x$ |`a`\n\x07\u202e --> <!-- end of kernel --> 漢字 " + "x" * 300
    mine = approximation(512, inputs="../../etc/$pass|wd$" + "y" * 300, device=hostile)
    save(tmp_path, "approximation", [row for row in mine if row["attn"] in ("softmax", "eager", "projections", "mra2")])
    save(tmp_path, "crossover", crossover(device=hostile, torch="2.13|`")[:2])
    assert main([f"folder={tmp_path}"]) == 0
    (figure,) = tmp_path.glob("approximation_512_etc-pass-wd-*.svg")
    assert any("<script>$\\frac{x$ |`a` --> " in text for text in texts(figure))
    page = pivots.layers(rows(tmp_path / "beside_approximation.csv"))
    assert "<" not in page
    short = page.partition("n = 4,096")[0].splitlines()
    assert {line.count("|") for line in short if line.startswith("| mra-2")} == {11}


def test_inputs_of_one_name_have_a_figure_each(tmp_path: Path) -> None:
    mine = approximation(SMALL)[:5]
    save(tmp_path, "approximation", [*mine, *(row | {"inputs_sha256": "beef"} for row in mine)])
    other = [row | {"dtype": "bfloat16"} for row in entropy(SMALL) if row["attn"] == "mra2"]
    save(tmp_path, "entropy", [*other, *(row | {"inputs_sha256": "beef"} for row in other)])
    assert {name for name, _ in drawings(find(tmp_path))} == {
        "approximation_64_generated_f00d",
        "approximation_64_generated_beef",
        "entropy_generated_bfloat16_f00d",
        "entropy_generated_bfloat16_beef",
    }


@pytest.mark.parametrize(
    ("name", "old", "new", "answer"),
    [
        ("approximation", ",float32,", ",", "it is torn"),
        ("approximation", "generated", '"generated', "is no whole CSV file"),
        ("efficiency", "memory_ratio_eager", "ratio_of_memory", "has no column memory_ratio_eager"),
        ("entropy", "", "", "is empty"),
        ("crossover", "Made", "\udcff", "is not text in UTF-8"),
    ],
)
def test_a_damaged_file_is_named_and_the_others_are_read(
    name: str, old: str, new: str, answer: str, tmp_path: Path
) -> None:
    makers = {
        "approximation": lambda: approximation(SMALL),
        "entropy": lambda: entropy(SMALL),
        "efficiency": efficiency,
    }
    files = {key: save(tmp_path, key, make()) for key, make in {**makers, "crossover": crossover}.items()}
    text = files[name].read_text().replace(old, new) if old else ""
    files[name].write_text(text, errors="surrogateescape")
    found = find(tmp_path)
    (problem,) = found.problems
    assert str(files[name]) in problem
    assert answer in problem
    assert found.tables.keys() == files.keys() - {name}


def test_a_figure_that_cannot_be_drawn_is_named_in_a_line_and_the_others_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wrong").mkdir()
    rows_of_two = [row for row in crossover() if row["attn"] in ("mra2", "soft")]
    save(tmp_path / "right", "crossover", rows_of_two)
    save(tmp_path / "wrong", "crossover", [row | {"longest": "many"} for row in rows_of_two])
    save(tmp_path / "wrong", "approximation", [row | {"n": "sixty"} for row in approximation(SMALL)])
    (tmp_path / "wrong" / "entropy.csv").write_text("n\n1,2\n")
    assert main([f"folder={tmp_path}"]) == 1
    said = capsys.readouterr().err.splitlines()
    # Two figures and the three tables that they feed, and the file that is torn.
    assert len(said) == 6
    wrong = tmp_path / "wrong"
    assert f"error: {wrong / 'approximation.csv'}, line 2: n is 'sixty', not a number" in said
    told = f"{wrong / 'crossover.csv'}, line 2: longest is 'many', not a number"
    assert f"error: {wrong / 'crossover.svg'} is not drawn: {told}" in said
    assert [file.parent.name for file in tmp_path.rglob("*.svg")] == ["right"]


def test_a_study_that_was_not_made_is_said_to_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a", "crossover", crossover()[:4])
    assert main([f"folder={tmp_path}"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"no file {tmp_path / 'a' / 'entropy.csv'}: make bench study=entropy" in said
    assert said[-2:] == [f"written: {tmp_path / name}" for name in ("a/crossover.svg", "beside_crossover.csv")]


@pytest.mark.parametrize(
    ("word", "answer"),
    [
        ("folder={}", "error: folder={} has no results of a study; make bench study=approximation measures some"),
        ("folder={}/none", "error: folder={}/none is not a folder"),
        ("format=pdf", "error: format=pdf is not one of svg, png"),
        ("folders=x", "error: unknown key 'folders', known are folder, format; did you mean 'folder'?"),
    ],
)
def test_a_wrong_word_is_answered_in_one_line(
    word: str, answer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word.format(tmp_path)]) == 2
    assert capsys.readouterr().err == answer.format(tmp_path) + "\n"


def test_labels_keep_their_order_and_distance_near_where_they_belong() -> None:
    assert spread([10, 20, 90], 5, 0, 100) == [10, 20, 90]
    assert spread([50, 50, 50], 10, 0, 100) == [40, 50, 60]
    assert spread([1, 2, 99, 100], 10, 0, 100) == [0, 10, 90, 100]
    assert spread([5, 5, 5], 50, 0, 20) == [0, 10, 20]
    assert spread([], 5, 0, 100) == []


@pytest.mark.parametrize("name", KINDS)
def test_every_published_number_names_its_source(name: str) -> None:
    found = published(name)
    assert found
    assert all(row["source"] and row["url"].startswith("https://") for row in found)


def test_the_published_tables_have_their_readings() -> None:
    found = {(row["method"], row["value"], row["n"]): row for row in published("mra_approximation")}
    assert len(found) == 65
    assert found["mra-2", "32", "4096"].number("error") == 0.322
    assert found["transformer", "", "4096"].number("ms") == 30.815
    flawed = {key for key, row in found.items() if row["memory_flaw"]}
    assert {("longformer", "16", "4096"), ("mra-2", "32", "4096")} <= flawed
    # A flaw is marked wherever more budget takes less memory.
    sweeps: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for (method, value, n), row in found.items():
        sweeps.setdefault((method, n), []).append((value, row.number("mb")))
    falls = {
        (method, value, n)
        for (method, n), sweep in sweeps.items()
        for (value, mb), (_, following) in zip(sweep, sweep[1:], strict=False)
        if following < mb
    }
    assert falls == flawed
    doubtful = [(row["model"], row["thousands"]) for row in published("lra_efficiency") if row["note"]]
    assert doubtful == [("Synthesizer", "3")]


@pytest.mark.parametrize(
    ("old", "new", "answer"),
    [
        (",0.860,", ",soon,", "line 2: ms is 'soon', not a number"),
        (",window_size,window,", ",window_size,width,", "keyword 'width' is not what 'window_size' is called here"),
        ("https://github.com/mlpen/mra-attention,", ",", "line 2: there is no url"),
        ("memory_flaw", "flaw", "has no column memory_flaw"),
    ],
)
def test_a_wrong_published_file_is_refused(old: str, new: str, answer: str, tmp_path: Path) -> None:
    text = (Path(beside.__file__).parents[1] / "published" / "mra_approximation.csv").read_text()
    (tmp_path / "mra_approximation.csv").write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=answer):
        published("mra_approximation", tmp_path)


def test_a_configuration_stands_beside_the_published_one_with_and_without_projections(drawn: Path) -> None:
    found = rows(drawn / "beside_approximation.csv")
    paper, ours = (row for row in found if (row["n"], row["attn"], row["value"]) == ("4096", "mra2", "8"))
    assert (paper["origin"], paper["dtype"], paper["device"]) == ("published", "fp32", "GPU not named")
    assert (paper["softmax"], paper["inputs"]) == ("unfused", "others, not published")
    assert float(paper["time_layer"]) == pytest.approx(7.052 / 30.815, rel=1e-5)
    assert float(paper["memory"]) == pytest.approx(277.6 / 3931.7, rel=1e-5)
    made = [row for row in rows(drawn / "made-up" / "approximation.csv") if row["n"] == "4096"]
    measured = {row["attn"]: row for row in made if row["attn"] != "mra2" or row["value"] == "8"}
    step, eager, around = (float(measured[attn]["step_ms"]) for attn in ("mra2", "eager", "projections"))
    assert float(ours["time_layer"]) == pytest.approx((step + around) / (eager + around), rel=1e-4)
    assert float(ours["time"]) == pytest.approx(step / eager, rel=1e-4)
    assert float(ours["time_fused"]) == pytest.approx(step / float(measured["softmax"]["step_ms"]), rel=1e-4)
    assert float(ours["memory"]) == pytest.approx(
        float(measured["mra2"]["peak_mb"]) / float(measured["eager"]["peak_mb"]), rel=1e-4
    )
    assert ours["error"] == measured["mra2"]["error"]
    assert ours["device"] == "Made-up(R) CPU @ 2.00GHz, 2 threads"


def test_speeds_stand_beside_the_benchmarks_table(drawn: Path) -> None:
    found = {(row["attn"], row["thousands"], row["origin"]): row for row in rows(drawn / "beside_efficiency.csv")}
    assert found["performer", "4", "published"]["speed"] == "5.7"
    assert float(found["performer", "4", "published"]["memory"]) == pytest.approx(1.06 / 9.48, rel=1e-4)
    (measured,) = (
        row for row in rows(drawn / "made-up" / "efficiency.csv")
        if (row["of"], row["attn"], row["n"]) == ("model", "performer", "4096")
    )  # fmt: skip
    ours = found["performer", "4", "made-up"]
    assert float(ours["speed"]) == pytest.approx(1 / float(measured["ratio_eager"]), rel=1e-4)
    assert float(ours["speed_fused"]) == pytest.approx(1 / float(measured["ratio"]), rel=1e-4)
    assert ours["memory"] == measured["memory_ratio_eager"]


def test_smoothed_errors_stand_beside_the_published_ones(drawn: Path) -> None:
    found = rows(drawn / "beside_entropy.csv")
    at = {(row["attn"], row["budget"], row["against"], row["entropy"], row["origin"]): row for row in found}
    assert at["mra2", "1", "eager", "5", "published"]["error"] == "0.21"
    points = [row for row in rows(drawn / "made-up" / "entropy.csv")
              if (row["attn"], row["budget"], row["against"]) == ("mra2", "1", "softmax")]  # fmt: skip
    ours = float(at["mra2", "1", "softmax", "5", "made-up"]["error"])
    errors = [float(row["error"]) for row in points]
    assert min(errors) < ours < max(errors)
    none = at["scatterbrain", "0.5", "eager", "5", "made-up"]
    assert (none["error"], none["note"]) == ("", "nothing within the budget")


def test_the_least_error_within_a_share_is_that_of_the_best_budget_so_fast(drawn: Path) -> None:
    made = [row for row in rows(drawn / "made-up" / "approximation.csv") if row["n"] == "4096"]
    leads = [row for row in rows(drawn / "beside_leads.csv") if row["origin"] == "made-up" and row["n"] == "4096"]
    assert {row["attn"] for row in leads}.isdisjoint({"softmax", "eager", "projections", "yoso", "soft", "reformer"})
    for row in leads:
        key = "ratio" if row["against"] == "softmax" else "ratio_eager"
        its = [other for other in made if other["attn"] == row["attn"] and other["result"] == "ok"]
        within = [float(other["error"]) for other in its if float(other[key]) <= float(row["share"])]
        assert float(row["error"]) == pytest.approx(min(within), rel=1e-4)
    fast = {(row["attn"], row["share"]) for row in leads if row["against"] == "softmax"}
    assert ("mra2", "1") in fast
    page = pivots.leads(rows(drawn / "beside_leads.csv"))
    assert "Published, others' inputs, n = 4,096, shares of unfused softmax's time" in page
    assert "| within 1/8 |" in page
    # Published at 512: 0.736 and 0.804 of 0.860 ms.
    assert "| `mra2_s` | **0.169 at 8** |\n| `mra2` | 0.284 at 4 |" in page


def test_crossovers_stand_beside_cabs_lengths(drawn: Path) -> None:
    page = pivots.crossovers(rows(drawn / "beside_crossover.csv"))
    alone, model = page.split("A whole training step of the model")
    line = next(line for line in alone.splitlines() if line.startswith("| `performer` |"))
    assert line.endswith("| 2,361 | 37 |")
    assert "| `linformer` | always, from 512 |" in alone
    assert "| `scatterbrain` | never to 8,192 |" in model
    assert "CAB: time" not in model


def test_files_of_several_machines_are_columns_of_one_table(tmp_path: Path) -> None:
    for name, lengths in (("one", (512, 4096)), ("two", (512,))):
        save(tmp_path / name, "approximation", [row for n in lengths for row in approximation(n, device=name)])
    assert beside.write([find(tmp_path / name) for name in ("one", "two")], tmp_path)
    page = pivots.layers(rows(tmp_path / "beside_approximation.csv"))
    short, long = page.split("n = 4,096")
    assert "- A: one, 2 threads; torch 2.13.0+cpu; float32; inputs generated\n- B: two, 2 threads;" in short
    assert "B:" not in long
    line = next(line for line in short.splitlines() if line.startswith("| mra-2 | 8 |"))
    assert line.endswith("| 0.153 |  |  |  |  |  |  |  |  |  |  |"), "neither machine has this value"


def test_a_machine_without_exact_attention_has_empty_cells(tmp_path: Path) -> None:
    bare = [row for row in approximation(512) if row["attn"] in ("softmax", "mra2")]
    save(tmp_path, "approximation", [row | {"ratio_eager": ""} for row in bare])
    assert main([f"folder={tmp_path}"]) == 0
    ours = [row for row in rows(tmp_path / "beside_approximation.csv") if row["origin"] != "published"]
    assert ours
    assert {(row["time_layer"], row["time"], row["memory"]) for row in ours} == {("", "", "")}


def test_a_name_becomes_a_part_of_a_file_name() -> None:
    assert slug("generated:locality=0.2") == "generated-locality-0.2"
    assert slug("../x") == "x"
    assert slug("漢") == "unnamed"
