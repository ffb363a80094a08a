"""Many processes for the price of one: each is a fork of a process that has imported what they need."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.forks import Started
from tests.runs import environment

PROGRAM = """
import importlib, json, os, resource, runpy, signal, sys
pipe, *modules = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
with open(pipe) as orders:
    for line in orders:
        order = json.loads(line)
        child = os.fork()
        if not child:
            break
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    else:
        sys.exit()
# Whoever waits for ever is ended by this, and fails its test.
signal.alarm(120)
os.chdir(order["folder"])
os.environ.clear()
os.environ.update(order["environ"])
for descriptor, said in enumerate(order["said"], 1):
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
for name, value in order["limits"].items():
    which = getattr(resource, name)
    resource.setrlimit(which, (value, resource.getrlimit(which)[1]))
option, what, *words = order["arguments"]
sys.argv = [what, *words]
if option == "-m":
    runpy.run_module(what, run_name="__main__", alter_sys=True)
else:
    exec(what, {"__name__": "__main__"})
"""


class Nursery:
    """Runs `python <arguments>` again and again; what it said and its exit code come back."""

    def __init__(self, process: Started, orders: IO[str], folder: Path) -> None:
        self._process, self._orders = process, orders
        self._said = [folder / "stdout", folder / "stderr"]

    def run(
        self,
        arguments: Sequence[str],
        folder: Path,
        environ: Mapping[str, str] | None = None,
        limits: Mapping[str, int] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """To its end, in `folder`. environ: beside that of tests. limits: soft ones, by their names in `resource`."""
        order = {
            "arguments": list(arguments),
            "folder": str(folder),
            "environ": environment() | dict(environ or {}),
            "limits": dict(limits or {}),
            "said": list(map(str, self._said)),
        }
        print(json.dumps(order), file=self._orders, flush=True)
        code = int(self._process.stdout.readline())
        said = [file.read_text() for file in self._said]
        return subprocess.CompletedProcess(list(arguments), code, *said)


@contextmanager
def nursery(folder: Path, *modules: str) -> Iterator[Nursery]:
    """Processes that have imported `modules` begin in there; `folder` is for what they say."""
    folder.mkdir(parents=True, exist_ok=True)
    pipe = folder / "orders"
    os.mkfifo(pipe)
    with Started(["-c", PROGRAM, str(pipe), *modules], folder, environment()) as process, pipe.open("w") as orders:
        yield Nursery(process, orders, folder)
    assert process.code == 0
