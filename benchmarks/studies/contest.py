"""Works measured in turn: their times round by round in one process, their memory each in a process of its own.

Whatever ends a work (memory, an error, a signal) is its result; the others go on.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from benchmarks.meter import Meter, meter
from benchmarks.speed import high_water
from benchmarks.taken import reason

if TYPE_CHECKING:
    import torch

OK, OUT_OF_MEMORY = "ok", "out of memory"
# Imported once by the server that every measuring process is forked from.
PRELOADED = ["torch", "attention_zoo", "benchmarks.studies.contest"]
# The share of the free memory that a work may take on a CPU before it is out of memory.
ALLOWED = 0.85


class Work(Protocol):
    """Something that can be called in parts, such as `forward` and `step`; each call does all of a part once."""

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

    rounds      each times every part of every entrant once
    seconds     after which rounds end early, though not before three of them
    part        whose memory is measured
    whole       memory counts from before the work is built, its weights and inputs included; else from after it
    """

    device: str
    threads: int
    rounds: int
    seconds: float
    part: str
    whole: bool = False


class Taken(NamedTuple):
    """What came of one entrant. `samples`: milliseconds of each round by part; `first_s`: of each part's first call,
    compilation included; `peak_mb`: MiB. `reached`: the dtypes that came to matrix products and attention operators;
    `operators`: the fused attention operators that ran."""

    result: str
    samples: dict[str, list[float]]
    first_s: dict[str, float]
    peak_mb: float | None
    reached: str
    operators: str
    facts: dict[str, Any]


FAILED = Taken("", {}, {}, None, "", "", {})


def contest(
    entrants: Sequence[Entrant], rules: Rules, tell: Callable[[str], None] = lambda _: None
) -> dict[str, Taken]:
    """Measure all entrants, the memory of each and then their times in turn; by name."""
    found: dict[str, Taken] = {}
    peaks: dict[str, float] = {}
    for entrant in entrants:
        tell(f"{entrant.name}: memory")
        peak, result = _memory(entrant, rules)
        if result != OK:
            found[entrant.name] = FAILED._replace(result=result)
        elif peak is not None:
            peaks[entrant.name] = peak
    left = [entrant for entrant in entrants if entrant.name not in found]
    while left:
        tell(f"{', '.join(entrant.name for entrant in left)}: time")
        taken, culprit, result = _apart(_race, (left, rules), rules.device)
        if taken is not None:
            found.update({name: each._replace(peak_mb=peaks.get(name)) for name, each in taken.items()})
            break
        # The process ended while it was at work for one of them: the others start again without it.
        found[culprit or left[0].name] = FAILED._replace(result=result)
        left = [entrant for entrant in left if entrant.name not in found]
    return {entrant.name: found[entrant.name] for entrant in entrants}


def _memory(entrant: Entrant, rules: Rules) -> tuple[float | None, str]:
    """The peak in MiB and "ok", or None and why there is none."""
    found, _, result = _apart(_peak, (entrant, rules), rules.device)
    return found if found is not None else (None, result)


def _apart(work: Callable[..., Any], given: tuple[Any, ...], device: str) -> tuple[Any, str | None, str]:
    """Call `work(*given, say)`, on a CPU in a fresh process: what it returns, or None, the last word said and a result.

    A GPU is measured in this process: it counts its memory itself and refuses what it does not have by an exception.
    """
    if device != "cpu":
        return work(*given, lambda _: None), None, OK
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_inside, args=(work, given, there), daemon=True)
    process.start()
    there.close()
    said: str | None = None
    try:
        while True:
            kind, content = here.recv()
            if kind == "found":
                return content, said, OK
            if kind == "failed":
                return None, said, content
            said = content
    except EOFError:
        process.join()
        return None, said, _ending(process.exitcode or 0)
    finally:
        # Also where Ctrl-C ends the waiting.
        process.kill()
        process.join()
        here.close()


def _ending(code: int) -> str:
    """What it means that a process ended without an answer."""
    if code == -signal.SIGKILL:
        return OUT_OF_MEMORY
    return f"does not run: {signal.Signals(-code).name}" if code < 0 else f"does not run: exit code {code}"


def _inside(work: Callable[..., Any], given: tuple[Any, ...], pipe: Connection) -> None:
    """The life of a measuring process."""
    # The process that waits for this one answers Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _limit_memory()
    try:
        pipe.send(("found", work(*given, lambda name: pipe.send(("at", name)))))
    except BaseException as error:
        pipe.send(("failed", OUT_OF_MEMORY if isinstance(error, MemoryError) else reason(error)))
    finally:
        pipe.close()


def _limit_memory() -> None:
    """Refuse this process more than most of what is free, so that too large a work fails and the machine does not."""
    status, meminfo = Path("/proc/self/status"), Path("/proc/meminfo")
    if not (status.exists() and meminfo.exists()):
        return
    used, free = (_kib(file, key) for file, key in ((status, "VmData"), (meminfo, "MemAvailable")))
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (text := group.read_text().strip()).isdecimal():
        current = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, max(int(text) - current, 0) // 1024)
    limit = 1024 * (used + int(ALLOWED * free))
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def _kib(file: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(f"{key}:"))


def _begin(rules: Rules) -> tuple[torch.device, Meter]:
    import torch

    torch.set_num_threads(rules.threads)
    device = torch.device(rules.device)
    return device, meter(device, flush=False)


def _peak(entrant: Entrant, rules: Rules, say: Callable[[str], None]) -> tuple[float | None, str]:
    """The peak of one part's first call, in a process that has done the same at a small size."""
    device, clock = _begin(rules)
    return_freed_memory()
    try:
        entrant.small(device).parts[rules.part]()
        if device.type == "cuda":
            return _peak_cuda(entrant, rules, device, clock), OK
        before = reset_high_water() if rules.whole else 0
        work = entrant.build(device)
        before = before if rules.whole else reset_high_water()
        work.parts[rules.part]()
        return (high_water() - before) / 2**10, OK
    except Exception as error:
        return None, OUT_OF_MEMORY if isinstance(error, MemoryError) else reason(error)
    finally:
        clock.release()


def _peak_cuda(entrant: Entrant, rules: Rules, device: torch.device, clock: Meter) -> float:
    import torch

    clock.release()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work = entrant.build(device)
    if not rules.whole:
        return clock.peak(work.parts[rules.part])
    work.parts[rules.part]()
    clock.wait()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


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


def _race(entrants: Sequence[Entrant], rules: Rules, say: Callable[[str], None]) -> dict[str, Taken]:
    """The times of all entrants, in turn."""
    device, clock = _begin(rules)
    found: dict[str, Taken] = {}
    works: dict[str, Work] = {}
    for name, build, _ in entrants:
        say(name)
        try:
            work = build(device)
            first = {part: _seconds(call, clock) for part, call in work.parts.items()}
            for call in work.parts.values():
                call()
            clock.wait()
            reached, operators = seen(work)
            found[name] = Taken(OK, {part: [] for part in first}, first, None, reached, operators, work.facts())
            works[name] = work
        except Exception as error:
            found[name] = FAILED._replace(result=_reason(error))
            clock.release()
    start = time.perf_counter()
    for turn in range(rules.rounds):
        if turn >= 3 and time.perf_counter() - start > rules.seconds:
            break
        for name, work in list(works.items()):
            say(name)
            try:
                spent = {part: clock.milliseconds(call, "eager") for part, call in work.parts.items()}
            except Exception as error:
                found[name] = FAILED._replace(result=_reason(error))
                del works[name]
                clock.release()
                continue
            for part, milliseconds in spent.items():
                found[name].samples[part].append(milliseconds)
    works.clear()
    clock.release()
    return found


def _reason(error: Exception) -> str:
    return OUT_OF_MEMORY if isinstance(error, MemoryError) else reason(error)


def _seconds(call: Callable[[], Any], clock: Meter) -> float:
    began = time.perf_counter()
    call()
    clock.wait()
    return time.perf_counter() - began


# Operators whose arguments tell in which dtype the work is done.
PRODUCTS = ("aten.mm", "aten.bmm", "aten.addmm", "aten.baddbmm", "aten.convolution")


def seen(work: Work) -> tuple[str, str]:
    """The dtypes that reach products and attention operators in a call of the first part, and those operators.

    A work that is compiled says both itself, as its facts `reached` and `operators`: watching would undo the compiling.
    """
    if getattr(work, "compiled", False):
        told = work.facts()
        return told["reached"], told["operators"]
    with watching() as (dtypes, operators):
        next(iter(work.parts.values()))()
    return "+".join(sorted(dtypes)), "; ".join(sorted(operators))


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
