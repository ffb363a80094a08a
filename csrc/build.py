"""`library(name)`: the shared library of csrc/<name>.cpp, compiled when it is first asked for.

A build lives in build/<name>-<key>/, where the key is made of the sources, the flags and the compilers: an old build is
never taken for a new one. Of two processes that ask at once, one builds and the other waits. Sources in CUDA (*.cu) are
compiled by nvcc and linked with its runtime as a static library, which leaves torch's own copy alone.
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
from typing import NamedTuple

SOURCES = Path(__file__).resolve().parent
BUILDS = SOURCES.parent / "build"
COMPILERS = ("c++", "g++", "clang++")
# Where NVIDIA's installer puts nvcc, which is often not on the PATH.
CUDA_HOME = Path("/usr/local/cuda")
# Without contraction a * b + c is rounded twice everywhere, and the same bytes come out of every compiler and machine.
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=off", "-fPIC")
CUDA_FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC", f"-I{SOURCES}")
# Names of the static runtime must not meet those of torch's.
CUDA_LIBRARIES = ("-Wl,--exclude-libs,libcudart_static.a", "-lcudart_static", "-lrt", "-lpthread", "-ldl")

RULES = """\
builddir = .
rule compile
  command = {compiler} {flags} -c -o $out $in
  description = compile $in
rule link
  command = {compiler} {flags} -shared -o $out $in {libraries}
  description = link $out
"""
CUDA_RULE = """\
rule compile_cuda
  command = {nvcc} {flags} -c -o $out $in
  description = compile $in
"""


class BuildError(ValueError):
    """A library cannot be built; one line says why."""


class NoCompiler(BuildError):
    """There is no compiler for a language, and none was named."""


class _Recipe(NamedTuple):
    """What a library is made of; nvcc is empty where no source is in CUDA."""

    name: str
    files: tuple[Path, ...]
    compiler: tuple[str, ...]
    flags: tuple[str, ...]
    nvcc: tuple[str, ...]
    cuda_flags: tuple[str, ...]

    def place(self) -> Path:
        """Where the library is, once it is built."""
        return BUILDS / f"{self.name}-{_key(self)}" / f"lib{self.name}.so"


@functools.cache
def library(
    name: str,
    sources: Sequence[Path] = (),
    flags: Sequence[str] = (),
    cuda_flags: Sequence[str] = (),
    notice: str = "",
) -> Path:
    """The path of a shared library, built if there is none of these sources, flags and compilers.

    Without `sources` (a tuple) it is made of csrc/<name>.cpp. Headers (*.hpp, for CUDA also *.cuh) beside a source
    count as part of it; `flags` are for C++ and the linker; `notice` is a line for stderr before a build begins. Raises
    BuildError with one line: no compiler, no ninja, or the compiler's first complaint.
    """
    recipe = _recipe(name, sources, flags, cuda_flags)
    built = recipe.place()
    folder = built.parent
    if built.exists():
        return built
    ninja = _ninja()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            if notice:
                print(notice, file=sys.stderr, flush=True)
            _build(built, ninja, recipe, lock.fileno())
    return built


def existing(
    name: str, sources: Sequence[Path] = (), flags: Sequence[str] = (), cuda_flags: Sequence[str] = ()
) -> Path | None:
    """What `library` returns if it has been built before, and None if not."""
    built = _recipe(name, sources, flags, cuda_flags).place()
    return built if built.exists() else None


def nvcc() -> tuple[str, ...]:
    """The command of the CUDA compiler: $NVCC, that of $CUDA_HOME, of the PATH, or of the usual place."""
    if chosen := shlex.split(os.environ.get("NVCC", "")):
        if path := shutil.which(chosen[0]):
            return (path, *chosen[1:])
        raise BuildError(f"no nvcc: $NVCC is {chosen[0]!r}, which is not a program on the PATH")
    if home := os.environ.get("CUDA_HOME", ""):
        if path := shutil.which("nvcc", path=str(Path(home) / "bin")):
            return (path,)
        raise BuildError(f"no nvcc: $CUDA_HOME is {home!r}, which has no bin/nvcc")
    if path := shutil.which("nvcc") or shutil.which("nvcc", path=str(CUDA_HOME / "bin")):
        return (path,)
    raise NoCompiler(
        f"no nvcc: $NVCC and $CUDA_HOME name none, and there is none on the PATH or in {CUDA_HOME / 'bin'}"
    )


def _recipe(name: str, sources: Sequence[Path], flags: Sequence[str], cuda_flags: Sequence[str]) -> _Recipe:
    files = tuple(path.resolve() for path in sources or (SOURCES / f"{name}.cpp",))
    in_cuda = any(file.suffix == ".cu" for file in files)
    return _Recipe(name, files, _compiler(), (*FLAGS, *flags), nvcc() if in_cuda else (), (*CUDA_FLAGS, *cuda_flags))


def _compiler() -> tuple[str, ...]:
    """The command of the C++ compiler: $CXX, or the first that is installed."""
    chosen = shlex.split(os.environ.get("CXX", ""))
    for command in [chosen] if chosen else [[name] for name in COMPILERS]:
        if path := shutil.which(command[0]):
            return (path, *command[1:])
    if chosen:
        raise BuildError(f"no C++ compiler: $CXX is {chosen[0]!r}, which is not a program on the PATH")
    raise NoCompiler(
        f"no C++ compiler: neither {', '.join(COMPILERS)} is on the PATH; install g++ or clang, or name one in $CXX"
    )


def _ninja() -> str:
    """The ninja of this environment, or of the PATH."""
    places = [str(Path(sys.executable).parent), sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)]
    if path := shutil.which("ninja", path=os.pathsep.join(places)):
        return path
    raise BuildError("no ninja beside this Python or on the PATH; install it: pip install ninja")


def _key(recipe: _Recipe) -> str:
    """What a build is made of, as 16 hexadecimal digits."""
    parts = [*recipe.flags, "\0", *recipe.compiler]
    parts += [_answer(recipe.compiler, question, "C++") for question in ("--version", "-dumpmachine")]
    headers = {header for file in recipe.files for header in file.parent.glob("*.hpp")}
    if recipe.nvcc:
        parts += ["\0", *recipe.cuda_flags, "\0", *recipe.nvcc, _answer(recipe.nvcc, "--version", "CUDA")]
        headers |= {header for file in recipe.files for header in file.parent.glob("*.cuh")}
    for file in [*recipe.files, *sorted(headers)]:
        parts += [file.name, file.read_text(encoding="utf-8")]
    return hashlib.sha256("\0".join(f"{len(part)} {part}" for part in parts).encode()).hexdigest()[:16]


def _answer(compiler: Sequence[str], question: str, language: str) -> str:
    done = subprocess.run([*compiler, question], capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{compiler[0]} is no {language} compiler: it fails at {question}")
    return done.stdout


def _build(built: Path, ninja: str, recipe: _Recipe, lock: int) -> None:
    """Compile and link with ninja, then put the library in place in one step.

    lock: the descriptor of the lock that is held.
    """
    folder = built.parent
    # What a killed build has left would look finished to ninja.
    for left in folder.iterdir():
        if left.name != "lock":
            left.unlink()
    part = f"{built.name}.part"
    objects = [f"{i}.o" for i in range(len(recipe.files))]
    libraries = (*_cuda_folders(recipe.nvcc), *CUDA_LIBRARIES) if recipe.nvcc else ()
    compiler, flags, after = (_quoted(shlex.join(x)) for x in (recipe.compiler, recipe.flags, libraries))
    rules = RULES.format(compiler=compiler, flags=flags, libraries=after)
    if recipe.nvcc:
        rules += CUDA_RULE.format(nvcc=_quoted(shlex.join(recipe.nvcc)), flags=_quoted(shlex.join(recipe.cuda_flags)))
    edges = [
        f"build {target}: {'compile_cuda' if file.suffix == '.cu' else 'compile'} {_escaped(file)}\n"
        for target, file in zip(objects, recipe.files, strict=True)
    ]
    edges.append(f"build {part}: link {' '.join(objects)}\n")
    (folder / "build.ninja").write_text(rules + "".join(edges), encoding="utf-8")
    log = folder / "log"
    with open(log, "w", encoding="utf-8") as output:
        # Compilers that outlive this process keep the lock: no other build begins while they still write.
        done = subprocess.run([ninja, "-C", str(folder)], stdout=output, stderr=subprocess.STDOUT, pass_fds=[lock])
    if done.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        # A disk that is full shows first, and is named last.
        said = [line for line in lines if "No space left" in line]
        said += [line for line in lines if "error" in line or "fatal" in line]
        complaint = next(iter(said), lines[-1] if lines else "ninja said nothing")
        raise BuildError(f"{built.stem} does not compile: {complaint.strip()} (all of it: {log})")
    with open(folder / part, "rb") as library:
        os.fsync(library.fileno())
    os.replace(folder / part, built)


def _cuda_folders(nvcc: Sequence[str]) -> list[str]:
    """Where nvcc would look for its libraries, as flags of the linker."""
    done = subprocess.run([*nvcc, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True)
    said = (line.partition("LIBRARIES=")[2] for line in done.stderr.splitlines() if line.startswith("#$ LIBRARIES="))
    return shlex.split(next(said, ""))


def _quoted(command: str) -> str:
    """A command as ninja reads it."""
    return command.replace("$", "$$")


def _escaped(path: Path) -> str:
    """A path as ninja reads it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")
