"""`library(name)`: the shared library of csrc/<name>.cpp, compiled when it is first asked for.

A build lives in build/<name>-<key>/, where the key is made of the sources, the flags and the compiler: an old build is
never taken for a new one. Of two processes that ask at once, one builds and the other waits.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

SOURCES = Path(__file__).resolve().parent
BUILDS = SOURCES.parent / "build"
COMPILERS = ("c++", "g++", "clang++")
# Without contraction a * b + c is rounded twice everywhere, and the same bytes come out of every compiler and machine.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC")

RULES = """\
builddir = .
rule compile
  command = {compiler} {flags} -c -o $out $in
  description = compile $in
rule link
  command = {compiler} {flags} -shared -o $out $in
  description = link $out
"""


class BuildError(ValueError):
    """A library cannot be built; one line says why."""


@functools.cache
def library(name: str, sources: Sequence[Path] = (), flags: Sequence[str] = ()) -> Path:
    """The path of a shared library, built if there is none of these sources, flags and compiler.

    Without `sources` (a tuple) it is made of csrc/<name>.cpp. Headers (*.hpp) beside a source count as part of it.
    Raises BuildError with one line: no compiler, no ninja, or the compiler's first complaint.
    """
    files = [path.resolve() for path in sources or (SOURCES / f"{name}.cpp",)]
    compiler = _compiler()
    flags = (*FLAGS, *flags)
    folder = BUILDS / f"{name}-{_key(files, flags, compiler)}"
    built = folder / f"lib{name}.so"
    if built.exists():
        return built
    ninja = _ninja()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            _build(folder, built, ninja, compiler, flags, files)
    return built


def _compiler() -> tuple[str, ...]:
    """The command of the C++ compiler: $CXX, or the first that is installed."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [[name] for name in COMPILERS]:
        if path := shutil.which(command[0]):
            return (path, *command[1:])
    if chosen:
        raise BuildError(f"no C++ compiler: $CXX is {chosen[0]!r}, which is not a program on the PATH")
    raise BuildError(
        f"no C++ compiler: neither {', '.join(COMPILERS)} is on the PATH; install g++ or clang, or name one in $CXX"
    )


def _ninja() -> str:
    """The ninja of this environment, or of the PATH."""
    places = [str(Path(sys.executable).parent), sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    if path := shutil.which("ninja", path=os.pathsep.join(places)):
        return path
    raise BuildError("no ninja beside this Python or on the PATH; install it: pip install ninja")


def _key(files: Sequence[Path], flags: Sequence[str], compiler: Sequence[str]) -> str:
    """What a build is made of, as 16 hexadecimal digits."""
    parts = [*flags, "\0", *compiler]
    for question in ("--version", "-dumpmachine"):
        done = subprocess.run([*compiler, question], capture_output=True, text=True)
        if done.returncode != 0:
            raise BuildError(f"{compiler[0]} is no C++ compiler: it fails at {question}")
        parts.append(done.stdout)
    headers = {header for file in files for header in file.parent.glob("*.hpp")}
    for file in [*files, *sorted(headers)]:
        parts += [file.name, file.read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(f"{len(part)} {part}" for part in parts).encode()).hexdigest()[:16]


def _build(
    folder: Path, built: Path, ninja: str, compiler: Sequence[str], flags: Sequence[str], files: Sequence[Path]
) -> None:
    """Compile and link with ninja, then put the library in place in one step."""
    # What a killed build has left would look finished to ninja.
    for left in folder.iterdir():
        if left.name != "lock":
            left.unlink()
    part = f"{built.name}.part"
    objects = [f"{i}.o" for i in range(len(files))]
    rules = RULES.format(compiler=_quoted(shlex.join(compiler)), flags=_quoted(shlex.join(flags)))
    edges = [f"build {target}: compile {_escaped(file)}\n" for target, file in zip(objects, files, strict=True)]
    edges.append(f"build {part}: link {' '.join(objects)}\n")
    (folder / "build.ninja").write_text(rules + "".join(edges), encoding="utf-8")
    log = folder / "log"
    with open(log, "w", encoding="utf-8") as output:
        done = subprocess.run([ninja, "-C", str(folder)], stdout=output, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        complaint = next((line for line in lines if "error" in line), lines[-1] if lines else "ninja said nothing")
        raise BuildError(f"{built.stem} does not compile: {complaint.strip()} (all of it: {log})")
    os.replace(folder / part, built)


def _quoted(command: str) -> str:
    """A command as ninja reads it."""
    return command.replace("$", "$$")


def _escaped(path: Path) -> str:
    """A path as ninja reads it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
