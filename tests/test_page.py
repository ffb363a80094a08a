"""Laws of the report's page: what its JSON holds, and that nothing in it can get out."""

from __future__ import annotations

import html.parser
import json
import math
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import make_runs
from lra.cells import cells
from lra.outcomes import collect
from lra.page import build, contents, front_end
from lra.results import main
from tests.results import published, some_table, table_of, write_run

TEMPLATE = (
    '<style>{{css}}</style>{{static}}<script type="application/json" id="data">{{data}}</script><script>{{js}}</script>'
)
HOSTILE = "</script><script>alert(1)</script><!--{{js}}&amp;\u2028"


class Embedded(html.parser.HTMLParser):
    """The scripts of a page as a browser parses them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.inside = False
        self.scripts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag == "script"
        self.scripts += [""] * self.inside

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data


def data_in(page: str) -> dict[str, Any]:
    data, _ = Embedded(page).scripts
    return json.loads(data)


def numbers(tree: Any) -> Iterator[float]:
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, list):
        for item in tree:
            yield from numbers(item)
    elif isinstance(tree, (int, float)) and not isinstance(tree, bool):
        yield tree


def check(data: dict[str, Any]) -> None:
    """What holds of every page."""
    assert all(map(math.isfinite, numbers(data)))
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    places = []
    for cell in data["cells"]:
        assert cell["column"] in range(len(data["columns"]))
        assert cell["attention"] in range(len(data["attentions"]))
        places.append((cell["column"], cell["attention"], cell["deviation"]))
        runs = [data["runs"][i] for i in cell["runs"]]
        finished = [run["accuracy"] for run in runs if run["status"] == "finished"]
        assert cell["finished"] == len(finished)
        assert sum(cell["failures"].values()) == len(runs) - len(finished)
        assert (cell["accuracy"] is None) == (not finished)
        if finished:
            assert cell["accuracy"] == pytest.approx(statistics.fmean(finished), abs=0.02)
            low, high, kind = cell["interval"]
            assert low - 0.01 <= cell["accuracy"] <= high + 0.01
            assert kind == ("student" if len(finished) > 1 else "wilson")
        assert len({run["seed"] for run in runs}) == len(runs)
        assert len({run["data_sha256"] for run in runs}) == 1
    assert len(set(places)) == len(places)
    shown = sorted(i for cell in data["cells"] for i in (*cell["runs"], *cell["superseded"]))
    assert shown == list(range(len(data["runs"])))
    assert all(not run["config"].keys() & data["common"].keys() for run in data["runs"])


def write_metrics(folder: Path, lines: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_run_and_every_fact_of_a_cell_is_in_the_json(tmp_path: Path) -> None:
    table = some_table(tmp_path)
    data = contents(table, ["a problem"], "task=listops", None, "c" * 40, 1_700_000_000.0)
    check(data)
    assert (data["schema"], data["generated"], data["filters"]) == (1, "2023-11-14 22:13 UTC", "task=listops")
    mra2 = next(cell for cell in data["cells"] if data["attentions"][cell["attention"]]["name"] == "mra2")
    assert (mra2["accuracy"], mra2["finished"], mra2["difference"]) == (36.68, 2, -0.52)
    assert mra2["published"] == {
        "text": "37.2", "value": 37.2, "mark": "?", "status": "unverified", "source": "A paper",
        "url": published().url, "note": "",
    }  # fmt: skip
    assert [data["runs"][i]["path"] for i in mra2["runs"]] == ["mlpen/listops/mra2/seed0", "mlpen/listops/mra2/seed1"]
    softmax = data["cells"][0]
    assert (softmax["accuracy"], softmax["interval"], softmax["failures"]["diverged"]) == (None, None, 1)
    assert data["attentions"][0] == {"name": "softmax", "colour": "#222222", "dash": 0}
    assert data["columns"][0]["name"] == "listops (generated)"
    assert data["columns"][0]["floors"] == {"majority class": 17.1, "root-operator classifier": 36.2}
    assert data["columns"][1]["floors"] == {}
    assert data["problems"][0] == "a problem"


def test_what_all_runs_share_is_said_once_and_the_rest_at_each_run(tmp_path: Path) -> None:
    for seed in range(2):
        write_run(tmp_path / f"seed{seed}", seed=seed, config={"seed": seed, "train.lr": 0.1, "model.bias": True})
    write_run(tmp_path / "b/seed0", attn="softmax", config={"seed": 0, "train.lr": 0.1, "model.bias": 1, "attn.x": 1})
    data = contents(table_of(tmp_path))
    check(data)
    assert data["common"] == {"train.lr": 0.1}
    assert [run["config"] for run in data["runs"]] == [
        {"seed": 0, "model.bias": 1, "attn.x": 1},
        {"seed": 0, "model.bias": True},
        {"seed": 1, "model.bias": True},
    ]


def test_a_run_that_was_replaced_is_there_and_counts_nowhere(tmp_path: Path) -> None:
    old, new = write_run(tmp_path / "a/seed0", accuracy=0.3), write_run(tmp_path / "b/seed0", accuracy=0.4)
    os.utime(old, (1_000, 1_000))
    os.utime(new, (2_000, 2_000))
    data = contents(table_of(tmp_path))
    check(data)
    (cell,) = data["cells"]
    assert [[data["runs"][i]["path"] for i in cell[key]] for key in ("runs", "superseded")] == [
        ["b/seed0"],
        ["a/seed0"],
    ]


def test_curves_are_thinned_and_keep_their_ends_their_best_and_their_means(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "seed0").parent
    lines = [{"step": i, "split": "train", "loss": float(i), "accuracy": 0.5} for i in range(1, 601)]
    lines += [{"step": i, "split": "val", "loss": 1.0, "accuracy": 0.9 if i == 333 else 0.1} for i in range(1, 601)]
    lines += [{"step": 1, "split": "elsewhere", "loss": 1.0}]
    write_metrics(folder, lines)
    curves = contents(table_of(tmp_path))["runs"][0]["curves"]
    assert curves.keys() == {"train", "val"}
    train, val = curves["train"], curves["val"]
    assert train["steps"] == list(range(10, 601, 10))
    assert train["loss"] == [10 * i + 5.5 for i in range(60)]
    assert len(val["steps"]) <= 60
    assert (val["steps"][0], val["steps"][-1]) == (1, 600)
    assert val["accuracy"][val["steps"].index(333)] == 90.0


def test_numbers_that_are_none_are_null_and_no_error(tmp_path: Path) -> None:
    folder = write_run(
        tmp_path / "seed0", config={"train.lr": math.inf, "a": [math.nan], "b": 10**40, "c": "x" * 10**5}
    )
    bad: tuple[dict[str, Any], ...] = (
        {"loss": math.nan, "accuracy": math.inf},
        {"loss": None},
        {"loss": -math.inf, "accuracy": 1e308},
    )
    write_metrics(folder.parent, [{"step": i, "split": "train", **line} for i, line in enumerate(bad)])
    data = contents(table_of(tmp_path))
    check(data)
    assert data["runs"][0]["curves"]["train"] == {"steps": [0, 1, 2], "accuracy": [None] * 3, "loss": [None] * 3}
    assert data["common"]["train.lr"] == "inf"
    assert len(json.dumps(data)) < 10_000


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no curves, metrics.jsonl is missing (1): seed0"),
        (b"\xff\xfe\n", "metrics.jsonl is not text: 'utf-8' codec can't decode"),
        (b'{"step": 1, "split": "train", "loss": 1.0}\nhello\n', "no curves of seed0: "),
        (b'{"step": 1, "split": ["train"]}\n', "line 1 is not a metrics line"),
        (b'{"step": 1e999, "split": "train"}\n', "line 1 is not a metrics line"),
        (b'{"step": 1}, {"step": 2}\n', "line 1 is not a metrics line"),
        (b'{"step": 1, "split": "val", "loss": 2, "a": [1}\n{"b": 2]}\n', "line 1 is not a metrics line"),
    ],
)
def test_curves_that_cannot_be_read_are_a_line_and_the_run_stays(
    tmp_path: Path, content: bytes | None, says: str
) -> None:
    folder = write_run(tmp_path / "seed0").parent
    if content is not None:
        (folder / "metrics.jsonl").write_bytes(content)
    data = contents(table_of(tmp_path))
    check(data)
    (line,) = data["problems"]
    assert says in line
    assert data["runs"][0]["curves"] == {}


def test_a_line_that_is_being_written_is_not_shown(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "seed0").parent
    write_metrics(folder, [{"step": 1, "split": "val", "loss": 1.0, "accuracy": 0.5}])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "split": "val", "loss": 1.0, "accuracy": 0.')
    data = contents(table_of(tmp_path))
    assert data["problems"] == []
    assert data["runs"][0]["curves"]["val"]["steps"] == [1]


def test_hostile_names_are_inert(tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "%").replace("\u2028", "")
    write_run(
        tmp_path / name / "seed0", deviations={"train.lr": HOSTILE}, attn=name, device=name, config={name: HOSTILE}
    )
    table = cells(collect(tmp_path)[0], [published(attn=name, source=HOSTILE, note=HOSTILE)])
    page = build(TEMPLATE, "p {}", "start();", contents(table, [HOSTILE], HOSTILE))
    scripts = Embedded(page).scripts
    assert len(scripts) == 2
    assert scripts[1] == "start();"
    assert data_in(page)["filters"] == HOSTILE
    assert data_in(page)["attentions"][0]["name"] == name
    assert page.isascii()
    outside = page.split('<script type="application/json"')[0]
    assert "<script" not in outside


def test_a_template_without_a_place_or_a_part_that_ends_its_element_is_refused() -> None:
    data = contents([])
    with pytest.raises(ValueError, match="must have {{data}} once"):
        build(TEMPLATE.replace("{{data}}", ""), "", "", data)
    with pytest.raises(ValueError, match="js holds"):
        build(TEMPLATE, "", "'</SCRIPT>'", data)
    with pytest.raises(ValueError, match="JSON compliant"):
        build(TEMPLATE, "", "", {**data, "schema": math.nan})


def test_the_page_needs_nothing_from_elsewhere() -> None:
    template, css, js = front_end()
    page = build(template, css, js, contents([]))
    assert "{{" not in page.replace(js, "").replace(css, "")
    for loads in ("src=", "@import", "url(", "fetch(", "XMLHttpRequest", "import("):
        assert loads not in page


def test_filters_reach_the_page(tmp_path: Path) -> None:
    some_table(tmp_path)
    assert main([f"runs={tmp_path}", "attn=mra2,softmax", "protocol=mlpen"]) == 0
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    data = json.loads(Embedded(page).scripts[0])
    check(data)
    assert data["filters"] == "attn=mra2,softmax protocol=mlpen"
    assert [attention["name"] for attention in data["attentions"]] == ["softmax", "mra2"]
    assert {row["attention"] for row in data["crossover"]["rows"]} == {"mra2"}


def test_500_runs_are_all_there_in_3_mb(tmp_path: Path) -> None:
    make_runs(tmp_path / "many", 500, steps=50)
    make_runs(tmp_path / "whole", 1)
    data = contents(table_of(tmp_path / "many"))
    (whole,) = contents(table_of(tmp_path / "whole"))["runs"]
    check(data)
    assert (len(data["runs"]), len(data["cells"]), len(data["columns"]), data["problems"]) == (500, 90, 5, [])
    assert all(50 < len(curve["steps"]) <= 60 for curve in whole["curves"].values())
    for run in data["runs"]:
        run["curves"] = whole["curves"]
    assert len(build(*front_end(), data)) < 3_000_000
