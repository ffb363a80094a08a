"""Laws of reading runs: what is whole is read, what is not is a line and hurts no other."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lra.outcomes import collect, deviation
from tests.results import table_of, write_run


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


# Whatever else may lie in a folder of runs


def only_line(root: Path) -> str:
    write_run(root / "good/seed0")
    runs, problems = collect(root)
    assert [run.name for run in runs] == ["good/seed0"]
    (line,) = problems
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"schema": 1, "status": "fin', "not whole JSON"),
        (bytes(range(256)), "codec can't decode"),
        (b"\x00" * 100, "not whole JSON"),
        (b'{"schema": 7}', "schema 7, this version reads 1"),
        (b"[" * 100_000, "recursion"),
        (b" " * (2**24 + 1), "larger than 16 MiB"),
    ],
)
def test_a_result_that_is_none_is_listed_with_its_path_and_the_reason(
    tmp_path: Path, content: bytes, says: str
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/result.json").write_bytes(content)
    line = only_line(tmp_path)
    assert line.startswith("left out bad/result.json: ")
    assert says in line


def test_a_folder_a_pipe_and_a_loop_in_place_of_a_result_are_listed_and_block_nothing(tmp_path: Path) -> None:
    for name in ("folder", "pipe", "loop", "nowhere"):
        (tmp_path / name).mkdir()
    (tmp_path / "folder/result.json").mkdir()
    os.mkfifo(tmp_path / "pipe/result.json")
    (tmp_path / "loop/result.json").symlink_to("result.json")
    (tmp_path / "nowhere/result.json").symlink_to("missing.json")
    runs, problems = collect(tmp_path)
    assert runs == []
    assert [line.partition(":")[0] for line in problems] == [
        f"left out {name}/result.json" for name in ("folder", "loop", "nowhere", "pipe")
    ]


def test_a_link_to_a_folder_above_is_no_endless_walk_and_a_run_behind_two_links_counts_once(tmp_path: Path) -> None:
    write_run(tmp_path / "disk/seed0")
    root = tmp_path / "runs"
    root.mkdir()
    for name in ("a", "b"):
        (root / name).symlink_to(tmp_path / "disk")
    (tmp_path / "disk/seed0/up").symlink_to(root)
    runs, problems = collect(root)
    assert ([run.name for run in runs], problems) == (["a/seed0"], [])


def test_what_may_not_be_read_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "file/seed0")
    write_run(tmp_path / "folder/seed0")
    scan, read = os.scandir, Path.read_text

    def refuse(of: Any, name: str) -> Any:
        def maybe(path: Any, *words: Any, **options: Any) -> Any:
            if name in str(path):
                raise PermissionError(13, "Permission denied", str(path))
            return of(path, *words, **options)

        return maybe

    monkeypatch.setattr(os, "scandir", refuse(scan, f"{tmp_path}/folder"))
    monkeypatch.setattr(Path, "read_text", refuse(read, f"{tmp_path}/file"))
    assert collect(tmp_path) == (
        [],
        ["left out file/seed0/result.json: Permission denied", "left out folder: Permission denied"],
    )


def test_a_run_that_moves_away_while_it_is_read_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "good/seed0")
    gone = write_run(tmp_path / "gone/seed0").parent
    scan = os.scandir

    def late(path: Any) -> Any:
        found = scan(path)
        if Path(path) == tmp_path and gone.exists():
            gone.rename(tmp_path / "gone/.seed0.old-1")
        return found

    monkeypatch.setattr(os, "scandir", late)
    runs, problems = collect(tmp_path)
    assert ([run.name for run in runs], problems) == (["good/seed0"], [])


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "\udcff", "a\u2028b"])
def test_a_name_that_cannot_be_printed_is_shown_by_its_escapes(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / name / "seed0")
    ((run,), problems) = collect(tmp_path)
    assert problems == []
    assert run.name.isprintable()
    assert "\\" in run.name
    write_run(tmp_path / name / "seed0", attn=name)
    runs, (line,) = collect(tmp_path)
    assert runs == []
    assert line.isprintable()


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"config": [1]}, "config"),
        ({"declared": "much"}, "declared"),
        ({"processes": 0}, "processes"),
        ({"steps": 10**30}, "steps"),
        ({"test": {"accuracy": 0.5, "n": 10**400}}, "test.n"),
        ({"git_commit": 3}, "git_commit"),
        ({"seconds": "long"}, "seconds"),
    ],
)
def test_a_newer_fact_that_is_none_is_left_out_with_its_run(tmp_path: Path, changes: dict[str, Any], key: str) -> None:
    write_run(tmp_path / "seed0", **changes)
    runs, (line,) = collect(tmp_path)
    assert runs == []
    assert f": {key} is " in line


def test_predictions_that_are_missing_broken_or_of_another_length_are_told_and_the_run_counts(tmp_path: Path) -> None:
    for name in ("missing", "broken", "short", "torn", "good"):
        write_run(tmp_path / name / "seed0")
    (tmp_path / "missing/seed0/predictions.npz").unlink()
    (tmp_path / "broken/seed0/predictions.npz").write_bytes(b"PK\x03\x04 no archive")
    np.savez(tmp_path / "short/seed0/predictions.npz", predictions=np.zeros(1999))
    whole = (tmp_path / "torn/seed0/predictions.npz").read_bytes()
    (tmp_path / "torn/seed0/predictions.npz").write_bytes(whole[: len(whole) // 2])
    runs, problems = collect(tmp_path)
    assert len(runs) == 5
    assert problems == [
        "predictions.npz is broken (2): broken/seed0, torn/seed0",
        "predictions.npz is missing (1): missing/seed0",
        "predictions.npz holds 1,999 items of a test split of 2,000 (1): short/seed0",
    ]
