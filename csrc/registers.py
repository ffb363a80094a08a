"""`python -m csrc.registers`: compile every CUDA source, and show what each kernel takes of a GPU's multiprocessor.

Fails where a kernel has more than 128 registers a thread, or numbers of a thread that found no register: what is
spilled, and arrays with an index that is not known, live in memory that is far slower. No GPU is needed.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from .build import CUDA_FLAGS, SOURCES, BuildError, NoCompiler, nvcc
from .zoo import AHEAD

MOST_REGISTERS = 128

ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)' for '(?P<architecture>[^']+)'")
FUNCTION = re.compile(r"Function properties for (?P<name>\S+)")
STACK = re.compile(r"(?P<stack>\d+) bytes stack frame, (?P<stored>\d+) bytes spill stores, (?P<loaded>\d+) bytes spill")
USED = re.compile(r"Used (?P<registers>\d+) registers")
SHARED = re.compile(r"(?P<shared>\d+)(?:\+\d+)? bytes smem")


class Kernel(NamedTuple):
    """A kernel, or a function that kernels call. Bytes, but for the registers of a thread; `shared` is a block's,
    without what a launch adds."""

    name: str
    architecture: str
    registers: int
    shared: int
    stack: int
    spilled: int

    def faults(self) -> list[str]:
        """What is wrong with it, and nothing where nothing is."""
        name = f"{short(self.name)} for {self.architecture}"
        faults = []
        if self.registers > MOST_REGISTERS:
            faults.append(f"{name} takes {self.registers} registers, more than {MOST_REGISTERS}")
        if self.spilled:
            faults.append(f"{name} spills {self.spilled} bytes")
        if self.stack:
            faults.append(f"{name} has a stack frame of {self.stack} bytes")
        return faults


def parsed(said: str) -> list[Kernel]:
    """The kernels and functions of what `nvcc -Xptxas -v` says; names as the linker knows them."""
    found: list[Kernel] = []
    architecture = ""
    for line in said.splitlines():
        if entry := ENTRY.search(line):
            architecture = entry["architecture"]
        elif function := FUNCTION.search(line):
            found.append(Kernel(function["name"], architecture, 0, 0, 0, 0))
        elif found and (frame := STACK.search(line)):
            spilled = int(frame["stored"]) + int(frame["loaded"])
            found[-1] = found[-1]._replace(stack=int(frame["stack"]), spilled=spilled)
        elif found and (used := USED.search(line)):
            shared = SHARED.search(line)
            found[-1] = found[-1]._replace(
                registers=int(used["registers"]), shared=int(shared["shared"]) if shared else 0
            )
    return found


def readable(names: Iterable[str]) -> dict[str, str]:
    """Names of the linker and what they are called in the source, where there is a program that knows."""
    names = list(names)
    program = shutil.which("c++filt") or shutil.which("cu++filt")
    if program is None or not names:
        return {name: name for name in names}
    done = subprocess.run([program], input="\n".join(names), capture_output=True, text=True, check=True)
    return dict(zip(names, done.stdout.splitlines(), strict=True))


def short(name: str) -> str:
    """A function's name in the source without its result, its namespaces and its arguments; template arguments stay."""
    name = re.sub(r"\(anonymous namespace\)::|\((?:int|bool|long|unsigned int)\)(?=[-0-9])", "", name)
    depth = 0
    for i, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            name = name[:i]
            break
    return name.removeprefix("void ")


def table(kernels: Sequence[Kernel]) -> str:
    """The kernels as text: a line for each, with a number for each architecture where they differ."""
    architectures = sorted({kernel.architecture for kernel in kernels})
    by_name: dict[str, list[Kernel]] = {}
    for kernel in sorted(kernels, key=lambda kernel: kernel.architecture):
        by_name.setdefault(short(kernel.name), []).append(kernel)

    def cell(values: Sequence[int]) -> str:
        return "/".join(map(str, values if len(set(values)) > 1 else values[:1]))

    rows: list[tuple[str, ...]] = [("/".join(architectures), "registers", "shared", "stack", "spilled")]
    rows += [(name, *(cell(column) for column in list(zip(*same, strict=True))[2:])) for name, same in by_name.items()]
    wide = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(f"{x:{'>' if i else '<'}{wide[i]}}" for i, x in enumerate(row)) for row in rows)


def compiled(source: Path, compiler: Sequence[str], folder: Path) -> list[Kernel]:
    """The kernels of a source for the architectures that are built ahead; BuildError where it does not compile."""
    architectures = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in AHEAD]
    target = folder / f"{source.stem}.o"
    command = [*compiler, *CUDA_FLAGS, *architectures, "-Xptxas=-v", "-c", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if done.returncode != 0:
        lines = said.splitlines()
        complaint = next((line for line in lines if "error" in line or "fatal" in line), lines[-1] if lines else "?")
        raise BuildError(f"{source.name} does not compile: {complaint.strip()}")
    found = parsed(said)
    names = readable({kernel.name for kernel in found})
    return sorted((kernel._replace(name=names[kernel.name]) for kernel in found), key=_natural)


def _natural(kernel: Kernel) -> list[str | int]:
    """By name, numbers by value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", kernel.name)]


def main(folder: Path = SOURCES) -> int:
    """The command, over the CUDA sources of a folder; returns the exit code: 1 where there is a fault."""
    sources = sorted(folder.glob("*.cu"))
    try:
        compiler = nvcc()
        with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda source: compiled(source, compiler, Path(place)), sources))
    except NoCompiler as error:
        print(f"CUDA kernels not compiled, {error}")
        return 0
    except BuildError as error:
        print(f"csrc.registers: {error}", file=sys.stderr)
        return 1
    for source, kernels in zip(sources, found, strict=True):
        print(f"{source.name}\n{table(kernels)}\n", flush=True)
    all_of_them = [kernel for kernels in found for kernel in kernels]
    faults = [fault for kernel in all_of_them for fault in kernel.faults()]
    # A parser that understands nothing would find no fault.
    if silent := [source.name for source, kernels in zip(sources, found, strict=True) if not kernels]:
        faults.append(f"nvcc told of no kernel in {', '.join(silent)}")
    for fault in faults:
        print(f"csrc.registers: {fault}", file=sys.stderr)
    most = max((kernel.registers for kernel in all_of_them), default=0)
    print("shared: without what a launch gives, which docs/kernel.md counts")
    print(f"{len(all_of_them)} kernels, at most {most} registers, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
