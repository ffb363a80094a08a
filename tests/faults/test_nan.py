"""A number that is not finite ends the run where it can first be seen, and never reaches a file or another example."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from attention_zoo.ops import kernels
from lra.data import Data, collate
from lra.endings import Diverged
from lra.loop import Trainer, build
from tests import forks
from tests.faults import amount, draws
from tests.faults.trials import (
    CLASSES,
    VARIANTS,
    Ended,
    at_step,
    configured,
    data_for,
    demand_finite_files,
    documents,
    odd_value,
    read,
    start,
)  # fmt: skip
from tests.runs import arguments, environment, result
from tests.test_laws import NAMES, inputs, ragged, run
from tests.test_laws import build as core_of

VALUES = ("nan", "inf", "-inf", "huge")
WHERE = ("weight", "gradient", "first moment", "second moment")
SAVED = (4, 5, 8, 10)  # when a run of these tests looks at all of its state


def spoil(tensor: Tensor, draw: Random, value: float) -> None:
    """One element, in place."""
    with torch.no_grad():
        tensor.view(-1)[draw.randrange(tensor.numel())] = value


def spoiler(where: str, step: int, value: float, draw: Random) -> tuple[list[str], Callable[[Trainer], None]]:
    """What prepares a trainer for one odd number at `step`, and the name of what it will be in."""
    named: list[str] = []

    def prepare(trainer: Trainer) -> None:
        name, weight = draw.choice(list(trainer.model.named_parameters()))
        named.append(name)

        def put(trainer: Trainer) -> None:
            state = trainer.optimizer.state[weight]
            spoil(
                {"weight": weight, "first moment": state["exp_avg"], "second moment": state["exp_avg_sq"]}[where],
                draw,
                value,
            )

        def bend(gradient: Tensor) -> Tensor:
            if trainer.state.step == step - 1:
                gradient = gradient.clone(memory_format=torch.contiguous_format)
                spoil(gradient, draw, value)
            return gradient

        if where == "gradient":
            weight.register_hook(bend)
        else:
            at_step(step, put)(trainer)

    return named, prepare


def demand_last_good(ended: Ended, step: int) -> None:
    """Assert that the run kept what it had before the odd number of `step`, and nothing that came of it."""
    earlier = [saved for saved in SAVED if saved < step]
    last = ended.folder / "checkpoint" / "last.pt"
    if last.exists():
        assert read(last)["state"]["step"] in earlier
    else:
        assert isinstance(ended.why, Diverged)
        assert ended.why.step <= SAVED[0]
    demand_finite_files(ended.folder)


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("part", range(amount(1, 6)))
def test_one_odd_number_ends_the_run_with_the_last_good_state_kept(
    tmp_path: Path, tally: Counter[str], where: str, part: int
) -> None:
    """Or does nothing: where nothing that is computed is not finite, nothing is wrong."""
    for trial in range(amount(1, 8)):
        draw = draws("odd", where, part, trial)
        variant, value, step = draw.choice(list(VARIANTS)), draw.choice(VALUES), draw.randint(1, 10)
        log_every, clip = draw.choice((1, 3, 10)), draw.choice((0.0, 0.5))
        named, prepare = spoiler(where, step, odd_value(value), draw)
        given = configured(variant, log_every=log_every, clip=clip)
        said = f"{variant}: {value} in the {where} at step {step}, log_every {log_every}, clip {clip}"
        ended = start(given, data_for(variant), tmp_path / f"{trial}", prepare)
        demand_finite_files(ended.folder)
        if isinstance(ended.why, Diverged):
            first_look = next(saved for saved in SAVED if saved >= step)
            latest = first_look if value != "huge" else 10
            assert step <= ended.why.step <= latest, f"{said}, {named}: {ended.why}"
            # A huge weight is a finite one until something is computed with it.
            demand_last_good(ended, step if value != "huge" else 11)
        else:
            assert value == "huge", f"{said}, {named}: went on"
            assert ended.why is None
            assert np.isfinite(ended.logits).all()
        tally["nan: odd numbers in weights, gradients and moments"] += 1
        tally["nan: ended as diverged"] += ended.why is not None
        tally["nan: files with a number that is not finite"] += 0


def test_weights_that_spoil_in_the_step_that_is_validated_are_never_the_best(
    tmp_path: Path, tally: Counter[str]
) -> None:
    """The argmax of a row of NaN is an answer, here the right one: the labels are all 0."""
    data = documents()
    data = Data(data.manifest, *(split._replace(labels=np.zeros_like(split.labels)) for split in data[1:]))
    for step in draws("validated").sample(range(1, 11), amount(2, 10)):

        def spoil_all(trainer: Trainer) -> None:
            for weight in trainer.model.parameters():
                weight.data.fill_(math.nan)

        ended = start(configured("softmax", log_every=10), data, tmp_path / f"{step}", at_step(step, spoil_all))
        assert isinstance(ended.why, Diverged)
        best = ended.folder / "checkpoint" / "best.pt"
        assert best.exists() == (step > 5)
        assert ended.trainer.state.best_step == (5 if step > 5 else 0)
        demand_last_good(ended, step)
        tally["nan: runs spoilt at each step, validated or not"] += 1


@pytest.mark.parametrize("split", ["val", "test", "train again"])
def test_an_evaluation_that_is_not_finite_is_no_result(tmp_path: Path, split: str) -> None:
    """Finite weights that overflow on a single example of the split, and on none of training."""

    def overflow(trainer: Trainer) -> None:
        score = trainer.score

        def scored(part: object, name: str) -> object:
            forward = trainer.model.forward

            def overflowing(tokens: Tensor, mask: Tensor) -> Tensor:
                logits = forward(tokens, mask)
                logits[0] = math.inf
                return logits

            trainer.model.forward = overflowing if name == split else forward  # type: ignore[method-assign]
            try:
                return score(part, name)  # type: ignore[arg-type]
            finally:
                trainer.model.forward = forward  # type: ignore[method-assign]

        trainer.score = scored  # type: ignore[method-assign,assignment]

    ended = start(configured("softmax"), documents(), tmp_path / "run", overflow)
    assert isinstance(ended.why, Diverged)
    assert (ended.why.step, ended.why.why) == (5 if split == "val" else 10, f"the loss of {split} is not finite")
    assert (ended.folder / "checkpoint" / "best.pt").exists() == (split != "val")
    assert [record["split"] for record in ended.records].count("val") == (0 if split == "val" else 2)
    demand_finite_files(ended.folder)


def test_gradients_that_always_overflow_end_the_run(tmp_path: Path) -> None:
    """With a loss scale no such step is made, and nothing is learned: the scale falls until it is 0."""

    def overflow(trainer: Trainer) -> None:
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-140)
        next(trainer.model.parameters()).register_hook(lambda gradient: gradient * math.inf)

    ended = start(configured("softmax", steps=30, eval_every=30), documents(), tmp_path / "run", overflow)
    assert isinstance(ended.why, Diverged)
    assert ended.why.why == "the loss scale has fallen to 0"
    assert 8 < ended.why.step <= 12
    assert {kept["step"].item() for kept in ended.trainer.optimizer.state.values()} == {0.0}


# As a user sees it

PROGRAM = """
import math, runpy, sys, torch
from lra.loop import Trainer
where, step, value = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
del sys.argv[1:4]
learn = Trainer.learn

def spoiled(trainer, indices):
    learn(trainer, indices)
    if trainer.state.step == step - 1 and trainer.ranks.rank == trainer.ranks.world - 1:
        weight = list(trainer.model.parameters())[-1]
        kept = weight if where == "weight" else trainer.optimizer.state[weight]["exp_avg_sq"]
        kept.data.view(-1)[0] = value

Trainer.learn = spoiled
runpy.run_module("lra.train", run_name="__main__", alter_sys=True)
"""


def spoiled_run(folder: Path, processes: int, *words: str) -> tuple[int, list[str]]:
    """PROGRAM with these words, on so many processes; its exit code, and the lines of its errors."""
    script = folder / "spoiled.py"
    script.write_text(PROGRAM)
    if processes == 1:
        done = forks.run(["-c", PROGRAM, *words], folder, environment())
        return done.returncode, done.stderr.splitlines()
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", str(script)]
    with forks.Started([*torchrun, *words], folder, environment()) as process:
        said = process.stdout.read()
    return process.code, [line for line in said.splitlines() if line.startswith("error:")]


@pytest.mark.parametrize(
    ("processes", "where", "step", "value", "line"),
    [
        (1, "weight", 6, "nan", "the loss is not finite at step 7; {run}/checkpoint keeps the last good state"),
        (1, "weight", 10, "inf", "a weight is not finite at step 10; {run}/checkpoint keeps the last good state"),
        (1, "moment", 2, "inf", "the optimizer's state is not finite at step 4; nothing was saved yet"),
        (2, "weight", 6, "nan", "the loss is not finite at step 7; {run}/checkpoint keeps the last good state"),
        (2, "weight", 10, "inf", "a weight is not finite at step 10; {run}/checkpoint keeps the last good state"),
    ][: amount(1, 5)],
)  # fmt: skip
def test_a_run_that_diverges_says_so_in_one_line_and_in_its_result(
    tmp_path: Path, tally: Counter[str], processes: int, where: str, step: int, value: str, line: str
) -> None:
    """Of two processes one has the odd number, and both end."""
    words = ["train.steps=12", "train.warmup=3", "train.eval_every=5", "train.log_every=2"]
    _, _, *given = arguments(tmp_path, *words)
    ended = tmp_path / "run"
    code, lines = spoiled_run(tmp_path, processes, where, f"{step}", value, *given)
    assert (code, lines) == (1, [f"error: {line.format(run=ended)}; try a lower train.lr"])
    told = result(ended)
    assert (told["status"], told["processes"]) == ("diverged", processes)
    assert "test" not in told
    assert told["steps"] == int(line.partition("step ")[2].partition(";")[0])
    demand_finite_files(ended)
    again = forks.run(arguments(tmp_path, *words), tmp_path, environment())
    assert (again.returncode, len(again.stderr.splitlines())) == (1, 1)
    assert f"diverged at step {told['steps']}; fresh=true starts it over" in again.stderr
    tally["nan: commands that ended in one line"] += 1


# Inside a variant

ODD = (math.nan, math.inf, -math.inf)
LENGTHS = (1, 2, 17, 63, 100)
COMPILED = ("mra", "mra2", "mra2_s", "mra2+tiled", "bigbird")
CORES = [(name, kernel) for name in NAMES for kernel in ("cpu", "reference") if name in COMPILED or kernel == "cpu"]


@pytest.mark.parametrize(("name", "kernel"), draws("cores").sample(CORES, amount(4, len(CORES))))
def test_an_odd_number_in_one_place_stays_in_its_example_and_is_seen(
    tally: Counter[str], name: str, kernel: str
) -> None:
    """With the kernel for CPUs and without, in training and not: values and gradients of the others have their bits."""
    for trial in range(amount(2, 30)):
        draw = draws("place", name, kernel, trial)
        length, training, value = draw.choice(LENGTHS), draw.random() < 0.5, draw.choice(ODD)
        dtype = draw.choice((torch.float32, torch.float32, torch.bfloat16))
        mask = draw.choice((None, ragged(length)))
        core = core_of(name).train(training)
        which = draw.choice([index for index, letter in enumerate("qkv") if letter in core.reads])
        clean = [x.detach() for x in inputs(length, dtype)]
        b = draw.randrange(len(clean[0]))
        real = list(range(length)) if mask is None else mask[b].nonzero().flatten().tolist()
        dirty = [x.clone() for x in clean]
        dirty[which][b, draw.randrange(2), draw.choice(real), draw.randrange(clean[0].shape[-1])] = value
        with kernels.use("reference" if kernel == "reference" else "auto"):
            found, expected = run(core, dirty, mask), run(core, clean, mask)
        said = f"{value} in {'qkv'[which]} of example {b}, {length} tokens, training {training}, {dtype}"
        others = [index for index in range(len(clean[0])) if index != b]
        for x, y in zip((found.out, *found.gradients), (expected.out, *expected.gradients), strict=True):
            assert torch.equal(x[others], y[others]), said
        if math.isnan(value):
            # The weight of a single key is 1 whatever its logit, and torch's fused softmax may weigh two keys as if a
            # NaN among their logits were none: then the gradients tell.
            few = len(real) == 1 or (len(real) == 2 and name.startswith("softmax"))
            seen = [found.out, *(found.gradients if few else ())]
            assert not all(bool(x[b].isfinite().all()) for x in seen), said
        if mask is not None:
            for x in (found.out, *found.gradients):
                assert (x.transpose(1, 2)[~mask] == 0).all(), said
        tally["nan: odd numbers inside a variant"] += 1
        tally["nan: examples that another one's odd number reached"] += 0


@pytest.mark.parametrize("variant", draws("models").sample(list(VARIANTS), amount(1, len(VARIANTS))))
def test_an_example_whose_numbers_overflow_has_no_part_in_the_others(tally: Counter[str], variant: str) -> None:
    """Through the whole model: an embedding that only one document has a token of is not finite."""
    data = data_for(variant)
    split = data.train._replace(tokens=data.train.tokens.copy())
    spare = len(data.manifest["vocabulary"])
    model = build(configured(variant), spare + 1, CLASSES).eval()
    for trial in range(amount(1, 4)):
        draw = draws("embedding", variant, trial)
        batch = draw.sample(range(len(split.labels)), 6)
        before = collate(split, np.array(batch), 48)
        odd = draw.randrange(6)
        place = draw.randrange(int(before.mask[odd].sum()))
        tokens = before.tokens.clone()
        tokens[odd, place] = spare
        with torch.no_grad():
            model.encoder.tokens.weight[spare] = draw.choice(ODD)
        others = [index for index in range(6) if index != odd]
        expected, found = (model(each, before.mask) for each in (before.tokens, tokens))
        assert torch.equal(found[others], expected[others])
        assert not found[odd].isfinite().any()
        tally["nan: whole models with one odd example"] += 1


# What is at the edge of what is allowed


@pytest.mark.parametrize("variant", draws("edges").sample(list(VARIANTS), amount(1, len(VARIANTS))))
def test_one_kind_of_token_and_one_class_are_trained_and_scored(
    tmp_path: Path, tally: Counter[str], variant: str
) -> None:
    def flat(data: Data, token: int, label: int, vocabulary: int, classes: int) -> Data:
        splits = (
            split._replace(tokens=np.full_like(split.tokens, token), labels=np.full_like(split.labels, label))
            for split in data[1:]
        )
        return Data({**data.manifest, "vocabulary": ["a"] * vocabulary, "classes": classes}, *splits)

    one = start(configured(variant, steps=4), flat(data_for(variant), 0, 0, 1, 1), tmp_path / "one")
    assert (one.why, {record["loss"] for record in one.records}) == (None, {0.0})
    last = start(configured(variant, steps=4), flat(data_for(variant), 255, 254, 256, 255), tmp_path / "last")
    assert last.why is None
    assert np.isfinite(last.logits).all()
    assert demand_finite_files(one.folder) + demand_finite_files(last.folder) >= 4
    tally["nan: runs at the edge of vocabulary and classes"] += 2
