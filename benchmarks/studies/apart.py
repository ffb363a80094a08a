"""Work in a process of its own, whose end is an answer."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from benchmarks.taken import reason

OK, OUT_OF_MEMORY = "ok", "out of memory"
# Imported once by the server that every measuring process is forked from. torch itself imports its symbolic
# shapes in the first backward, which takes half a second in each process.
PRELOADED = ["torch", "torch.fx.experimental.symbolic_shapes", "attention_zoo", "benchmarks.studies.contest"]
# The share of the free memory that a work may take on a CPU before it is out of memory.
ALLOWED = 0.85
# Tells the process that waits what comes next: an entrant and a part of it.
Say = Callable[[str, str], None]


def apart(work: Callable[..., Any], device: str, *given: Any) -> tuple[Any, tuple[str, str] | None, str]:
    """Call `work(say, *given)` in a fresh process, also for a GPU: some errors cost a process its device.

    What it returns or None, the last entrant and part that it said to be at, and the result.
    """
    context = served()
    here, there = context.Pipe()
    process = context.Process(target=_inside, args=(device, there), daemon=True)
    process.start()
    there.close()
    at: tuple[str, str] | None = None
    try:
        # Not as arguments: a process that is cut off while it reads those ends with a traceback.
        here.send((work, given))
        while True:
            kind, content = here.recv()
            if kind == "found":
                return content, at, OK
            if kind == "failed":
                return None, at, content
            at = content
    except (EOFError, ConnectionError):
        process.join()
        return None, at, _ending(process.exitcode or 0)
    finally:
        # Also where Ctrl-C ends the waiting.
        process.kill()
        process.join()
        here.close()


def served() -> ForkServerContext:
    """What makes processes that have everything imported; the server that makes them is deaf to Ctrl-C."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


def _ending(code: int) -> str:
    """What it means that a process ended without an answer."""
    if code == -signal.SIGKILL:
        return OUT_OF_MEMORY
    return f"does not run: {signal.Signals(-code).name}" if code < 0 else f"does not run: exit code {code}"


def _inside(device: str, pipe: Connection) -> None:
    """The life of a measuring process; what it is to do comes by the pipe."""
    # The process that waits for this one answers Ctrl-C.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What is compiled is compiled here: torch's helpers would still be there while times are taken.
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

    def say(kind: str, content: Any) -> None:
        try:
            pipe.send((kind, content))
        except BrokenPipeError:
            # It is gone, and nobody waits for what is measured here.
            os._exit(1)

    try:
        work, given = pipe.recv()
    except (EOFError, OSError):
        return
    if device == "cpu":
        _limit_memory()
    try:
        say("found", work(lambda name, part: say("at", (name, part)), *given))
    except BaseException as error:
        say("failed", told(error))


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


def told(error: BaseException) -> str:
    """Why a part gave no time, in one short line."""
    return OUT_OF_MEMORY if isinstance(error, MemoryError) or "bad_alloc" in str(error) else reason(error)
