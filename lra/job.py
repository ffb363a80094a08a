"""One cell of a sweep as a process of its own: an honest peak of memory, and a crash that hurts no other cell.

`work` is what Hydra's launchers call, in this process or another one, on this machine or another one. All that it
knows is in the folder of the sweep, which it also answers to: `<cell>.begun` and `<cell>.ended` say what became of a
cell, and where there is a file `stop` no further cell begins and those under way save and end.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from lra.files import write_text
from lra.lock import holder
from lra.slurm import Relay, in_slurm

ROOT = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1
# Seconds between two looks at whether the sweep is still there and wants the cell to go on.
LOOK = 0.5
# What stands in `<cell>.ended` beside the exit codes of lra.train, and beside what a cell could not begin for.
BUSY, STOPPED = "busy", "stopped"


def work(config: Any) -> None:
    """Hydra's task function: run the cell `config.cell` of the sweep in `config.folder`."""
    folder, index = Path(config.folder), int(config.cell)
    sheet = json.loads((folder / "cells.json").read_text(encoding="utf-8"))
    if sheet["local"] and os.getpid() != sheet["pid"]:
        # Ctrl-C reaches every process of a terminal; what becomes of the cell is for the sweep to say.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if os.getppid() != sheet["pid"]:
            os._exit(1)
    cell = sheet["cells"][index]
    path = Path(sheet["cwd"], cell["path"])
    parent = os.getppid()

    def asked() -> int:
        """The signal that the sweep wants the cell to end by, 0 while it may go on."""
        if sheet["local"] and os.getppid() != parent:
            return signal.SIGTERM
        with contextlib.suppress(OSError, ValueError):
            return int((folder / "stop").read_text())
        return 0

    def tell(name: str, **told: Any) -> None:
        write_text(folder / f"{index}.{name}", json.dumps(told), lambda: demand(folder))

    began = time.time()
    tell("begun", began=began)
    if asked():
        outcome: int | str = STOPPED
    elif holder(path):
        outcome = BUSY
    else:
        try:
            with cores(sheet["threads"] if sheet["pin"] else 0) as mine:
                outcome = run_cell(cell["words"], path / "log.txt", Path(sheet["cwd"]), sheet["threads"], mine, asked)
        except OSError as error:
            # It has not begun: no room for its log, say. The next cell may stand on another disk.
            outcome = str(error)
    tell("ended", outcome=outcome, seconds=time.time() - began)
    if sheet["local"] and os.getppid() != parent:
        # A worker of joblib would wait for a sweep that is no more.
        os._exit(1)


def demand(folder: Path) -> None:
    """Raise an OSError where the folder of the sweep has been taken away."""
    if not (folder / "cells.json").exists():
        raise FileNotFoundError(errno.ENOENT, "the folder of the sweep has been removed or renamed", str(folder))


def run_cell(
    words: Sequence[str], log: Path, cwd: Path | None = None, threads: int | None = None,
    cores: Collection[int] = (), asked: Callable[[], int] = lambda: 0,
) -> int:  # fmt: skip
    """Run `python -m lra.train <words>` in `cwd` and return its exit code; its output is added to the file `log`.

    threads: how many it computes with, None: as many as torch likes. cores: the ones that it may use, empty: all.
    asked: called twice a second; where it names a signal, the process gets it, once. The process gets SIGTERM where
    the one that called this dies. A process that was itself ended by signal n counts as exit code 128 + n.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if threads:
        environment |= {f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "MKL", "OPENBLAS")}
    bound = ",".join(map(str, sorted(cores)))
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "lra.job", str(os.getpid()), bound, *words],
            cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    relay = Relay(process) if in_slurm() else None
    code = wait(process, asked)
    if relay:
        relay.settle(code)
    return code if code >= 0 else 128 - code


def wait(process: subprocess.Popen[Any], asked: Callable[[], int]) -> int:
    """Wait for a cell's process; hand the signal that `asked` names on to it, once."""
    told = False
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=LOOK)
        if not told and (signum := asked()):
            process.send_signal(signum)
            told = True


@contextlib.contextmanager
def cores(count: int) -> Iterator[list[int]]:
    """So many cores of this machine that no other cell of this user holds; none where so many are not free."""
    held: list[tuple[int, IO[str]]] = []
    folder = Path(tempfile.gettempdir(), f"lra-cores-{os.getuid()}")
    try:
        # Without a place for its locks a cell does without cores of its own.
        with contextlib.suppress(OSError):
            take(folder, count, held)
        yield [core for core, _ in held] if len(held) == count else []
    finally:
        for _, file in held:
            file.close()


def take(folder: Path, count: int, held: list[tuple[int, IO[str]]]) -> None:
    """Add locks on so many cores to `held`, as many as there are free ones."""
    if not count or not hasattr(os, "sched_getaffinity"):
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    for core in sorted(os.sched_getaffinity(0)):
        file: IO[str] = (folder / str(core)).open("a", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        held.append((core, file))
        if len(held) == count:
            return


def main(parent: str, bound: str, *words: str) -> None:
    """Become `python -m lra.train <words>`: bound to its cores, and ended with the process that started it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):
        raise SystemExit(128 + signal.SIGTERM)
    if bound:
        os.sched_setaffinity(0, map(int, bound.split(",")))
    os.execv(sys.executable, [sys.executable, "-m", "lra.train", *words])


if __name__ == "__main__":
    main(*sys.argv[1:])
