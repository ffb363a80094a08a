"""Files that a run counts on, cut short or with a byte of another value: found by checksum, and the spare goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lra import checkpoint, predictions
from lra.config import Config, identity
from lra.data import SEAL, Data, load
from lra.files import spare
from lra.loop import Trainer, build
from lra.outcomes import collect, read_run
from lra.plan import standing
from lra.progress import Display
from lra.run import Run
from lra.seal import file_sha256, sealed
from lra.tracker import RecordOnly, read_metrics
from lra.words import WordError
from tests.faults import FULL, amount, draws
from tests.results import write_run
from tests.runs import SPEED, result, train
from tests.test_data import Toy, write
from tests.test_loop import config, first_token_data
from tests.test_ranks import Deaf
from tests.test_resume import assert_same_run, start_and_signal

CPU = torch.device("cpu")


def cuts(content: bytes) -> Iterator[bytes]:
    """The beginning of a file, up to every hundredth of its length."""
    for percent in range(100):
        yield content[: len(content) * percent // 100]


def flips(content: bytes, count: int, *names: object) -> Iterator[bytes]:
    """A file with one byte of another value, at `count` places: the first ones one by one, the others drawn."""
    draw = draws("flip", *names)
    ordered = min(count // 3, len(content))
    places = [*range(ordered), *(draw.randrange(len(content)) for _ in range(count - ordered))]
    yield from (flipped(content, place, draw.randrange(1, 256)) for place in places)


def flipped(content: bytes, place: int, by: int) -> bytes:
    return content[:place] + bytes([content[place] ^ by]) + content[place + 1 :]


def everywhere(content: bytes, count: int, *names: object) -> Iterator[bytes]:
    """A file with one byte of another value, at every place in full, at `count` of them in short."""
    draw = draws("everywhere", *names)
    places = range(len(content)) if FULL else sorted(draw.sample(range(len(content)), min(count, len(content))))
    yield from (flipped(content, place, draw.randrange(1, 256)) for place in places)


def one_line(error: BaseException, *says: object) -> None:
    message = str(error)
    assert "\n" not in message
    for said in says:
        assert str(said) in message


# Checkpoints.


def state_at(step: int) -> dict[str, Any]:
    """What `last.pt` of a small run holds."""
    stream = torch.Generator().manual_seed(step)
    weights = {f"layer{i}.weight": torch.randn(24, 24, generator=stream) for i in range(8)}
    state = {"step": step, "best_step": 3, "metrics_bytes": 100 * step, "losses": [0.1 * step]}
    return {"model": weights, "optimizer": {"state": {}}, "scaler": {}, "state": state, "data_sha256": "a" * 64}


def best_at(step: int) -> dict[str, Any]:
    return {"step": step, "model": state_at(step)["model"]}


def of_before(path: Path, state: dict[str, Any]) -> None:
    """A checkpoint without the line of its sha256."""
    torch.save(state, path)


WRITERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {"checksum": checkpoint.save, "before": of_before}


def same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    weights = (ours.pop("model"), theirs.pop("model"))
    equal = weights[0].keys() == weights[1].keys() and all(
        torch.equal(weight, weights[1][name]) for name, weight in weights[0].items()
    )
    return equal and ours == theirs


@pytest.mark.parametrize("kind", WRITERS)
def test_a_checkpoint_cut_short_is_never_taken_for_whole(tmp_path: Path, kind: str, tally: Counter[str]) -> None:
    path = tmp_path / "last.pt"
    WRITERS[kind](path, state_at(7))
    for content in cuts(path.read_bytes()):
        tally["damage: checkpoints cut short"] += 1
        with pytest.raises(ValueError) as caught:
            checkpoint.parse(content, path, CPU)
        one_line(caught.value, path, "is not a whole checkpoint", "fresh=true")


def test_one_flipped_byte_in_a_checkpoint_is_always_found(tmp_path: Path, tally: Counter[str]) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, state_at(7))
    content = path.read_bytes()
    tally["damage: flipped bytes taken for whole"] += 0
    for damaged in flips(content, amount(300, 2_300), "checkpoint"):
        tally["damage: bytes flipped in a checkpoint"] += 1
        with pytest.raises(ValueError) as caught:
            checkpoint.parse(damaged, path, CPU)
        one_line(caught.value, path, "is not a whole checkpoint", "fresh=true")
    assert same(checkpoint.parse(content, path, CPU), state_at(7))


def test_one_flipped_byte_in_a_checkpoint_of_before_changes_nothing_or_is_found(
    tmp_path: Path, tally: Counter[str]
) -> None:
    path = tmp_path / "last.pt"
    of_before(path, state_at(7))
    found = 0
    for damaged in flips(path.read_bytes(), amount(60, 2_000), "before"):
        tally["damage: bytes flipped in a checkpoint of before"] += 1
        try:
            read = checkpoint.parse(damaged, path, CPU)
        except ValueError as error:
            one_line(error, path, "fresh=true")
            found += 1
        else:
            assert same(read, state_at(7))
    tally["damage: of them with nothing to find, the same read"] += amount(60, 2_000) - found
    assert found > amount(60, 2_000) // 3


def test_the_spare_takes_the_place_of_a_broken_checkpoint_and_one_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tally: Counter[str]
) -> None:
    path = tmp_path / "last.pt"
    for step in (4, 8):
        checkpoint.save(path, state_at(step), keep=spare(path))
    good, held = path.read_bytes(), spare(path).read_bytes()
    assert checkpoint.last(path) == good
    for damaged in [*flips(good, amount(30, 300), "spare"), *cuts(good)]:
        tally["damage: last checkpoints broken, the spare used"] += 1
        path.write_bytes(damaged)
        assert checkpoint.last(path) == held
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 1
        assert str(path) in told[0]
        assert "going on from step 4, which last.spare.pt holds" in told[0]
        # Put aside: the next save makes a spare of nothing that is broken.
        assert (path.exists(), (tmp_path / "last.broken.pt").read_bytes()) == (False, damaged)
        checkpoint.save(path, state_at(8), keep=spare(path))
        assert (path.read_bytes(), spare(path).read_bytes()) == (good, held)


@pytest.mark.parametrize("there", ["neither", "last alone", "spare alone", "broken alone", "both broken"])
def test_where_no_checkpoint_is_whole_nothing_is_touched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], there: str
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, state_at(4))
    checkpoint.save(path, state_at(8), keep=spare(path))
    good, held = path.read_bytes(), spare(path).read_bytes()
    if there in ("neither", "spare alone"):
        path.unlink()
    if there in ("neither", "last alone", "broken alone"):
        spare(path).unlink()
    if "broken" in there:
        for file in tmp_path.iterdir():
            file.write_bytes(flipped(good, 2_000, 1))
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    if "broken" in there:
        with pytest.raises(ValueError) as caught:
            checkpoint.last(path)
        one_line(caught.value, path, "last.spare.pt", "fresh=true")
    else:
        assert checkpoint.last(path) == {"neither": None, "last alone": good, "spare alone": held}[there]
    assert len(capsys.readouterr().err.splitlines()) == (there == "spare alone")
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize("second", ["wanted", "earlier", "later", "broken", "missing"])
@pytest.mark.parametrize("first", ["wanted", "earlier", "later", "broken", "missing"])
def test_the_best_weights_are_those_of_the_step_that_is_asked_for_or_none(
    tmp_path: Path, first: str, second: str, capsys: pytest.CaptureFixture[str], tally: Counter[str]
) -> None:
    path = tmp_path / "best.pt"
    steps = {"wanted": 6, "earlier": 3, "later": 9, "broken": 6}
    for place, kind in ((path, first), (spare(path), second)):
        if kind in steps:
            checkpoint.save(place, best_at(steps[kind]))
        if kind == "broken":
            place.write_bytes(flipped(place.read_bytes(), 3_000, 1))
    tally["damage: pairs of best checkpoints"] += 1
    kinds = {first, second}
    if "wanted" in kinds:
        content = checkpoint.best(path, 6, 8)
        assert content is not None
        assert checkpoint.parse(content, path, CPU)["step"] == 6
        # Both are whole again, and of the step.
        assert path.read_bytes() == spare(path).read_bytes() == content
        told = capsys.readouterr().err.splitlines()
        assert len(told) == ("broken" in kinds or first == "missing")
        return
    if "later" in kinds:
        assert checkpoint.best(path, 6, 8) is None
    for evaluated in (None, *([] if "later" in kinds else [8])):
        with pytest.raises(ValueError) as caught:
            checkpoint.best(path, 6, evaluated)
        one_line(caught.value, path, "best.spare.pt", "the weights of step 6 are lost", "fresh=true")


@pytest.mark.parametrize("at", [1, 2, 3])
@pytest.mark.parametrize("comes_back", [True, False])
def test_a_save_that_fails_between_its_two_names_loses_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, comes_back: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, state_at(4))
    checkpoint.save(path, state_at(8), keep=spare(path))
    real, calls = os.replace, Counter[str]()

    def fails(source: Any, target: Any) -> None:
        calls["replace"] += 1
        if calls["replace"] == at or (calls["replace"] > at and not comes_back):
            raise OSError(5, "Input/output error", str(target))
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        try:
            checkpoint.save(path, state_at(12), keep=spare(path))
        except OSError:
            assert at < 3
        else:
            assert at == 3
    content = checkpoint.last(path)
    assert content is not None
    assert checkpoint.parse(content, path, CPU)["state"]["step"] == (12 if at == 3 else 8)
    assert not list(tmp_path.glob(".*.part"))
    capsys.readouterr()


class Cut(BaseException):
    """The end of a process at a renaming; from then on none succeeds, as if nobody were there to try."""


def go_on(path: Path, given: Config, at: int = 0) -> tuple[list[dict[str, Any]], np.ndarray | None, int]:
    """Train in `path` from wherever its checkpoint is, cut off at renaming number `at`, counted from 1.

    Records, and, where it came to its end, the logits of the test split; the number of renamings.
    """
    real, calls = os.replace, Counter[str]()

    def counted(source: Any, target: Any) -> None:
        if Path(target).suffix == ".pt":
            calls["replace"] += 1
            if at and calls["replace"] >= at:
                raise Cut
        real(source, target)

    scores = None
    with pytest.MonkeyPatch.context() as patch, Run(path, asdict(given)) as run:
        trainer = Trainer(given, build(given, 4, 3), first_token_data(), run, CPU, torch.float32, Deaf())
        patch.setattr(os, "replace", counted)
        with suppress(Cut), Display(given.train.steps, 0) as display:
            trainer.train(RecordOnly(), display)
            scores = trainer.conclude()[0].logits
        trainer.close()
    records = [{key: value for key, value in each.items() if key not in SPEED} for each in read_metrics(run.metrics)]
    return records, scores, calls["replace"]


@pytest.mark.parametrize("select", ["best", "last"])
def test_a_run_cut_off_at_any_renaming_of_its_checkpoints_ends_with_the_same_bits(
    tmp_path: Path, select: str, tally: Counter[str], capsys: pytest.CaptureFixture[str]
) -> None:
    # A rate at which several validations are the best so far.
    given = config(steps=12, lr=5e-3, eval_every=4, checkpoint_every=3, log_every=12, select=select)
    records, scores, renamings = go_on(tmp_path / "whole", given)
    assert scores is not None
    assert renamings > 10
    for at in range(1, renamings + 1, amount(10, 1)):
        run = tmp_path / f"cut{at}"
        assert go_on(run, given, at)[1] is None
        again, ours, _ = go_on(run, given)
        assert again == records
        assert ours is not None
        np.testing.assert_array_equal(ours, scores)
        tally["damage: runs cut off at a renaming, that went on to the same bits"] += 1
    capsys.readouterr()


# Results, predictions, manifests, arrays, config.yaml.


@pytest.fixture
def finished_run(tmp_path: Path) -> Iterator[tuple[Run, dict[str, Any]]]:
    """A finished run with files, and its result."""
    path = tmp_path / "runs" / "mlpen" / "listops" / "mra2" / "seed0"
    plain = json.loads(write_run(path).read_text())
    (path / "result.json").unlink()
    (path / "metrics.jsonl").write_text("".join(f'{{"step": {step}, "loss": {1 / step}}}\n' for step in range(1, 200)))
    rng = np.random.default_rng(0)
    scores = rng.standard_normal((2_000, 10)).astype(np.float32)
    np.savez(path / "predictions.npz", logits=scores, predictions=scores.argmax(1), labels=rng.integers(0, 10, 2_000))
    run = Run(path, {"seed": 0, "fresh": False})
    checkpoint.save(run.last, state_at(8))
    run.finish({**plain, "seconds": 123.45678901234567, "versions": {"torch": "2.13"}})
    told = run.result()
    assert told is not None
    yield run, told
    run.close()


def test_a_damaged_result_is_never_another_result(
    tmp_path: Path,
    finished_run: tuple[Run, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    tally: Counter[str],
) -> None:
    run, told = finished_run
    file, root = run.path / "result.json", tmp_path / "runs"
    content = file.read_bytes()
    tally["damage: damaged results read as another"] += 0
    for damaged in [*everywhere(content, 200, "result"), *cuts(content)]:
        file.write_bytes(damaged)
        tally["damage: results damaged"] += 1
        read = run.result()
        said = capsys.readouterr().err.splitlines()
        if read is not None:
            # White space, or a last digit that no number needs.
            tally["damage: of them with nothing to find, the same result read"] += 1
            assert (read, said) == (told, [])
            assert read_run(file).accuracy == told["test"]["accuracy"]
            continue
        assert len(said) == 1
        assert said[0].startswith(f"{file} is ")
        runs, problems = collect(root)
        assert runs == []
        assert len(problems) == 1
        assert problems[0].startswith("left out mlpen/listops/mra2/seed0/result.json: ")
        assert standing(run.path).status != "finished"


def test_damaged_predictions_are_found_wherever_they_are_read(
    tmp_path: Path,
    finished_run: tuple[Run, dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
    tally: Counter[str],
) -> None:
    run, told = finished_run
    file = run.path / "predictions.npz"
    content = file.read_bytes()
    whole = predictions.read(run.path)
    assert whole.logits.shape == (2_000, 10)
    for damaged in [*flips(content, amount(60, 2_000), "predictions"), *list(cuts(content))[:: amount(10, 1)]]:
        tally["damage: predictions damaged"] += 1
        file.write_bytes(damaged)
        with pytest.raises(ValueError) as caught:
            predictions.read(run.path)
        one_line(caught.value, file, "is damaged")
        assert run.result() is None
        assert capsys.readouterr().err == f"{file} is damaged: the last checkpoint makes it again\n"
        fault = read_run(run.path / "result.json").predictions
        assert fault in ("is damaged", "is broken") or fault.startswith("holds ")
    file.unlink()
    assert run.result() is None
    # Without a checkpoint the result stands, and so does what is missing.
    run.last.unlink()
    assert run.result() == told
    assert "is missing: fresh=true runs the whole again" in capsys.readouterr().err


def test_predictions_of_before_are_read_as_they_are_or_not_at_all(
    finished_run: tuple[Run, dict[str, Any]], tally: Counter[str]
) -> None:
    run, told = finished_run
    del told["files"], told["sha256"]
    (run.path / "result.json").write_text(json.dumps(told))
    file = run.path / "predictions.npz"
    whole, content = predictions.read(run.path), file.read_bytes()
    found = 0
    for damaged in flips(content, amount(60, 1_000), "predictions of before"):
        tally["damage: predictions of before damaged"] += 1
        file.write_bytes(damaged)
        try:
            read = predictions.read(run.path)
        except ValueError as error:
            one_line(error, file, "is not the predictions of a run")
            found += 1
        else:
            assert all(np.array_equal(ours, theirs) for ours, theirs in zip(read, whole, strict=True))
    assert found > 0


def test_a_damaged_record_of_a_finished_run_is_told(
    tmp_path: Path, finished_run: tuple[Run, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    run, told = finished_run
    content = run.metrics.read_bytes()
    for damaged in flips(content, 20, "metrics"):
        run.metrics.write_bytes(damaged)
        assert run.result() == told
        assert capsys.readouterr().err == f"{run.metrics} is damaged: fresh=true runs the whole again\n"
        _, problems = collect(tmp_path / "runs")
        assert problems == ["metrics.jsonl is damaged (1): mlpen/listops/mra2/seed0"]


def toy(tmp_path: Path) -> tuple[Path, Data]:
    """A small data set with a manifest that is sealed."""
    path = write(tmp_path, pairs=True)
    file = path / "manifest.json"
    file.write_text(json.dumps(sealed({**json.loads(file.read_text()), "schema": 2}, SEAL), indent=1))
    return path, load(tmp_path, Toy(), "made", verify=True)


def equal(ours: Data, theirs: Data) -> bool:
    return ours.manifest == theirs.manifest and all(
        np.array_equal(np.asarray(mine), np.asarray(other))
        for split, its in zip(ours[1:], theirs[1:], strict=True)
        for mine, other in zip(split, its, strict=True)
    )


def test_a_damaged_manifest_is_found_or_says_the_same(tmp_path: Path, tally: Counter[str]) -> None:
    path, whole = toy(tmp_path)
    file = path / "manifest.json"
    content = file.read_bytes()
    for damaged in [*everywhere(content, 200, "manifest"), *cuts(content)]:
        tally["damage: manifests damaged"] += 1
        file.write_bytes(damaged)
        try:
            read = load(tmp_path, Toy(), "made")
        except ValueError as error:
            one_line(error, file, f"delete {path} and run make data task=toy")
        else:
            tally["damage: of them with nothing to find, the same manifest read"] += 1
            assert equal(read, whole)


@pytest.mark.parametrize("name", ["tokens", "offsets", "labels", "pairs"])
def test_a_damaged_array_is_found_before_a_run_begins(tmp_path: Path, name: str, tally: Counter[str]) -> None:
    path, whole = toy(tmp_path)
    for split in ("train", "val", "test"):
        file = path / f"{split}.{name}.npy"
        content = file.read_bytes()
        for damaged in [*everywhere(content, 20, name, split), *list(cuts(content))[:: amount(20, 1)]]:
            tally["damage: arrays damaged"] += 1
            # A new file: the old one is mapped into memory.
            file.unlink()
            file.write_bytes(damaged)
            try:
                read = load(tmp_path, Toy(), "made", verify=True)
            except ValueError as error:
                one_line(error, file, f"delete {path} and run make data task=toy")
            else:
                tally["damage: of them with nothing to find, the same array read"] += 1
                assert equal(read, whole)
        file.unlink()
        file.write_bytes(content)
    assert equal(load(tmp_path, Toy(), "made", verify=True), whole)


def test_a_manifest_of_before_is_read_and_one_that_lies_about_its_arrays_is_not(tmp_path: Path) -> None:
    path = write(tmp_path)
    file = path / "manifest.json"
    plain = json.loads(file.read_text())
    assert load(tmp_path, Toy(), "made", verify=True).manifest == plain
    file.write_text(json.dumps({**plain, "sha256": "0" * 64}))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged \(its sha256 is not the hash of"):
        load(tmp_path, Toy(), "made", verify=True)
    file.write_text(json.dumps({**plain, SEAL: "0" * 64}))
    with pytest.raises(ValueError, match=r"manifest\.json is damaged \(sha256"):
        load(tmp_path, Toy(), "made")


def meant(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in identity(config).items() if value is not None}


def test_a_damaged_configuration_is_refused_or_means_the_same_run(tmp_path: Path, tally: Counter[str]) -> None:
    config = {
        "task": {"name": "listops", "source": "generated", "version": "1.0.0"},
        "attn": {"name": "mra2", "block_size": 32, "blocks_per_row": None},
        "protocol": "mlpen", "model": {"layers": 2, "dropout": 0.1, "bias": True},
        "train": {"lr": 1e-4, "eps": 1e-6, "steps": 5000}, "seed": 0, "device": "auto", "fresh": False,
    }  # fmt: skip
    Run(tmp_path / "run", config).close()
    file = tmp_path / "run" / "config.yaml"
    content = file.read_bytes()
    refused = 0
    for damaged in [*everywhere(content, 60, "config"), *list(cuts(content))[:: amount(10, 1)]]:
        tally["damage: configurations damaged"] += 1
        file.write_bytes(damaged)
        try:
            Run(tmp_path / "run", config).close()
        except WordError as error:
            one_line(error, tmp_path / "run", "fresh=true puts ")
            refused += 1
        else:
            # A circumstance, a quote's worth of difference, or the name of a key that is null and says nothing.
            assert meant(yaml.safe_load(damaged)) == meant(config)
    assert refused > 0


# Runs that go on after it.

SHORT = ("train.steps=16", "train.warmup=4", "train.eval_every=6")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with prepared data and a run that was stopped half-way, its best validation behind it."""
    folder = tmp_path_factory.mktemp("stopped")
    code, seen = start_and_signal(folder, signal.SIGTERM, "step 9/16", *SHORT)
    assert code == 143, seen
    return folder


@pytest.fixture(scope="module")
def ended(stopped: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, come to its end undamaged."""
    folder = tmp_path_factory.mktemp("ended")
    shutil.copytree(stopped, folder, dirs_exist_ok=True)
    train(folder, *SHORT)
    return folder


Damage = Callable[[Path], object]


def flip(file: Path) -> None:
    content = file.read_bytes()
    draw = draws("run", file.name)
    file.write_bytes(flipped(content, draw.randrange(len(content)), draw.randrange(1, 256)))


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: draws("cut", file.name).randrange(len(content))])


def of(**damages: Damage) -> Damage:
    """What is done to files of a run, named as in PLACES."""

    def damage(run: Path) -> None:
        for name, how in damages.items():
            how(run / PLACES[name])

    return damage


PLACES = {
    "last": "checkpoint/last.pt",
    "last_spare": "checkpoint/last.spare.pt",
    "best": "checkpoint/best.pt",
    "best_spare": "checkpoint/best.spare.pt",
    "result": "result.json",
    "predictions": "predictions.npz",
}
# What is done to a stopped run, and how many lines on stderr tell of it when it goes on to the same end.
GOES_ON: dict[str, tuple[Damage, int]] = {
    "last and best": (of(last=flip, best=flip), 2),
    "last cut": (of(last=cut), 1),
    "last gone": (of(last=Path.unlink), 1),
    "last empty": (of(last=lambda file: file.write_bytes(b"")), 1),
    "spares": (of(last_spare=flip, best_spare=flip), 1),
    "best gone": (of(best=Path.unlink), 1),
    "result": (of(result=cut), 1),
}


def again(folder: Path, data: Path, code: int = 0) -> list[str]:
    """Run the same words on data elsewhere, and return what stderr says."""
    return train(folder, *SHORT, f"data_dir={data}", code=code).stderr.splitlines()


@pytest.mark.parametrize("name", list(GOES_ON)[: amount(1, len(GOES_ON))])
def test_a_damaged_run_goes_on_to_the_bits_of_an_undamaged_one(
    tmp_path: Path, stopped: Path, ended: Path, name: str, tally: Counter[str]
) -> None:
    damage, lines = GOES_ON[name]
    shutil.copytree(stopped / "run", tmp_path / "run")
    damage(tmp_path / "run")
    told = again(tmp_path, stopped / "data")
    assert len(told) == lines, told
    assert_same_run(tmp_path / "run", ended / "run")
    for kept in ("last", "last_spare", "best", "best_spare"):
        assert checkpoint.load(tmp_path / "run" / PLACES[kept], CPU)
    tally["damage: runs that went on to the same bits"] += 1


ENDED: dict[str, Damage] = {
    "result and last": of(result=cut, last=flip),
    "predictions": of(predictions=flip),
    "predictions gone": of(predictions=Path.unlink),
}


@pytest.mark.parametrize("name", list(ENDED)[: amount(1, len(ENDED))])
def test_a_damaged_result_is_made_again_from_the_last_checkpoint(
    tmp_path: Path, ended: Path, name: str, tally: Counter[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(ended / "run", run)
    ENDED[name](run)
    told = again(tmp_path, ended / "data")
    assert len(told) == name.count(" and ") + 1, told
    assert_same_run(run, ended / "run")
    assert file_sha256(run / "predictions.npz") == result(ended / "run")["files"]["predictions.npz"]
    assert standing(run).status == "finished"
    assert read_run(run / "result.json").predictions == read_run(run / "result.json").metrics == ""
    tally["damage: results that were made again"] += 1


# What is done to a stopped run and its data that leaves no way on, and what the one line says.
LOST: dict[str, tuple[Damage, str, str]] = {
    "both best": (of(best=flip, best_spare=flip), "", "the weights of step 6 are lost; fresh=true starts the run over"),
    "both last": (of(last=flip, last_spare=cut), "", "last.pt is not a whole checkpoint"),
    "no spare": (of(last=flip, last_spare=Path.unlink), "", "last.spare.pt is missing; fresh=true starts the run over"),
    "tokens": (of(), "train.tokens.npy", "train.tokens.npy is damaged (sha256 "),
    "labels": (of(), "test.labels.npy", "test.labels.npy "),
    "manifest": (of(), "manifest.json", "manifest.json is damaged (sha256 "),
}


@pytest.mark.parametrize("name", list(LOST)[: amount(1, len(LOST))])
def test_what_leaves_no_way_on_is_one_line_before_any_step(
    tmp_path: Path, stopped: Path, name: str, tally: Counter[str]
) -> None:
    damage, of_data, says = LOST[name]
    for part in ("run", "data"):
        shutil.copytree(stopped / part, tmp_path / part)
    damage(tmp_path / "run")
    if of_data:
        file = tmp_path / "data" / "listops-synthetic" / "1.0.0" / of_data
        content = file.read_bytes()
        # A token, a label or a digit of the seal: nothing that a header would show.
        file.write_bytes(flipped(content, len(content) - 5, 1))
        says = f"{file.parent}/{says}"
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    told = again(tmp_path, tmp_path / "data", code=1)
    assert len(told) == 1
    assert says in told[0]
    remedy = f": delete {tmp_path / 'data' / 'listops-synthetic' / '1.0.0'} and run make data task=listops"
    assert remedy in told[0] or (not of_data and "fresh=true starts the run over" in told[0])
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    tally["damage: runs refused in one line"] += 1
