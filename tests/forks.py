"""Processes that begin with torch and Hydra imported: forks of a server, which imports them once for many tests.

Such a process has its own number, signals, environment, folder and exit code, and imports the project for itself. What
a command does before it imports torch is for tests that start it as a user does.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, TracebackType

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["hydra.main", "numpy", "torch._dynamo"])


class Started:
    """`python -m <module> <words>` or `python -c <program> <words>` under way.

    `stdout` is a stream of text. What the process says on stderr comes there too, or into the file `complaints`.
    Leaving the `with` waits for its end and sets `code`: the exit code, or minus the signal that killed it.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, environ: dict[str, str], complaints: str = "") -> None:
        self.code = 0
        reader, writer = CONTEXT.Pipe(duplex=False)
        with reader, writer:
            self._process = CONTEXT.Process(target=_become, args=(arguments, folder, environ, writer, complaints))
            self._process.start()
            self.stdout = io.TextIOWrapper(os.fdopen(os.dup(reader.fileno()), "rb"))
        assert self._process.pid
        self.pid = self._process.pid

    def __enter__(self) -> Started:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stdout.close()
        if error:
            self._process.kill()
        self._process.join()
        assert self._process.exitcode is not None
        self.code = self._process.exitcode
        self._process.close()


def run(arguments: Sequence[str], folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """`python <arguments>` to its end."""
    with tempfile.NamedTemporaryFile("r") as complaints:
        with Started(arguments, folder, environ, complaints.name) as process:
            said = process.stdout.read()
        return subprocess.CompletedProcess(list(arguments), process.code, said, complaints.read())


def instead_of_spawned(patch: pytest.MonkeyPatch) -> None:
    """The processes that the project would spawn are forks too."""
    real = multiprocessing.get_context
    patch.setattr(multiprocessing, "get_context", lambda method=None: CONTEXT if method == "spawn" else real(method))


def _become(
    arguments: Sequence[str], folder: Path, environ: dict[str, str], writer: Connection, complaints: str
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    os.dup2(writer.fileno(), 1)
    writer.close()
    with open(complaints, "w") if complaints else os.fdopen(os.dup(1), "w") as file:
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(fd, "w"), line_buffering=True) for fd in (1, 2))
    option, what, *words = arguments
    sys.argv = [what, *words]
    if option == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        main = sys.modules["__main__"] = ModuleType("__main__")
        exec(what, main.__dict__)
