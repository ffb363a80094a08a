"""What a measuring process does: the memory of works, the largest that fits, their times round by round in turn.

Whatever ends a part of a work (memory, an error, a lost device) is the result of that part; its other parts and all
other works go on.
"""

from __future__ import annotations

import ctypes
import gc
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from benchmarks.meter import Meter, meter
from benchmarks.speed import high_water
from benchmarks.studies.apart import OK, Say, told

if TYPE_CHECKING:
    import torch

# Seconds after which a part is warm.
WARM = 1.0
# In the place of a part: the making of the work itself, and what is asked of it besides.
WHOLE = ""


class Work(Protocol):
    """Something that can be called in parts, such as `forward` and `step`; each call does all of a part once.

    A work with an attribute `compiled` that is true has `reached` and `operators` among its facts.
    """

    parts: dict[str, Callable[[], Any]]

    def facts(self) -> dict[str, Any]:
        """What is found once, untimed, after the warm-up: errors, the kernel. Picklable."""


class Entrant(NamedTuple):
    """One that is measured. `build` makes its work on a device, `small` the same at a size that costs nothing.

    Both are picklable: they are called in the processes that measure.
    """

    name: str
    build: Callable[[torch.device], Work]
    small: Callable[[torch.device], Work]


class Rules(NamedTuple):
    """How it is measured.

    rounds      each times every part of every entrant once, the entrants in an order drawn anew
    seconds     after which rounds end early, though not before three of them
    part        whose memory is measured
    whole       memory counts from before the work is built, its weights and inputs included; else from after it
    warmup      calls of every part before the rounds, fewer where they take longer than WARM
    """

    device: str
    threads: int
    rounds: int
    seconds: float
    part: str
    whole: bool = False
    warmup: int = 2


class Taken(NamedTuple):
    """What came of one entrant.

    result      "ok", or why a part gave no times: "step: out of memory"; without a part where none did
    samples     milliseconds of each round by part; those parts alone that ran in all rounds
    first_s     of each part's first call, compilation included
    peak_mb     MiB
    reached     the dtypes that came to matrix products and attention operators
    operators   the fused attention operators that ran
    failed      why, for each part that gave no times
    """

    result: str
    samples: dict[str, list[float]]
    first_s: dict[str, float]
    peak_mb: float | None
    reached: str
    operators: str
    facts: dict[str, Any]
    failed: dict[str, str] = {}


# Parts that are known not to run, by entrant, with their reasons.
Losses = dict[str, dict[str, str]]


class DeviceLost(RuntimeError):
    """An error after which the device is of no more use to this process."""


def _begin(rules: Rules) -> tuple[torch.device, Meter]:
    import torch

    torch.set_num_threads(rules.threads)
    device = torch.device(rules.device)
    return device, meter(device, flush=False)


def _recover(clock: Meter) -> None:
    """Give back what a failed call has left; DeviceLost where the device answers no more."""
    try:
        clock.release()
    except RuntimeError as error:
        raise DeviceLost(str(error)) from error


def peaks(say: Say, entrants: Sequence[Entrant], rules: Rules, losses: Losses) -> tuple[dict[str, float], Losses]:
    """The peak of one part's first call of each entrant, MiB, after the same at a small size; and what was lost."""
    device, clock = _begin(rules)
    return_freed_memory()
    found: dict[str, float] = {}
    lost: Losses = {}
    for name, build, small in entrants:
        if rules.part in losses[name]:
            continue
        at = WHOLE
        work: Work | None = None
        try:
            say(name, at)
            work = small(device)
            say(name, at := rules.part)
            work.parts[at]()
            work = None
            clock.release()
            before = _mark(device)
            say(name, at := WHOLE)
            work = build(device)
            clock.wait()
            before = before if rules.whole else _mark(device)
            say(name, at := rules.part)
            work.parts[at]()
            clock.wait()
            found[name] = _high(device) - before
        except Exception as error:
            lost[name] = {at: told(error)}
        work = None
        _recover(clock)
    return found, lost


def fits(say: Say, make: Callable[[int], Entrant], rules: Rules, most: int) -> tuple[int, str]:
    """As `fitting`, in the process that tries."""
    device, clock = _begin(rules)
    return_freed_memory()
    size = 1
    while size <= most:
        entrant = make(size)
        say(entrant.name, str(size))
        work: Work | None = None
        try:
            work = entrant.build(device)
            work.parts[rules.part]()
            clock.wait()
        except Exception as error:
            return size // 2, told(error)
        work = None
        _recover(clock)
        size *= 2
    return size // 2, OK


def _mark(device: torch.device) -> float:
    """Count peaks of memory from now on; what is used now, MiB."""
    if device.type == "cpu":
        return reset_high_water() / 2**10
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device) / 2**20


def _high(device: torch.device) -> float:
    """The peak since `_mark`, MiB."""
    if device.type == "cpu":
        return high_water() / 2**10
    import torch

    return torch.cuda.max_memory_allocated(device) / 2**20


def return_freed_memory() -> None:
    """Let glibc hand every freed block of 64 KiB and more back to the system at once, so that none is used again
    without being counted."""
    if sys.platform == "linux":
        threshold = -3
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(threshold, 2**16)


def reset_high_water() -> int:
    """Set the peak of this process's memory back to what it has now, where Linux can; returns the peak, KiB."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return high_water()


class Runner:
    """One entrant in the race: its work, and what is known of the parts that still run."""

    def __init__(self, name: str, without: dict[str, str], say: Say, clock: Meter) -> None:
        self.name, self.without, self.say, self.clock = name, without, say, clock
        self.work: Work | None = None
        self.first: dict[str, float] = {}
        self.samples: dict[str, list[float]] = {}
        self.noted: tuple[str, str, dict[str, Any]] = "", "", {}
        self.lost: dict[str, str] = {}

    def attempt(self, part: str, call: Callable[[], Any]) -> Any:
        """What the call returns; None where it fails, and the part is out of the race, all parts with WHOLE."""
        self.say(self.name, part)
        try:
            found = call()
            self.clock.wait()
            return found
        except Exception as error:
            self.lost[part] = told(error)
        for gone in list(self.samples) if part == WHOLE else [part]:
            self.samples.pop(gone, None)
        if not self.samples:
            self.work = None
        _recover(self.clock)
        return None

    def prepare(self, build: Callable[[], Work], warmup: int) -> None:
        """Build the work, warm it up, look at it."""
        self.work = work = self.attempt(WHOLE, build)
        if work is None:
            return
        for part, call in work.parts.items():
            if part not in self.without:
                first = self.attempt(part, partial(warm, call, self.clock, warmup, getattr(work, "compiled", False)))
                if first is not None:
                    self.first[part], self.samples[part] = first, []
        if self.samples:
            self.noted = self.attempt(WHOLE, partial(noted, work, next(iter(self.samples)))) or self.noted

    def go(self) -> None:
        """A round."""
        for part, taken in list(self.samples.items()):
            assert self.work is not None, "a part that runs has a work"
            spent = self.attempt(part, partial(self.clock.milliseconds, self.work.parts[part], "eager"))
            if spent is not None:
                taken.append(spent)

    def taken(self) -> Taken:
        first = {part: self.first[part] for part in self.samples}
        return Taken(OK, self.samples, first, None, *self.noted)


def race(say: Say, entrants: Sequence[Entrant], rules: Rules, losses: Losses) -> tuple[dict[str, Taken], Losses]:
    """The times of all entrants, in turn; and what was lost."""
    device, clock = _begin(rules)
    runners = [Runner(name, losses[name], say, clock) for name, _, _ in entrants]
    for runner, entrant in zip(runners, entrants, strict=True):
        runner.prepare(partial(entrant.build, device), rules.warmup)
    draws, start = random.Random(0), time.perf_counter()
    with collecting_between_rounds() as collect:
        for turn in range(rules.rounds):
            if turn >= 3 and time.perf_counter() - start > rules.seconds:
                break
            collect()
            # So that none always comes after the same other, whose memory and caches it finds.
            for runner in draws.sample(runners, len(runners)):
                runner.go()
    return {runner.name: runner.taken() for runner in runners}, {runner.name: runner.lost for runner in runners}


@contextmanager
def collecting_between_rounds() -> Iterator[Callable[[], Any]]:
    """Within this context Python looks for garbage only when it is told to: not while something is timed."""
    gc.disable()
    try:
        yield gc.collect
    finally:
        gc.enable()


def warm(call: Callable[[], Any], clock: Meter, calls: int, compiled: bool) -> float:
    """Call it so often, though no longer than WARM seconds: then once is enough, or twice where the first compiles.
    Returns the seconds of the first."""
    began = time.perf_counter()
    first = 0.0
    for done in range(calls):
        if done >= 1 + compiled and time.perf_counter() - began > WARM:
            break
        call()
        clock.wait()
        first = first or time.perf_counter() - began
    return first


def noted(work: Work, part: str) -> tuple[str, str, dict[str, Any]]:
    """The dtypes that reach products and attention operators in a call of a part, these operators, and the facts."""
    facts = work.facts()
    if getattr(work, "compiled", False):
        # To watch would undo the compiling.
        return facts["reached"], facts["operators"], facts
    with watching() as (dtypes, operators):
        work.parts[part]()
    return "+".join(sorted(dtypes)), "; ".join(sorted(operators)), facts


# Operators whose arguments tell in which dtype the work is done.
PRODUCTS = ("aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm", "aten.convolution")


@contextmanager
def watching() -> Iterator[tuple[set[str], set[str]]]:
    """Note what torch runs within this context."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    dtypes: set[str] = set()
    operators: set[str] = set()

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = str(function)
            fused = name.startswith(("aten._scaled_dot_product", "zoo."))
            if fused or name.startswith(PRODUCTS):
                tensors = [x for x in args if isinstance(x, torch.Tensor) and x.is_floating_point()]
                dtypes.update(str(x.dtype).removeprefix("torch.") for x in tensors)
            if fused:
                operators.add(name.split(".")[1].removeprefix("_scaled_dot_product_"))
            return function(*args, **(kwargs or {}))

    with Watch():
        yield dtypes, operators
