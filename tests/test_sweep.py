"""Sweeps: words to cells, what is done and what is not, and a few tiny ones in earnest."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from lra import job
from lra.compose import composer
from lra.cost import cheapest_first
from lra.grid import SWEEPS, Cell, cells, combinations, preset
from lra.launch import settings
from lra.outcome import conclude
from lra.plan import Planned, Standing, notes, refuse_strangers, show, standing, time_of
from lra.published import SOURCES, read_published
from lra.run import Run
from lra.sweep import Order, machine_cores, ordered, prepare_data, shares
from lra.train import CONF
from lra.words import WordError
from tests.runs import TINY, environment, result


def grid(*words: str) -> list[Cell]:
    with composer() as composing:
        return cells(composing, words)[0]


def test_a_file_is_a_grid_and_words_of_the_command_override_it() -> None:
    assert preset("seeds") == ["seed=0,1,2,3,4"]
    order = ordered(["sweep=attention", "seed=0,1", "task=text", "plan=true", "hydra/launcher=joblib"])
    assert order == Order(
        ["task=text", "attn=glob(*)", "seed=0,1"], ["hydra/launcher=joblib"], ("out_of_memory",), True, None
    )


@pytest.mark.parametrize("name", sorted(file.stem for file in SWEEPS.glob("*.yaml")))
def test_every_file_of_sweeps_names_cells_that_differ(name: str) -> None:
    with composer() as composing:
        every = combinations(composing, preset(name))
    assert len(every) > 1
    assert len({tuple(words) for words in every}) == len(every)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["sweep=lr_"], "sweep=lr_ is not one of attention, lr, lra, reproduce, seeds, smoke; did you mean 'lr'?"),
        (["retry=divergd"], "retry=divergd is not one of diverged, out_of_memory, none; did you mean 'diverged'?"),
        (["retry=none,diverged"], "retry=none,diverged: none stands alone"),
        (["threads=0"], "threads=0 must be a whole number of at least 1"),
        (["plan=yes"], "plan=yes is not one of true, false"),
        (["order=cheap"], "order=cheap is not one of seeds, cheapest; did you mean 'cheapest'?"),
        (["hydra.sweep.dir=x"], "'hydra.sweep.dir=x' is not for a sweep"),
    ],
)
def test_a_wrong_word_of_the_sweep_itself_is_one_line(words: list[str], line: str) -> None:
    with pytest.raises(WordError) as caught:
        ordered(words)
    assert str(caught.value).startswith(line)


def test_values_are_spelled_as_hydra_spells_them_and_seeds_change_slowest() -> None:
    found = grid("attn=glob(yoso*)", "seed=range(1,3)", "train.lr=choice(1e-3,2e-3)")
    assert [cell.name for cell in found[:3]] == [
        "listops (generated) yoso seed=1 train.lr=0.001",
        "listops (generated) yoso seed=1 train.lr=0.002",
        "listops (generated) yoso_conv seed=1 train.lr=0.001",
    ]
    assert len(found) == 8
    assert [cell.run.config.seed for cell in found] == [1] * 4 + [2] * 4


def test_reproduce_is_every_attention_of_the_protocol_with_what_its_paper_declares() -> None:
    order = ordered(["sweep=reproduce"])
    found = grid(*order.words)
    published = {value.attn for value in read_published() if value.protocol == "mlpen" and value.attn}
    assert order.cheapest
    attns = {cell.run.choices["attn"] for cell in found}
    assert attns == {file.stem for file in (CONF / "attn").glob("*.yaml")} >= published
    assert {cell.run.choices["task"] for cell in found} == set(SOURCES) - {"pathx"}
    assert len(found) == 5 * len(attns) * 3
    assert all(cell.run.changed == {} and cell.path.name in ("seed0", "seed1", "seed2") for cell in found)
    dropped = {cell.run.choices["attn"]: cell.run.config.attn.get("dropout") for cell in found}
    assert {attn: share for attn, share in dropped.items() if share} == {"softmax": 0.1}


def test_words_of_the_command_narrow_reproduce() -> None:
    order = ordered(["sweep=reproduce", "task=listops", "attn=mra2,softmax", "seed=0", "order=seeds"])
    paths = [cell.path.relative_to("runs/mlpen/listops").as_posix() for cell in grid(*order.words)]
    assert (sorted(paths), order.cheapest) == (["mra2/seed0", "softmax/seed0"], False)


def test_the_cheapest_cells_come_first_by_earlier_runs_or_by_length_and_attention() -> None:
    found = grid("task=text,listops", "attn=softmax,mra2", "seed=0,1")
    plans = [Planned(cell, Standing("missing"), True) for cell in found]
    ordered_plans = cheapest_first(plans)
    names = [f"{one.cell.run.choices['task']} {one.cell.run.choices['attn']}" for one in ordered_plans]
    assert names[::2] == names[1::2] == ["listops mra2", "listops softmax", "text mra2", "text softmax"]
    assert [one.cell.run.config.seed for one in ordered_plans] == [0, 1] * 4
    assert ordered_plans[0].cost == 1.0
    # Earlier runs know better, and a cell that is half done costs half.
    timed = {"listops mra2": 100.0, "listops softmax": 50.0}
    known = [replace(one, seconds=timed.get(name)) for one, name in zip(ordered_plans, names, strict=True)]
    known[-1] = replace(known[-1], standing=Standing("interrupted", 19_999))
    again = cheapest_first(known)
    assert [one.seconds for one in again[1:5]] == [50.0, 50.0, 100.0, 100.0]
    assert again[0].standing.step == 19_999


def test_a_plan_in_the_order_of_cost_shows_the_costs() -> None:
    out = io.StringIO()
    plans = [Planned(cell, Standing("missing"), True) for cell in grid("attn=softmax,mra2", "seed=0,1")]
    show(Console(file=out, highlight=False, width=200), cheapest_first(plans), 1)
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["task", "attention", "cells", "done", "failed", "to", "run", "cost", "time", "notes"]
    assert lines[1].split()[:6] == ["listops", "(generated)", "mra2", "2", "-", "-"]
    assert lines[1].split()[-2:] == ["1.0", "?"]
    assert "cheapest cells first; cost: " in lines[-1]


def test_a_run_that_is_named_twice_is_one_cell() -> None:
    with composer() as composing:
        found, again = cells(composing, ["seed=0,1,0", "device=cpu,auto"])
    assert (len(found), again) == (2, 4)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["task=text,listop"], "task=listop is not one of image, listops,"),
        (["attn=mra2,softmax", "attn.block_size=16"], "attn=softmax: no key 'attn.block_size' with the other"),
        (["task=listops,text", "recipe=mlpen_tex"], "task=listops: recipe=mlpen_tex is not one of google_image,"),
        (["train.steps=5,4000"], "train.steps=5: train.warmup=1000 must be at least 2 and below train.steps=5"),
        (["train.lr=1,x"], "train.lr=x: Value 'x' of type 'str'"),
        (["task=text,image", "task.split=clean"], "task=image: unknown key 'task.split'"),
        (["attn=glob(nothing*)"], "'attn=glob(nothing*)' names nothing"),
        (["train.lr=interval(0,1)"], "'train.lr=interval(0,1)' has no end"),
        (
            ["seed=0,1", "run_dir=here"],
            "here would be the directory of two cells: listops (generated) mra2 seed=0, and",
        ),
    ],
)
def test_a_cell_that_cannot_be_stops_the_sweep_and_is_named(words: list[str], line: str) -> None:
    with pytest.raises(WordError) as caught:
        grid(*words)
    assert str(caught.value).startswith(line), str(caught.value)
    assert "\n" not in str(caught.value)


def finished(folder: Path, **facts: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    told = {"status": "finished", "steps": 40, "test": {"accuracy": 0.5, "ci95": [0.4, 0.6]}, "seconds": 61.0, **facts}
    (folder / "result.json").write_text(json.dumps(told))
    return folder


def test_a_run_stands_where_its_directory_says(tmp_path: Path) -> None:
    assert standing(tmp_path / "none").status == "missing"
    assert standing(finished(tmp_path / "a")).status == "finished"
    for text in ("", "{", "[]", '{"status": "fine"}', "\x00"):
        (tmp_path / "a" / "result.json").write_text(text)
        assert standing(tmp_path / "a").status == "missing"
    (tmp_path / "a" / "checkpoint").mkdir()
    (tmp_path / "a" / "checkpoint" / "last.pt").touch()
    assert standing(tmp_path / "a").status == "interrupted"
    assert standing(finished(tmp_path / "b", status="diverged", steps=7))[:2] == ("diverged", 7)


def test_a_run_that_a_process_has_is_busy_until_the_process_lets_go(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {"seed": 0, "fresh": False})
    assert standing(tmp_path / "run")[0::3] == ("busy", str(os.getpid()))
    run.close()
    assert standing(tmp_path / "run").status == "missing"


def test_a_directory_of_another_run_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (cell,) = grid(f"run_dir={tmp_path / 'run'}", "seed=1")
    Run(cell.path, {**cell.run.plain, "seed": 2}).close()
    with pytest.raises(WordError, match=r"holds a run with seed=2; fresh=true puts it aside"):
        refuse_strangers(cell)
    (cell.path / "config.yaml").write_text("a: [")
    with pytest.raises(WordError, match=r"config\.yaml is not readable"):
        refuse_strangers(cell)


def test_the_cores_are_shared_among_the_cells_at_once() -> None:
    cores = machine_cores()

    def share(*words: str, options: dict[str, Any], count: int = 8) -> tuple[int, int | None]:
        side = shares("joblib", options, ordered(["hydra/launcher=joblib", *words]), count)
        assert side.words == (f"hydra.launcher.n_jobs={side.jobs}",)
        assert not side.pin or side.jobs * (side.threads or 0) <= cores
        return side.jobs, side.threads

    assert share(options={"n_jobs": 1}) == (1, cores)
    assert share(options={"n_jobs": -1}, count=10**6) == (cores, 1)
    assert share(options={"n_jobs": 10**6}, count=10**6) == (cores, 1)
    assert share("hydra.launcher.n_jobs=1000", options={"n_jobs": 1000}, count=10**6) == (1000, 1)
    assert share("threads=3", options={"n_jobs": 1}) == (1, 3)
    assert share(options={"n_jobs": 5}, count=1) == (1, cores)


def test_launchers_have_settings_of_ours_and_a_wrong_one_is_named() -> None:
    name, options = settings(["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"])
    assert (name, options["n_jobs"], options["pre_dispatch"], options["max_nbytes"]) == ("joblib", 3, "n_jobs", None)
    assert settings([])[0] == "basic"
    with pytest.raises(WordError, match=r"hydra/launcher=jobli is not one of basic, joblib, submitit_local"):
        settings(["hydra/launcher=jobli"])


def test_no_two_cells_hold_one_core_and_too_many_hold_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job.tempfile, "gettempdir", lambda: str(tmp_path))
    with job.cores(1) as first, job.cores(machine_cores()) as rest:
        assert len(first) == 1
        assert rest == []
        with job.cores(machine_cores() - 1) as others:
            assert not set(first) & set(others)
    with job.cores(machine_cores()) as every:
        assert len(every) == machine_cores()


def test_a_cell_that_ends_by_itself_leaves_its_words_in_the_log(tmp_path: Path) -> None:
    log = tmp_path / "run" / "log.txt"
    for times in (1, 2):
        assert job.run_cell(["train.lrr=1"], log, threads=1) == 2
        assert log.read_text().count("unknown key 'train.lrr'; did you mean 'train.lr'?") == times


def test_a_process_is_told_once_to_stop() -> None:
    program = "import signal, time; signal.signal(15, lambda *_: seen.append(1)); seen = []; print(flush=True)\n"
    program += "while not seen: time.sleep(0.01)\ntime.sleep(1.5)\nraise SystemExit(len(seen))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    assert job.wait(process, lambda: signal.SIGTERM) == 1
    process.stdout.close()


def test_data_that_cannot_be_had_is_one_line(tmp_path: Path) -> None:
    said = prepare_data(["task=listops", "task.source=release", f"data_dir={tmp_path}"])
    assert said.startswith("no data: ")
    assert "lra_release.gz" in said
    assert "\n" not in said


def known(*standings: Standing, path: Path, seconds: float | None = None) -> list[Planned]:
    found = grid(f"seed=range(0,{len(standings) + 1})")[: len(standings)]
    return [
        Planned(cell._replace(run=cell.run._replace(path=path / str(i))), now, True, seconds=seconds)
        for i, (cell, now) in enumerate(zip(found, standings, strict=True))
    ]


def test_the_plan_says_what_is_known_of_cells_and_of_time(tmp_path: Path) -> None:
    plans = known(Standing("interrupted", 30), Standing("diverged", 7), Standing("busy", pid="12"), path=tmp_path)
    assert notes(plans, "+502%") == (
        "1 diverged, again; seed 0 goes on from step 30; seed 2 is run by process 12; +502% parameters"
    )
    assert time_of(plans, 2) == "time: no earlier run to go by"
    timed = known(*[Standing("missing")] * 4, path=tmp_path, seconds=1800.0)
    assert time_of([*timed, *plans[:1]], 2) == (
        "time: about 1:00:00 by earlier runs, 2 at once; 1 cell with no earlier run to go by"
    )


def test_the_end_has_a_line_for_each_cell_with_its_reason_and_log(tmp_path: Path) -> None:
    plans = known(*[Standing("missing")] * 5, path=tmp_path)
    finished(tmp_path / "0")
    finished(tmp_path / "1", status="diverged", steps=7)
    (tmp_path / "2").mkdir()
    (tmp_path / "2" / "log.txt").write_text("step 1\nerror: no room\n")
    codes = {tmp_path / "2": 1, tmp_path / "3": 128 + signal.SIGKILL}
    shown = io.StringIO()
    code = conclude(Console(file=shown, highlight=False), plans, {tmp_path / "4": "no data: bring it"}, codes, 0)
    lines = shown.getvalue().splitlines()
    assert code == 1
    assert len(lines) == 8
    assert " ".join(lines[2].split()) == "listops (generated) mra2 seed=0 finished 50.0 40.0 to 60.0 40 0:01:01"
    assert lines[3].rstrip().endswith(f"diverged at step 7, {tmp_path}/1/log.txt")
    assert lines[4].rstrip().endswith(f"no room, {tmp_path}/2/log.txt")
    assert "ended by SIGKILL, as a system without memory does" in lines[5]
    assert lines[6].rstrip().endswith("no data: bring it")
    assert lines[7] == "5 cells: 1 finished, 4 failed"
    finished(tmp_path / "1")
    assert conclude(Console(file=io.StringIO()), plans[:2], {}, {}, 0) == 0
    assert conclude(Console(file=io.StringIO()), plans[:2], {}, {}, signal.SIGTERM) == 143


SMALL = [word for word in TINY if not word.startswith("attn.")]


def sweep(folder: Path, *words: str) -> subprocess.Popen[str]:
    chosen = {word.partition("=")[0]: word for word in (*SMALL, *words)}
    return subprocess.Popen(
        [sys.executable, "-m", "lra.sweep", *chosen.values()],
        cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str], code: int) -> str:
    out, _ = process.communicate(timeout=200)
    assert process.returncode == code, out
    return out


def test_a_cell_that_fails_stops_no_other_and_the_same_command_runs_what_is_left(tmp_path: Path) -> None:
    words = ("attn=softmax", "train.lr=1e-3,1e30", "train.steps=12", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    out = ended(sweep(tmp_path, *words), 1)
    assert "2 cells: 1 finished, 1 failed" in out
    assert "diverged at step" in out
    good, bad = sorted(tmp_path.glob("runs/mlpen/listops/softmax/*"), key=lambda path: "e+30" in path.name)
    assert (result(good)["status"], result(bad)["status"]) == ("finished", "diverged")
    assert "test   accuracy" in (good / "log.txt").read_text()
    stamp = (good / "result.json").stat().st_mtime_ns
    again = ended(sweep(tmp_path, *words), 1)
    assert "1 done, 1 failed, 0 to run" in again
    assert "begun" not in again
    assert (good / "result.json").stat().st_mtime_ns == stamp


def test_a_sweep_that_is_killed_leaves_nothing_running_and_goes_on_where_it_was(tmp_path: Path) -> None:
    words = ("attn=softmax", "seed=0", "train.steps=4000", "hydra/launcher=joblib")
    process = sweep(tmp_path, *words)
    deadline = time.monotonic() + 150
    while not (records := list(tmp_path.glob("runs/mlpen/listops/softmax/*/checkpoint/last.pt"))):
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.1)
    process.kill()
    process.communicate()
    run = records[0].parents[1]
    while job.holder(run):
        assert time.monotonic() < deadline, "the cell outlives its sweep"
        time.sleep(0.1)
    told = result(run)
    assert told["status"] == "interrupted"
    process = sweep(tmp_path, *words)
    assert process.stdout
    seen = []
    while "begun" not in (line := process.stdout.readline()):
        seen.append(line)
        assert line, "".join(seen)
    assert f"from step {told['steps']}" in line
    process.send_signal(signal.SIGTERM)
    out = ended(process, 143)
    assert "stopped by SIGTERM; the same command goes on from what is saved" in out
    assert not job.holder(run)
