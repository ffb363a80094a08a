"""The laws of benchmarks/studies/contest.py: whatever ends a part of a work is its result, and the others go on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.meter import Meter
from benchmarks.studies import apart as processes
from benchmarks.studies import contest as module
from benchmarks.studies.contest import OK, OUT_OF_MEMORY, Entrant, Rules, Taken, contest, fitting, watching
from benchmarks.studies.race import DeviceLost, fits, race, warm

RULES = Rules("cpu", threads=1, rounds=3, seconds=10, part="step")
MIB = 2**20


def nothing() -> None:
    pass


class Toy:
    """A work whose step does what its name says, if it is not the small one."""

    def __init__(self, name: str, small: bool, device: torch.device) -> None:
        self.name = name
        if name == "unbuildable" and not small:
            raise ValueError("3 heads of 5 dimensions")
        step: dict[str, Callable[[], Any]] = {
            "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "crashes": lambda: os.kill(os.getpid(), signal.SIGSEGV),
            "raises": lambda: torch.ones(2, 3) @ torch.ones(2, 3),
            "large": lambda: torch.ones(2**44),
            "takes": lambda: torch.ones(32 * MIB // 4).sum(),
        }
        self.parts: dict[str, Callable[[], Any]] = {
            "forward": nothing, "step": nothing if small else step.get(name, nothing),
        }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        if self.name == "factless":
            raise RuntimeError("no error can be found")
        return {"kernel": "toy"}


def toy(name: str) -> Entrant:
    return Entrant(name, partial(Toy, name, False), partial(Toy, name, True))


class Mortal:
    """Dies in a round, in its forward pass; it counts its calls in its own process."""

    def __init__(self, device: torch.device) -> None:
        self.calls = 0

        def call() -> None:
            self.calls += 1
            if self.calls > 4:
                os.kill(os.getpid(), signal.SIGKILL)

        self.parts: dict[str, Callable[[], Any]] = {"forward": call, "step": nothing}

    def facts(self) -> dict[str, Any]:
        return {}


def here(work: Callable[..., Any], device: str, *given: Any) -> tuple[Any, None, str]:
    """As `apart`, in this process: for works that end nothing."""
    return work(lambda *at: None, *given), None, OK


@pytest.fixture(scope="module")
def found() -> dict[str, Taken]:
    """One contest for all laws of it; what ends its process is in processes of its own."""
    found = contest([*map(toy, ["killed", "crashes", "takes"]), Entrant("mortal", Mortal, Mortal)], RULES)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "apart", here)
        patched.setattr("benchmarks.studies.race.return_freed_memory", nothing)
        return found | contest([toy(name) for name in ("good", "unbuildable", "raises", "large", "factless")], RULES)


def test_what_runs_is_timed_in_every_round(found: dict[str, Taken]) -> None:
    good = found["good"]
    assert good.result == OK
    assert {part: len(samples) for part, samples in good.samples.items()} == {"forward": 3, "step": 3}
    assert good.first_s.keys() == good.samples.keys()
    assert good.facts == {"kernel": "toy"}


def test_memory_is_what_a_part_takes_beyond_what_was_there(found: dict[str, Taken]) -> None:
    peak = found["takes"].peak_mb
    assert peak is not None
    assert 31 < peak < 40


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("killed", OUT_OF_MEMORY),
        ("crashes", "does not run: SIGSEGV"),
        ("large", OUT_OF_MEMORY),
        ("raises", "does not run: mat1 and mat2 shapes cannot be multiplied (2x3 and 2x3)"),
    ],
)
def test_a_part_that_fails_costs_its_entrant_that_part_alone(found: dict[str, Taken], name: str, told: str) -> None:
    taken = found[name]
    assert taken.result == f"step: {told}"
    assert taken.failed == {"step": told}
    assert taken.peak_mb is None
    assert {part: len(samples) for part, samples in taken.samples.items()} == {"forward": 3}


@pytest.mark.parametrize(
    ("name", "told"), [("unbuildable", "3 heads of 5 dimensions"), ("factless", "no error can be found")]
)
def test_what_cannot_be_built_or_asked_has_a_reason_in_place_of_times(
    found: dict[str, Taken], name: str, told: str
) -> None:
    taken = found[name]
    assert taken.result == f"does not run: {told}"
    assert taken.samples == {}
    assert taken.peak_mb is None


def test_a_kill_in_the_race_ends_one_part_and_the_race_starts_again(found: dict[str, Taken]) -> None:
    mortal = found["mortal"]
    assert mortal.result == f"forward: {OUT_OF_MEMORY}"
    assert len(mortal.samples["step"]) == 3


def test_ctrl_c_ends_the_measuring_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Interrupted:
        def send(self, given: Any) -> None:
            pass

        def recv(self) -> Any:
            raise KeyboardInterrupt

        def close(self) -> None:
            pass

    class Process:
        pid, exitcode, killed = 1, None, False

        def __init__(self, **given: Any) -> None:
            started.append(self)

        def start(self) -> None:
            pass

        def kill(self) -> None:
            self.killed = True

        def join(self) -> None:
            pass

    class Context:
        def Pipe(self) -> tuple[Any, Any]:
            return Interrupted(), Interrupted()

    Context.Process = Process  # type: ignore[attr-defined]
    monkeypatch.setattr(processes, "served", Context)
    with pytest.raises(KeyboardInterrupt):
        processes.apart(race, "cpu")
    assert started[0].killed


def of_batch(limit: int, batch: int) -> Entrant:
    return Entrant("one", partial(Limited, batch > limit), partial(Limited, False))


class Limited:
    def __init__(self, over: bool, device: torch.device) -> None:
        self.parts: dict[str, Callable[[], Any]] = {"step": partial(torch.ones, 2**44 if over else 1)}

    def facts(self) -> dict[str, Any]:
        return {}


def test_the_largest_batch_is_the_last_power_of_two_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.studies.race.return_freed_memory", nothing)
    said: list[tuple[str, str]] = []
    assert fits(lambda *at: said.append(at), partial(of_batch, 5), RULES, 64) == (4, OUT_OF_MEMORY)
    assert said == [("one", "1"), ("one", "2"), ("one", "4"), ("one", "8")]
    assert fits(lambda *at: None, partial(of_batch, 0), RULES, 64) == (0, OUT_OF_MEMORY)
    assert fits(lambda *at: None, partial(of_batch, 99), RULES, 8) == (8, OK)


def test_a_process_that_ends_while_it_tries_batches_keeps_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "apart", lambda *given: (None, ("one", "16"), OUT_OF_MEMORY))
    assert fitting(partial(of_batch, 5), RULES) == (8, OUT_OF_MEMORY)
    monkeypatch.setattr(module, "apart", lambda *given: (None, None, OUT_OF_MEMORY))
    assert fitting(partial(of_batch, 5), RULES) == (0, OUT_OF_MEMORY)


def test_a_lost_device_ends_the_process_at_the_part_that_lost_it(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, str]] = []

    def release(self: Meter) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(Meter, "release", release)
    with pytest.raises(DeviceLost, match="illegal memory access"):
        race(lambda *at: said.append(at), [toy("good"), toy("raises")], RULES, {"good": {}, "raises": {}})
    assert said[-1] == ("raises", "step")


def test_rounds_end_early_after_three_of_them() -> None:
    found, lost = race(lambda *at: None, [toy("good")], RULES._replace(rounds=9, seconds=0), {"good": {}})
    assert len(found["good"].samples["step"]) == 3
    assert lost == {"good": {}}


def test_warming_up_is_counted_and_ends_where_calls_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[float] = []
    clock = Meter(torch.device("cpu"), flush=False)
    warm(lambda: calls.append(0), clock, 10, compiled=False)
    assert len(calls) == 10
    monkeypatch.setattr("benchmarks.studies.race.WARM", -1.0)
    for compiled in (False, True):
        calls.clear()
        warm(lambda: calls.append(0), clock, 10, compiled)
        assert len(calls) == 1 + compiled


def test_a_watch_tells_fused_operators_and_the_dtype_that_reaches_them() -> None:
    q = torch.zeros(1, 1, 8, 16, dtype=torch.bfloat16)
    with watching() as (dtypes, operators):
        torch.nn.functional.scaled_dot_product_attention(q, q, q)
    assert (dtypes, operators) == ({"bfloat16"}, {"flash_attention_for_cpu"})
    with watching() as (dtypes, operators):
        q.float() @ q.float().mT
    assert (dtypes, operators) == ({"float32"}, set())


def test_a_process_whose_parent_is_gone_ends_with_its_next_word(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    def work(say: Any) -> None:
        parent.close()
        say("one", "step")

    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    monkeypatch.setattr(processes.signal, "signal", lambda *given: None)
    monkeypatch.setattr(processes.os, "_exit", leave)
    parent, there = processes.multiprocessing.Pipe()
    monkeypatch.setattr(there.__class__, "recv", lambda pipe: (work, ()))
    with pytest.raises(SystemExit, match="1"):
        processes._inside("cuda", there)


def test_a_process_whose_parent_goes_before_it_says_what_to_do_ends_in_silence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    monkeypatch.setattr(processes.signal, "signal", lambda *given: None)
    for sent in (b"", b"\x00\x00\x10\x00half of a message"):
        parent, there = processes.multiprocessing.Pipe()
        os.write(parent.fileno(), sent)
        parent.close()
        processes._inside("cpu", there)
    assert capsys.readouterr().err == ""
