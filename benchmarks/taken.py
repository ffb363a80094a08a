"""How benchmarks/kernel.py takes the times of one size: everything warmed up, then called in turn, round by round."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from benchmarks.contenders import BLOCK_SIZE, EAGER_ONLY, Inputs, Setting, context
from benchmarks.counted import PHASES
from benchmarks.meter import Meter
from benchmarks.speed import high_water

PARTS = ("forward", "step")
# Work, part and mode, as in the CSV file.
Key = tuple[str, str, str]


class Wish(NamedTuple):
    """The attentions to time, the rounds, and the seconds after which rounds end early."""

    names: tuple[str, ...]
    rounds: int
    seconds: int
    threads: int


class Taken(NamedTuple):
    """What came of the works of one size: the reason of each that does not run, the times of the rounds of the others,
    and facts that are found once."""

    reasons: dict[Key, str]
    times: dict[Key, list[float]]
    facts: dict[tuple[str, str], dict[str, Any]]


def reason(error: BaseException) -> str:
    """Why a work gave no time, in one short line."""
    from lra.machine import is_out_of_memory

    if isinstance(error, RuntimeError) and is_out_of_memory(error):
        return "out of memory"
    # What torch.compile meets it wraps, with the error itself innermost.
    while inner := error.__cause__ or getattr(error, "inner_exception", None):
        error = inner
    told = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"does not run: {told[:160]}"


def attempt(clock: Meter, name: str, work: Callable[[], Any]) -> tuple[Any, str]:
    """What the work returns and "ok", or None and the reason. Raises where the device is of no more use."""
    try:
        with context(name):
            found = work()
            clock.wait()
        return found, "ok"
    except Exception as error:
        told = reason(error)
    clock.wait()
    clock.release()
    return None, told


def modes_of(name: str, clock: Meter) -> list[str]:
    """The modes in which a work is timed."""
    return [mode for mode in clock.modes if mode == "eager" or name not in EAGER_ONLY]


def take(setting: Setting, clock: Meter, wish: Wish) -> Taken:
    """Warm everything up, see what runs, then time it in turn."""
    taken = Taken({}, {}, {})
    calls: dict[Key, Callable[[], Any]] = {}

    def fails(name: str, part: str, told: str) -> None:
        taken.reasons.update({(name, part, mode): told for mode in modes_of(name, clock)})

    def add(name: str, part: str, work: Callable[[], Any]) -> bool:
        # Twice: the second call finds everything compiled.
        for _ in range(2):
            _, told = attempt(clock, name, work)
            if told != "ok":
                fails(name, part, told)
                return False
        calls[name, part, "eager"] = work
        if "graph" in modes_of(name, clock):
            recorded, told = attempt(clock, name, partial(clock.record, work))
            if told == "ok":
                calls[name, part, "graph"] = recorded
            else:
                taken.reasons[name, part, "graph"] = told
        return True

    inputs, built = attempt(clock, "", partial(Inputs, setting, clock.device))
    for name in wish.names:
        works, told = attempt(clock, name, partial(inputs.works, name)) if inputs else (None, built)
        for part in PARTS:
            if works is None:
                fails(name, part, told)
            elif add(name, part, works[part]):
                taken.facts[name, part] = look(setting, clock, wish, inputs, name, part, works[part])
    phases, told = attempt(clock, "", inputs.phases) if inputs else (None, built)
    for name, part in PHASES if phases is None else ():
        fails(name, part, told)
    for (name, part), work in (phases or {}).items():
        add(name, part, work)
    for name, make in (("copy", copying), ("matmul", multiplying)):
        work, told = attempt(clock, name, partial(make, setting, clock))
        if work is None:
            fails(name, "", told)
        else:
            add(name, "", work)

    taken.times.update({key: [] for key in calls})
    start = time.perf_counter()
    for turn in range(wish.rounds):
        if turn >= 3 and time.perf_counter() - start > wish.seconds:
            break
        for key, work in list(calls.items()):
            spent, told = attempt(clock, key[0], partial(clock.milliseconds, work, key[2]))
            if told == "ok":
                taken.times[key].append(spent)
            else:
                taken.reasons[key] = told
                del calls[key], taken.times[key]
    return taken


def look(
    setting: Setting, clock: Meter, wish: Wish, inputs: Inputs, name: str, part: str, work: Callable[[], Any]
) -> dict[str, Any]:
    """Memory, launches and error of a work that runs."""
    found: dict[str, Any] = {}
    peak: float | None = None
    if not clock.in_fresh_process:
        peak, _ = attempt(clock, name, partial(clock.peak, work))
        found["launches"], _ = attempt(clock, name, partial(clock.launches, work))
    elif part == "step" and name != "flex":
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peak = pool.submit(peak_memory, setting, name, wish.threads).result()
    if peak is not None:
        tensors = setting.shape.tensor / 2**20
        whole = tensors * (7 if part == "step" else 4)
        found |= {"peak_mb": round(peak, 1), "memory_share": round((peak + 3 * tensors) / whole, 3)}
    if name in ("mra2", "flex"):
        errors, told = attempt(clock, name, partial(difference, inputs, name, part, work))
        found["error"] = f"{errors:.3g}" if told == "ok" else told
    return {key: "" if value is None else value for key, value in found.items()}


def difference(inputs: Inputs, name: str, part: str, work: Callable[[], Any]) -> float:
    """The largest difference of what the work returns from what it must."""
    found = work()
    found = found if isinstance(found, tuple) else (found,)
    expected = inputs.expected(name)[part]
    return max((x.float() - y).abs().max().item() for x, y in zip(found, expected, strict=True))


def peak_memory(setting: Setting, name: str, threads: int) -> float:
    """MiB that a step needs beyond its inputs, in this process, which must be fresh: it has no memory to reuse."""
    import torch

    torch.set_num_threads(threads)
    cpu = torch.device("cpu")
    with context(name):
        Inputs(setting._replace(length=BLOCK_SIZE), cpu).works(name)["step"]()
        step = Inputs(setting, cpu).works(name)["step"]
        before = high_water()
        step()
    return (high_water() - before) / 2**10


def copying(setting: Setting, clock: Meter) -> Callable[[], Any]:
    """A copy of an array, the measure of the memory."""
    import torch

    source = torch.zeros(clock.copied, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def multiplying(setting: Setting, clock: Meter) -> Callable[[], Any]:
    """A product of matrices, the measure of the arithmetic."""
    import torch

    square = torch.randn(clock.square, clock.square, device=clock.device, dtype=getattr(torch, setting.dtype))
    return lambda: square @ square
