"""One run on several processes: who takes what, who says what, and that nothing but the time changes."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lra import checkpoint, ranks
from lra.data import evaluation_batches
from lra.endings import OutOfMemory, Stopped, StopSignal
from lra.evaluation import evaluate
from lra.loop import Trainer, build
from lra.progress import Display
from lra.ranks import VARIABLES, Place, Ranks, place, share
from lra.run import Run, RunFolder
from lra.tracker import RecordOnly, read_metrics
from lra.words import WordError
from tests import forks
from tests.forks import Started
from tests.runs import ROOT, arguments, environment, logits, records, result
from tests.test_loop import config, first_token_data, limit_memory

CPU = torch.device("cpu")


class Threads(Ranks):
    """The processes of a run as threads of one, which hand each other what they say over a table."""

    def __init__(self, rank: int, world: int, table: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(Place(rank, world, rank, world))
        self.table, self.barrier = table, barrier

    def everyone(self, value: Any) -> list[Any]:
        self.table[self.rank] = value
        self.barrier.wait(60)
        found = list(self.table)
        self.barrier.wait(60)
        return found

    def gather(self, topic: str, *values: float) -> list[tuple[float, ...]]:
        found = self.everyone((topic, values))
        assert {each for each, _ in found} == {topic}
        return [tuple(float(value) for value in row) for _, row in found]

    def add(self, tensor: torch.Tensor) -> None:
        found = self.everyone(tensor.clone())
        tensor.copy_(torch.stack(found).sum(0, dtype=tensor.dtype))

    def broadcast(self, tensor: torch.Tensor) -> None:
        tensor.copy_(self.everyone(tensor.clone())[0])


def together(world: int, act: Callable[[Ranks], Any]) -> list[Any]:
    """What each of `world` processes returns or raises."""
    table: list[Any] = [None] * world
    ends: list[Any] = [None] * world
    barrier = threading.Barrier(world)

    def one(rank: int) -> None:
        try:
            ends[rank] = act(Threads(rank, world, table, barrier))
        except (Exception, SystemExit) as error:
            ends[rank] = error
            if not isinstance(error, (Stopped, OutOfMemory, ValueError, SystemExit)):
                barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


class Deaf(StopSignal):
    """Signals are the main thread's alone."""

    def __init__(self) -> None:
        self.signum = 0


@pytest.fixture(name="run_on")
def runner(tmp_path: Path) -> Any:
    """Trains on so many processes; the trainers, or what ended them, and the records of the first."""
    made = 0

    def run_on(
        world: int, prepare: Callable[[Trainer], object] = lambda trainer: None, **options: Any
    ) -> tuple[list[Any], list[dict[str, Any]]]:
        nonlocal made
        made += 1
        path = tmp_path / options.pop("name", f"run{made}")
        given = config(options.pop("attn", None), **{"lr": 1e-3, "steps": 8, **options})

        def act(group: Ranks) -> Trainer:
            # One after the other: the generator of the weights belongs to the process.
            for turn in range(world):
                if turn == group.rank:
                    model = build(given, 4, 3)
                group.gather("turn")
            run = Run(path, asdict(given)) if group.first else RunFolder(path, asdict(given))
            trainer = Trainer(given, model, first_token_data(), run, CPU, torch.float32, Deaf(), group)
            prepare(trainer)
            try:
                with Display(given.train.steps, 0) as display:
                    trainer.train(RecordOnly(), display)
            finally:
                trainer.close()
                run.close()
            return trainer

        return together(world, act), list(read_metrics(path / "metrics.jsonl"))

    return run_on


def losses(found: list[dict[str, Any]]) -> np.ndarray:
    return np.array([record["loss"] for record in found])


def test_a_broken_checkpoint_is_found_by_the_first_process_and_all_go_on_from_the_spare(
    run_on: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, records = run_on(2, name="broken", log_every=8)
    capsys.readouterr()
    last = tmp_path / "broken" / "checkpoint" / "last.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    trainers, found = run_on(2, name="broken", log_every=8)
    assert [trainer.state.step for trainer in trainers] == [8, 8]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1
    assert told[0].startswith(f"{last} is not a whole checkpoint (sha256 ")
    assert losses(found).tolist() == losses(records).tolist()
    for trainer in trainers:
        for name, weight in trainer.model.state_dict().items():
            assert torch.equal(weight, before[0].model.state_dict()[name])


# Shares


@pytest.mark.parametrize("world", range(1, 6))
@pytest.mark.parametrize("size", [5, 6, 7, 8, 32])
def test_every_example_of_a_batch_belongs_to_one_process(world: int, size: int) -> None:
    batch = np.random.default_rng(size).permutation(100)[:size]
    parts = [share(batch, rank, world) for rank in range(world)]
    assert np.concatenate(parts).tolist() == batch.tolist()
    sizes = [len(part) for part in parts]
    assert min(sizes) > 0
    assert max(sizes) - min(sizes) <= 1


TORCHRUN = dict(zip(VARIABLES, ("3", "4", "1", "2", "node", "29500"), strict=True))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, Place()),
        (TORCHRUN, Place(3, 4, 1, 2)),
        ({**TORCHRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, Place()),
        ({"RANK": "3", "WORLD_SIZE": "4"}, Place()),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "node"}, Place()),
    ],
)
def test_only_what_torchrun_sets_makes_a_process_one_of_several(environ: dict[str, str], expected: Place) -> None:
    assert place(environ) == expected


@pytest.mark.parametrize("wrong", [{"RANK": "4"}, {"RANK": "one"}, {"LOCAL_RANK": "2"}])
def test_places_that_cannot_be_are_refused_by_name(wrong: dict[str, str]) -> None:
    with pytest.raises(WordError, match=r"^RANK=.* LOCAL_WORLD_SIZE=2 are not what torchrun sets$"):
        place(TORCHRUN | wrong)


# Sums


@pytest.mark.parametrize("attn", ["softmax", "mra2", "linformer"])
def test_the_losses_are_those_of_one_process_up_to_the_order_of_a_sum(run_on: Any, attn: str) -> None:
    own = {"mra2": {"block_size": 8, "blocks_per_row": 2}, "linformer": {"rank": 8}}
    given = {"attn": {"name": attn, **own.get(attn, {})}, "clip": 0.5}
    whole = losses(run_on(1, **given)[1])
    # What another order of the same sums does within one process.
    float_error = max(np.abs(losses(run_on(1, **given, micro_batch=size)[1]) - whole).max() for size in (1, 2, 3))
    assert 0 < float_error < 1e-4
    for world in (2, 5):
        trainers, found = run_on(world, **given)
        assert np.abs(losses(found) - whole).max() <= 2 * float_error
        weights = [trainer.model.state_dict() for trainer in trainers]
        assert all(torch.equal(value, weights[0][key]) for other in weights for key, value in other.items())
        states = [asdict(trainer.state) for trainer in trainers]
        for key in ("step", "best_step", "best_accuracy", "tokens", "losses", "hits", "micro_batch", "lr"):
            assert {str(state[key]) for state in states} == {str(states[0][key])}


def test_tokens_are_counted_over_all_processes(run_on: Any) -> None:
    counts = [run_on(world, steps=3, warmup=2)[0][-1].state.tokens for world in (1, 3)]
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("attn", [{"name": "yoso", "bits": 3}, {"name": "softmax"}])
def test_what_is_drawn_at_random_differs_between_processes_and_repeats(run_on: Any, attn: dict[str, Any]) -> None:
    draws: dict[int, list[float]] = {0: [], 1: []}

    def listen(trainer: Trainer) -> None:
        def forward(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return trainer.model(tokens, mask)

        differentiate = trainer.differentiate

        def one_at_a_time(*given: Any) -> int:
            # Threads share the generator that processes have each for their own.
            tokens = 0
            for turn in range(2):
                if turn == trainer.ranks.rank:
                    tokens = differentiate(*given)
                    draws[turn].append(torch.rand(()).item())
                trainer.ranks.gather("turn")
            return tokens

        trainer.differentiate, trainer.forward = one_at_a_time, forward  # type: ignore[method-assign,assignment]

    first = losses(run_on(2, listen, attn=attn, model={"dropout": 0.1})[1])
    assert len({*draws[0], *draws[1]}) == len(draws[0]) + len(draws[1]) == 16
    assert losses(run_on(2, listen, attn=attn, model={"dropout": 0.1})[1]).tolist() == first.tolist()


def test_processes_that_begin_with_other_weights_take_the_first_ones(run_on: Any) -> None:
    given = config()
    first = build(given, 4, 3)
    theirs = [{key: value.clone() for key, value in first.state_dict().items()} for _ in range(3)]

    def act(group: Ranks) -> bool:
        model = build(given, 4, 3)
        with torch.no_grad():
            next(model.parameters()).add_(group.rank)
            if group.first:
                model.load_state_dict(theirs[0])
        group.equalize(model)
        return all(torch.equal(value, theirs[0][key]) for key, value in model.state_dict().items())

    assert together(3, act) == [True, True, True]


@pytest.mark.parametrize("batch_size", [5, 11])
def test_a_sharded_evaluation_has_the_bits_of_one_process(batch_size: int) -> None:
    split, model = first_token_data().val, build(config(), 4, 3)
    alone = evaluate(model, split, 40, batch_size, CPU, torch.float32)
    batches = list(evaluation_batches(split, batch_size))
    for world in range(2, 6):
        assert (world > len(batches)) == (batch_size == 11 and world > 2) or batch_size == 5
        for scores in together(
            world, lambda group: evaluate(model, split, 40, batch_size, CPU, torch.float32, ranks=group)
        ):
            assert scores.logits.tobytes() == alone.logits.tobytes()
            assert scores[:2] == alone[:2]


# What befalls one befalls all


def test_memory_that_runs_out_on_one_process_halves_the_parts_on_all(run_on: Any) -> None:
    whole = losses(run_on(1)[1])

    def tighten(trainer: Trainer) -> None:
        if trainer.ranks.rank == 1:
            limit_memory(trainer, examples=2)

    trainers, found = run_on(2, tighten)
    assert [trainer.state.micro_batch for trainer in trainers] == [2, 2]
    assert np.abs(losses(found) - whole).max() < 1e-5
    ends, _ = run_on(2, lambda trainer: limit_memory(trainer, 0) if trainer.ranks.rank == 1 else None)
    assert [str(end) for end in ends] == [str(ends[0])] * 2
    assert "no memory for 1 examples" in str(ends[0])


def test_memory_that_runs_out_in_an_evaluation_ends_all_with_one_line(run_on: Any) -> None:
    def starve(trainer: Trainer) -> None:
        def forward(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        def starve_now() -> Any:
            trainer.model.forward = forward  # type: ignore[method-assign]

        if trainer.ranks.rank == 1:
            trainer.model.eval = starve_now  # type: ignore[method-assign]

    ends, _ = run_on(3, starve)
    assert {str(end) for end in ends} == {"no memory to evaluate 8 examples at once"}


def test_a_gradient_that_overflows_on_one_process_skips_the_step_on_all(run_on: Any) -> None:
    def overflow(trainer: Trainer) -> None:
        trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        if trainer.ranks.rank == 1:
            weight = next(trainer.model.parameters())
            weight.register_hook(lambda grad: grad * (float("inf") if trainer.state.step == 3 else 1.0))

    trainers, _ = run_on(2, overflow, clip=0.5)
    assert [trainer.scaler.get_scale() for trainer in trainers] == [2.0**9, 2.0**9]
    steps = [trainer.optimizer.state_dict()["state"][0]["step"].item() for trainer in trainers]
    assert steps == [7, 7]
    first, second = (trainer.model.state_dict() for trainer in trainers)
    assert all(torch.equal(value, second[key]) for key, value in first.items())


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_to_one_process_stops_all_at_the_same_step(run_on: Any, tmp_path: Path, signum: int) -> None:
    def ask(trainer: Trainer) -> None:
        if trainer.ranks.rank == 2:
            trainer.optimizer.register_step_post_hook(
                lambda *_: trainer.stop.ask(signum, None) if trainer.state.step == 3 else None
            )

    ends, _ = run_on(3, ask, checkpoint_every=100)
    assert [type(end) for end in ends] == [Stopped] * 3
    assert {end.signum for end in ends} == {signum}
    assert checkpoint.load(tmp_path / "run1" / "checkpoint" / "last.pt", CPU)["state"]["step"] == 4


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 3)])
def test_a_stopped_run_goes_on_with_another_number_of_processes(run_on: Any, before: int, after: int) -> None:
    def ask(trainer: Trainer) -> None:
        trainer.optimizer.register_step_post_hook(
            lambda *_: trainer.stop.ask(signal.SIGTERM, None) if trainer.state.step == 3 else None
        )

    whole = run_on(1)[1]
    ends, stopped = run_on(before, ask, name="changed")
    assert [type(end) for end in ends] == [Stopped] * before
    assert len(stopped) == 4
    _, found = run_on(after, name="changed")
    assert [record["step"] for record in found] == [record["step"] for record in whole]
    assert np.abs(losses(found) - losses(whole)).max() < 1e-5


def test_the_first_error_is_told_and_the_others_end_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "stand_by", lambda code: None)

    def act(group: Ranks) -> None:
        with group.agreeing():
            pass
        with group.agreeing():
            if group.rank:
                raise WordError(f"device=cuda of {group.rank}")

    ends = together(3, act)
    assert [end.code for end in (ends[0], ends[2])] == [2, 2]
    assert str(ends[1]) == "device=cuda of 1"


def test_processes_with_other_words_or_data_are_refused_by_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "stand_by", lambda code: None)
    facts = {"train.log_every": 1, "the data (sha256)": "a"}

    def act(group: Ranks) -> None:
        group.demand_same(facts)
        group.demand_same(facts | {"train.log_every": 1 + group.rank // 2})

    ends = together(3, act)
    assert [getattr(end, "code", None) for end in ends] == [1, 1, None]
    line = "train.log_every must be the same on every process: 1 on the first, 2 on process 2 of 3"
    assert str(ends[2]) == line


# Under torchrun


def torchrun(folder: Path, *words: str, options: tuple[str, ...] = ("--standalone", "--nproc-per-node=2")) -> list[str]:
    """The command line of a tiny run on two processes; dropout is on, as a share of it must resume too."""
    return ["-m", "torch.distributed.run", *options, *arguments(folder, *words)]


def start(folder: Path, *words: str, **given: Any) -> Started:
    return Started(torchrun(folder, *words, **given), folder, environment())


def signalled(folder: Path, signum: int, line: str, *words: str) -> tuple[int, str]:
    """Send the second process a signal the moment that the first prints `line`; torchrun's exit code, what was said."""
    with start(folder, *words) as process:
        seen = ""
        for printed in process.stdout:
            seen += printed
            if line in printed:
                first = int((folder / "run" / ".lock").read_text().split()[0])
                children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
                (second,) = {int(child) for child in children} - {first}
                os.kill(second, signum)
                break
        else:
            pytest.fail(f"no line with {line!r} in:\n{seen}")
        seen += process.stdout.read()
    return process.code, seen


def test_stopped_killed_and_resumed_processes_end_with_the_bits_of_two_nodes(tmp_path: Path) -> None:
    one, nodes = tmp_path / "one", tmp_path / "nodes"
    for folder in (one, nodes):
        folder.mkdir()
    data = f"data_dir={tmp_path / 'data'}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}")
    with start(nodes, data, options=here) as first, start(nodes, data, "run_dir=none", options=here) as second:
        said = [first.stdout.read(), second.stdout.read()]
    assert (first.code, second.code) == (0, 0), said
    # Who is the first node is for torchrun to say.
    (whole,) = (path for path in (nodes / "run", nodes / "none") if path.exists())
    assert sorted(text.count("2 processes") for text in said) == [0, 1]
    assert sorted(text.count("test   accuracy") for text in said) == [0, 1]
    assert result(whole)["processes"] == 2

    code, seen = signalled(one, signal.SIGTERM, "step 11/40", data)
    assert code == 1
    assert seen.count("with everything saved") == 1
    stopped = result(one / "run")
    assert stopped["status"] == "interrupted"
    assert "exitcode  : 143" in seen.replace("exitcode :", "exitcode  :")

    code, seen = signalled(one, signal.SIGKILL, "step 26/40", data)
    assert code == 1
    assert f"going on from step {stopped['steps']}" in seen
    assert seen.count("error: another process of this run is gone; the same words go on from the last") == 1
    assert "Signal 9 (SIGKILL)" in seen
    assert checkpoint.load(one / "run" / "checkpoint" / "last.pt", CPU)["state"]["step"] >= 24

    with start(one, data) as last:
        said = [last.stdout.read()]
    assert last.code == 0, said
    assert records(one / "run") == records(whole)
    assert logits(one / "run").tobytes() == logits(whole).tobytes()
    assert {key: result(one / "run")[key] for key in ("test", "val", "train", "steps")} == {
        key: result(whole)[key] for key in ("test", "val", "train", "steps")
    }


def test_what_is_wrong_is_told_once(tmp_path: Path) -> None:
    with start(tmp_path, "train.batch_size=1") as process:
        said = process.stdout.read()
    assert process.code == 1
    assert [line for line in said.splitlines() if line.startswith("error:")] == [
        "error: train.batch_size=1 must be at least the 2 processes"
    ]
    assert "stopped by" not in said
    assert not (tmp_path / "run").exists()


def test_one_process_asks_torch_for_no_group(tmp_path: Path) -> None:
    program = (
        "import json, sys, torch.distributed as dist\nfrom lra.ranks import Place, join\n"
        "ranks = join(Place())\nprint(json.dumps([dist.is_initialized(), ranks.gather('step', 3), ranks.flat]))"
    )
    done = forks.run(["-c", program], ROOT, environment())
    assert json.loads(done.stdout) == [False, [[3]], None]
