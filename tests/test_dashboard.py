"""What W&B's panels name is what the tracker writes; the specification is what tests/dashboard.json says.

After a change that is meant: python -m tests.test_dashboard writes the snapshot again.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lra import dashboard
from lra.cells import SOURCES
from lra.dashboard import main
from tests import runs
from tests.test_tracker import Offline

pytestmark = pytest.mark.filterwarnings(
    # wandb-workspaces is written for an older pydantic.
    "ignore::DeprecationWarning:wandb_workspaces", "ignore::DeprecationWarning:pydantic"
)  # fmt: skip
SNAPSHOT = Path(__file__).parent / "dashboard.json"
SWEEP = runs.ROOT / "conf" / "wandb-sweep.yaml"


def specifications() -> dict[str, Any]:
    from lra import panels

    return {
        "workspace": panels.specification(panels.workspace("lra")),
        "report": panels.specification(panels.report("lra", tasks=["listops"])),
    }


def leaves(tree: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a JSON tree with the key that it stands under."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from leaves(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from leaves(value, key)
    else:
        yield key, tree


def named(tree: Any) -> set[str]:
    """The keys of runs that a specification names, as `config:<key>`, `summary:<key>` or `history:<key>`."""
    found = set()
    if isinstance(tree, dict):
        if set(tree) == {"section", "name"}:
            found.add(f"{tree['section']}:{tree['name'].removesuffix('.value')}")
        for key, value in tree.items():
            if key == "config" and isinstance(value, dict):
                curves = tree.get("viewType") == "Run History Line Plot"
                kind = "history" if curves else "summary"
                found |= {f"{kind}:{metric}" for metric in value.get("metrics", [])}
                found |= {axis for axis in (value.get("xAxis"), value.get("yAxis")) if axis and ":" in axis}
                found |= {"history:step"} if curves else set()
                assert not curves or value["xAxis"] == "step"
                found |= {f"config:{value['groupBy'].removesuffix('.value')}"} if "groupBy" in value else set()
            if key == "columnOrder":
                found |= {column.removesuffix(".value") for column in value}
            found |= named(value)
    elif isinstance(tree, list):
        for value in tree:
            found |= named(value)
    return found - {"run:displayName", "run:createdAt"}


def written_by(folder: Path) -> Offline:
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    return Offline(file)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the first cell of conf/wandb-sweep.yaml, on toy data, as W&B's agent would start it."""
    folder = tmp_path_factory.mktemp("swept")
    words = [word for word in agents_words(0)[3:] if word != "tracker=wandb"]
    runs.train(folder, *words, "tracker=offline", f"tracker_dir={folder}", "train.steps=12")
    return folder


def agents_words(choice: int) -> list[str]:
    """The command line of one cell of the sweep, expanded by W&B's own code; `choice` counts in each list of values."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    sweep = yaml.safe_load(SWEEP.read_text())
    cell = {
        key: {"value": given["value"] if "value" in given else given["values"][choice]}
        for key, given in sweep["parameters"].items()
    }
    expanded = create_sweep_command_args({"args": cell})
    words: list[str] = []
    for word in create_sweep_command(sweep["command"]):
        words += expanded[word[2:-1]] if word.startswith("${") else [word]
    return words


def test_the_specification_is_that_of_the_snapshot() -> None:
    assert specifications() == json.loads(SNAPSHOT.read_text())


def test_no_two_things_of_a_specification_have_one_id() -> None:
    for specification in specifications().values():
        ids = [value for key, value in leaves(specification) if key in ("__id__", "id")]
        assert len(ids) == len(set(ids)) > 5


def test_every_key_that_a_panel_names_is_one_that_a_run_wrote(swept: Path) -> None:
    run = written_by(swept)
    written = {f"config:{key}" for key in run.config} | {f"summary:{key}" for key in run.summary}
    written |= {f"history:{key}" for row in run.history for key in row}
    wanted = named(specifications())
    assert {"config:cell", "summary:test/accuracy", "history:val/accuracy", "summary:run/failed"} <= wanted
    assert wanted - written == set()


def test_a_run_is_written_with_its_hashes_its_commit_and_the_keys_of_the_design(swept: Path) -> None:
    written = written_by(swept)
    run, result = written.run, runs.result(swept / "run")
    assert (run.run_group, run.display_name, run.job_type) == ("mlpen/listops", "softmax/run", "train")
    assert run.run_id == (swept / "run" / "tracker.id").read_text().strip()
    assert list(run.tags) == ["mlpen", "listops", "softmax", "synthetic"]
    for key in ("attn", "task", "protocol", "kernel", "kernel_sha256", "data_sha256", "config_sha256", "git_commit"):
        assert written.config[key] == result[key]
    assert written.config["attn_parameters"]["name"] == "softmax"
    assert {
        "test/accuracy": result["test"]["accuracy"],
        "val/best_accuracy": result["val"]["accuracy"],
        "speed/tokens_per_s": result["tokens_per_s"],
        "memory/peak_mb": result["peak_memory_mb"],
        "model/params": result["params"],
        "run/failed": 0,
    }.items() <= written.summary.items()
    tables = {path.name.split("_summary_")[0] for path in swept.glob("wandb/offline-run-*/files/media/table/test/*")}
    assert tables == {"per_class", "confusion", "predictions"}


def test_a_finished_run_tells_an_agent_its_curves_and_its_result(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lra import session
    from lra.config import Config
    from lra.run import Run

    class Agent:
        def finish(self, summary: dict[str, Any], exit_code: int) -> None:
            told.append({**summary, "exit_code": exit_code})

    def opened(*_: object, **about: Any) -> Agent:
        told.append(about)
        return Agent()

    told: list[dict[str, Any]] = []
    monkeypatch.setattr(session, "open_tracker", opened)
    with Run(swept / "run", yaml.safe_load((swept / "run" / "config.yaml").read_text())) as run:
        session.show_again(Config(tracker="wandb"), run, runs.result(swept / "run"))
    about, summary = told
    before = written_by(swept)
    assert {key: about["config"][key] for key in ("cell", "attn_parameters", "kernel", "params")} == {
        key: before.config[key] for key in ("cell", "attn_parameters", "kernel", "params")
    }
    assert [record["step"] for record in about["history"]] == [row["step"] for row in before.history]
    assert summary.pop("exit_code") == 0
    assert summary == {key: before.summary[key] for key in summary}


def test_wandbs_agent_starts_a_cell_with_the_words_of_our_command() -> None:
    words = agents_words(-1)
    assert words == [
        ".venv/bin/python", "-m", "lra.train", "task=listops", "attn=mra2_s", "seed=2", "train.lr=0.0003",
        "tracker=wandb",
    ]  # fmt: skip


def test_the_sweep_names_what_the_tracker_writes_and_methods_that_wandb_has() -> None:
    sweep = yaml.safe_load(SWEEP.read_text())
    assert sweep["method"] in ("grid", "random", "bayes")
    assert sweep["metric"] == {"name": "test/accuracy", "goal": "maximize"}
    assert (runs.ROOT / sweep["program"]).is_file()
    assert all(set(given) in ({"value"}, {"values"}) for given in sweep["parameters"].values())


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture(autouse=True)
def no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def offline_run(root: Path) -> Path:
    file = root / "wandb" / "offline-run-20260101_000000-abc" / "run-abc.wandb"
    file.parent.mkdir(parents=True)
    file.touch()
    return file


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("view=lett",), "view=lett is not one of leet, trackio, wandb; did you mean 'leet'?"),
        (("vew=leet",), "unknown key 'vew', known are view, runs, project, entity; did you mean 'view'?"),
        (("runs=nowhere at all",), "runs=nowhere at all is not a folder"),
    ],
)
def test_a_wrong_word_is_one_line(words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, *words) == (2, "", f"error: {line}\n")


def test_leet_says_where_it_finds_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = answer(capsys, f"runs={tmp_path}")
    assert (code, err) == (0, "")
    assert out.startswith(f"no W&B runs in {tmp_path / 'wandb'} yet: make lra")


def test_leet_without_a_terminal_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offline_run(tmp_path)
    code, out, err = answer(capsys, f"runs={tmp_path}")
    assert (code, out) == (1, "")
    assert err.startswith("error: view=leet needs a terminal; ")


def test_leet_becomes_wandbs_own_command_on_the_folder_of_all_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offline_run(tmp_path)
    became: list[list[str]] = []
    monkeypatch.setattr(dashboard.os, "execv", lambda path, words: became.append(words))
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    main([f"runs={tmp_path}"])
    assert became == [[sys.executable, "-m", "wandb", "leet", "run", str(tmp_path / "wandb")]]
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"


def test_without_a_key_the_specifications_are_written_and_a_line_says_what_a_key_would_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = answer(capsys, "view=wandb", f"runs={tmp_path}")
    assert (code, err) == (0, "")
    assert out.endswith("with a key (WANDB_API_KEY or wandb login) the same words save them online\n")
    written = {name: json.loads((tmp_path / "report" / f"wandb-{name}.json").read_text()) for name in specifications()}
    assert written["workspace"] == specifications()["workspace"]
    headings = [block["children"][0]["text"] for block in written["report"]["blocks"] if block["type"] == "heading"]
    assert headings == [*SOURCES, "Failures"]


def test_a_key_that_is_none_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    code, _, err = answer(capsys, "view=wandb", f"runs={tmp_path}")
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith("error: not saved online: ")
    assert not (tmp_path / "report" / "wandb-saved.json").exists()


def test_what_was_saved_online_is_saved_over_the_next_time_though_the_report_failed_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    from lra import panels

    saved: list[tuple[str, str]] = []

    class Api:
        default_entity = "me"

    def save_workspace(view: Any) -> None:
        saved.append(("workspace", view._internal_id))
        view._internal_name, view._internal_id = "nw-abc-v", "w1"

    def save_report(view: Any) -> None:
        saved.append(("report", view.id))
        if len(saved) == 2:
            raise ValueError("no such project")
        view.id = "r1"

    monkeypatch.setattr(wandb, "Api", Api)
    for kind, save in ((panels.workspaces.Workspace, save_workspace), (panels.reports.Report, save_report)):
        monkeypatch.setattr(kind, "save", save)
        monkeypatch.setattr(kind, "url", property(lambda view: f"{view.entity}/{view.project}"))
    known = tmp_path / "saved.json"
    with pytest.raises(OSError, match="not saved online: no such project"):
        dashboard.save_online("lra", "", known)
    for _ in range(2):
        assert dashboard.save_online("lra", "", known) == ["me/lra", "me/lra"]
    dashboard.save_online("other", "", known)
    once = [("workspace", ""), ("report", "")]
    assert saved == [*once, ("workspace", "w1"), ("report", ""), ("workspace", "w1"), ("report", "r1"), *once]


def test_a_server_that_does_not_answer_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()
    monkeypatch.setattr(dashboard, "_save", lambda *_: let_go.wait(60))
    with pytest.raises(OSError, match="not saved online: no answer from W&B within 0 s"):
        dashboard.save_online("lra", "", tmp_path / "saved.json", seconds=0)
    let_go.set()


if __name__ == "__main__":
    SNAPSHOT.write_text(json.dumps(specifications(), indent=1, sort_keys=True) + "\n")
