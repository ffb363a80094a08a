"""What lies in the folders of runs: results, curves, configurations, checkpoints and predictions, whole or foreign."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml

from lra import checkpoint, pace, plan
from lra.board import read_result
from lra.cells import cells
from lra.config import identity
from lra.curves import points, read_curves, windows
from lra.folders import read_config
from lra.outcomes import STATUSES, collect, faulty_predictions
from lra.page import contents, embedded
from lra.records import Follower, last_record
from lra.run import Run
from lra.table import comma_separated, markdown
from lra.tracker import charted, read_metrics
from lra.words import WordError
from tests.faults.foreign import CHUNKS, attack, one_line, payload
from tests.faults.mutation import mutated, repickled, revalued, spoiled_json
from tests.results import write_run

CPU = torch.device("cpu")


@CHUNKS
def test_a_result_is_a_row_of_the_table_or_a_line_beneath_it(room: Path, tally: Counter[str], chunk: int) -> None:
    path = write_run(
        room / "mlpen/listops/mra2/seed0",
        config={"task.split": "clean", "train.lr": 0.1, "seed": 0},
        deviations={"train.lr": 0.1, "model.layers": [1, 2]},
        declared={},
        seconds=3.5,
        processes=1,
        params_softmax=216_000,
    )
    result = json.loads(path.read_text())
    drawn = 0

    def read(given: bytes) -> None:
        nonlocal drawn
        path.write_bytes(given)
        plan.standing(path.parent)
        timed = pace.read_run(path.parent, room)
        assert timed is None or (timed[1].seconds > 0 and math.isfinite(timed[1].seconds))
        runs, problems = collect(room)
        assert len(runs) + len([line for line in problems if line.startswith("left out")]) == 1
        for line in problems:
            one_line(ValueError(line), "predictions.npz" if runs else "mlpen/listops/mra2/seed0/result.json")
        for run in runs:
            assert run.status in STATUSES
            assert run.accuracy is None or 0 <= run.accuracy <= 1
            assert 0 <= run.steps <= 2**53
            assert f"{run.protocol}{run.task}{run.attn}{run.deviation}{run.device}".isprintable()
            drawn += 1
            if drawn % 10 == 1:
                table = cells(runs)
                page = contents(table, problems, "", None, "", 0.0)
                json.loads(embedded(page).replace("\\u003c", "<"))
                assert markdown(table, page["problems"], "").encode()
                assert comma_separated(table).encode()
        if not runs:
            try:
                assert read_result(path.parent), "a broken result is told"
            except (ValueError, OverflowError, RecursionError) as error:
                raise ValueError(problems[0]) from error

    attack("result.json", chunk, lambda draw: spoiled_json(draw, result), read, tally, names="result.json")


RECORDS = [
    {"step": 10, "steps": 20, "split": "train", "loss": 2.25, "accuracy": 0.1, "lr": 0.001, "seconds": 1.5},
    {"step": 10, "steps": 20, "split": "val", "loss": 2.0, "accuracy": 0.25, "seconds": 1.75},
    {"step": 20, "steps": 20, "split": "train", "loss": None, "accuracy": 0.2, "lr": 0.0, "seconds": 3.0},
    {"step": 20, "steps": 20, "split": "val", "loss": 1.5, "accuracy": 0.5, "seconds": 3.25},
]


def record_of_a_run(draw: Random) -> bytes:
    lines = [json.dumps(record).encode() for record in RECORDS]
    for _ in range(draw.choice((0, 1, 2))):
        at = draw.randrange(len(lines))
        lines[at] = spoiled_json(draw, RECORDS[at]).replace(b"\n", b" ") if draw.random() < 0.8 else lines[at - 1]
    text = b"\n".join(lines) + b"\n"
    return mutated(draw, text) if draw.random() < 0.5 else text


@CHUNKS
def test_curves_are_numbers_over_steps(room: Path, tally: Counter[str], chunk: int) -> None:
    file = room / "metrics.jsonl"

    def read(given: bytes) -> None:
        file.write_bytes(given)
        for split, curve in read_curves(file).items():
            assert type(split) is str
            assert len(curve.steps) == len(curve.loss) == len(curve.accuracy) > 0
            assert all(type(step) is int and 0 <= step <= 2**53 for step in curve.steps)
            assert not any(map(math.isinf, curve.loss + curve.accuracy))
            assert len(windows(curve, 2).steps) <= 2
            assert len(points(curve, 3).steps) <= 3

    attack("metrics.jsonl as curves", chunk, record_of_a_run, read, tally, names=str(file))


@CHUNKS
def test_a_record_that_grows_is_followed_whatever_it_says(room: Path, tally: Counter[str], chunk: int) -> None:
    file = room / "metrics.jsonl"

    def read(given: bytes) -> None:
        file.write_bytes(given)
        last = last_record(file)
        follower = Follower(file)
        follower.read(file.stat())
        assert last is None or 0 <= last["step"] <= 2**53
        assert follower.last is None or 0 <= follower.last["step"] <= 2**53
        assert all(math.isfinite(value) for _, value in (*follower.validations, *follower.times, *follower.recent))
        if follower.broken:
            raise ValueError(f"{file} has broken lines")

    attack("metrics.jsonl as it grows", chunk, record_of_a_run, read, tally, names=str(file))


@CHUNKS
def test_a_record_of_before_a_resume_is_records_or_one_line(room: Path, tally: Counter[str], chunk: int) -> None:
    file = room / "metrics.jsonl"

    def read(given: bytes) -> None:
        file.write_bytes(given)
        for record in read_metrics(file):
            assert type(record) is dict
            charted(record)

    attack("metrics.jsonl of before a resume", chunk, record_of_a_run, read, tally, names=str(file))


CONFIG = {
    "task": {"name": "listops", "source": "generated"},
    "attn": {"name": "mra2", "budget": 4, "grid": None},
    "train": {"steps": 10, "lr": 0.001, "betas": [0.9, 0.999]},
    "seed": 0,
    "fresh": False,
}
YAML = (
    *(b"!!python/object/apply:os.system ['touch {}']", b"!!python/name:os.system", b"!!python/object/new:x.y [x]"),
    *(b"!!int ''", b"!!float ''", b"!!bool x", b"!!timestamp x", b"!!binary '*'", b"!!set {x}", b"!!omap [1]"),
    *(b"2023-13-45", b"1:99:99", b"0b", b"0o9", b"&a [*a]", b"&a {<<: *a}", b"<<: [1]", b"? [1]\n: 2", b"%YAML 9.9\n"),
    *(b"---\n", b"...\n", b"[" * 3_000, b"{a: " * 200, b"- " * 3_000, b"\t", b"|", b">", b"*x", b"&x", b"!!str"),
    b"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", b"? " * 500, b"\xff\xfea\x00", b"'", b'"\\x', b"@", b"`", b"#",
)  # fmt: skip


@CHUNKS
def test_a_configuration_is_keys_and_values_or_one_line(room: Path, tally: Counter[str], chunk: int) -> None:
    file, trap = room / "config.yaml", room / "trap"
    tokens = tuple(token.replace(b"{}", str(trap).encode()) for token in YAML)

    def make(draw: Random) -> bytes:
        way = draw.randrange(4)
        value = CONFIG if way < 2 else {key: value for key, value in enumerate([revalued(draw, CONFIG)])}[0]
        try:
            text = yaml.dump(value, sort_keys=False, Dumper=yaml.CSafeDumper, allow_unicode=bool(way % 2)).encode()
        except (yaml.YAMLError, UnicodeEncodeError, ValueError):
            text = json.dumps(CONFIG).encode()
        return text if way == 3 else mutated(draw, text, tokens=tokens)

    def read(given: bytes) -> None:
        file.write_bytes(given)
        run = object.__new__(Run)
        run.path, run.config = room, CONFIG
        run.demand = lambda: None  # type: ignore[method-assign]
        try:
            config = read_config(file)
            assert all("\n" not in repr(key) for key in identity(config))
        except ValueError as error:
            one_line(error, str(file))
        try:
            run.claim()
        except WordError as error:
            one_line(error, str(room))
            raise
        finally:
            assert not trap.exists()

    attack("config.yaml", chunk, make, read, tally, WordError, names=str(room))


def torch_bytes(folder: Path) -> bytes:
    state = {
        "model": {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(3, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "state": {"step": 3, "best_accuracy": 0.5, "rng": torch.arange(16, dtype=torch.uint8)},
        "data_sha256": "a" * 64,
    }
    checkpoint.save(folder / "last.pt", state)
    return (folder / "last.pt").read_bytes()


@CHUNKS
def test_a_checkpoint_is_keys_and_values_or_one_line_and_never_a_program(
    room: Path, tally: Counter[str], chunk: int
) -> None:
    content, path, trap = torch_bytes(room), room / "last.pt", room / "trap"
    at = content.index(b"PK")
    program = payload(trap)

    def make(draw: Random) -> bytes:
        inner = content[at:]
        way = draw.randrange(10)
        if way < 4:
            inner = repickled(draw, inner, program)
        elif way < 8:
            inner = mutated(draw, inner)
        else:
            # torch's format of before the zip, a pickle alone, an archive of another kind.
            inner = mutated(draw, draw.choice((program, OLD, b"\x80\x02}q\x00.", b"PK\x05\x06" + bytes(18))), [inner])
        # Where files are sealed, what stands behind a seal of its own is read on.
        seal = b"lra checkpoint 1 %s\n" % hashlib.sha256(inner).hexdigest().encode() if at else b""
        return (seal if draw.random() < 0.9 else b"") + inner

    def read(given: bytes) -> None:
        try:
            assert isinstance(checkpoint.parse(given, path, CPU), dict)
        finally:
            assert not trap.exists(), "something was executed"

    attack("checkpoint", chunk, make, read, tally, names=str(path))


def _old() -> bytes:
    out = io.BytesIO()
    torch.save({"step": 1, "model": {"weight": torch.arange(4.0)}}, out, _use_new_zipfile_serialization=False)
    return out.getvalue()


OLD = _old()


@CHUNKS
def test_predictions_are_those_of_the_test_split_or_told(room: Path, tally: Counter[str], chunk: int) -> None:
    file, trap = room / "predictions.npz", room / "trap"
    arrays: dict[str, Any] = {"logits": np.zeros((20, 2), np.float32), "predictions": np.zeros(20, np.int64)}
    np.savez(file, **arrays)
    content = file.read_bytes()

    def make(draw: Random) -> bytes:
        return repickled(draw, content, payload(trap)) if draw.random() < 0.5 else mutated(draw, content)

    def read(given: bytes) -> None:
        file.write_bytes(given)
        fault = faulty_predictions(file, 20)
        assert not trap.exists()
        if fault:
            raise ValueError(fault)

    attack("predictions.npz", chunk, make, read, tally)
