"""`python -m csrc.zoo`: build the libraries of the compiled attention operators ahead of their first use.

One for CPUs; and one for GPUs where nvcc is found, for which neither a GPU nor a torch that knows of GPUs is needed.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import NoReturn

from .build import SOURCES, BuildError, NoCompiler, existing, library

# The kernels, which know nothing of torch, and what binds them to it.
KERNEL_FILES = (
    "block_sparse_avx512", "block_sparse_avx2", "block_sparse_portable", "block_sparse_cpu", "selection", "padding",
)  # fmt: skip
FILES = (*KERNEL_FILES, "binding")
CUDA_KERNEL_FILES = ("attention_backward", "attention_forward", "coarse", "choice")
# The GPUs that a build ahead is for. Code for sm_80 runs on all of 8.x, and newer GPUs take what is in PTX.
AHEAD = (80, 90)
NOTICE = "kernel: compiling the attention for this {}, once (about {}) ..."


def zoo_library(torch: Path, version: str) -> Path:
    """The library for the torch of this folder and version, built if there is none; BuildError with one line."""
    files = tuple(SOURCES / f"{name}.cpp" for name in FILES)
    return library("zoo", files, binding_flags(torch, version), notice=NOTICE.format("CPU", "20 seconds"))


def zoo_cuda_library(torch: Path, version: str, architectures: Collection[int]) -> Path:
    """The same for GPUs of these architectures (80 is sm_80): the one that was built ahead, or one for them alone."""
    files = tuple(SOURCES / f"{name}.cu" for name in CUDA_KERNEL_FILES) + (SOURCES / "binding_cuda.cpp",)
    flags = binding_flags(torch, version)
    ahead = existing("zoo_cuda", files, flags, architecture_flags(AHEAD))
    made_for = architecture_flags(architectures)
    return ahead or library("zoo_cuda", files, flags, made_for, notice=NOTICE.format("GPU", "a minute"))


def architecture_flags(architectures: Collection[int]) -> tuple[str, ...]:
    """What tells nvcc to compile for each of them, and to add the PTX of the newest for those to come."""
    *others, newest = sorted(architectures)
    return (
        *(f"-gencode=arch=compute_{number},code=sm_{number}" for number in others),
        f"-gencode=arch=compute_{newest},code=[sm_{newest},compute_{newest}]",
    )


def binding_flags(torch: Path, version: str) -> tuple[str, ...]:
    return (
        # Of torch only its stable ABI, as it was in 2.10.
        "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",
        f'-DZOO_TORCH="{version}"',
        f"-I{SOURCES}",
        f"-I{torch / 'include'}",
        f"-L{torch / 'lib'}",
        "-Wl,-rpath," + str(torch / "lib"),
        "-Wl,--no-as-needed",
        "-ltorch_cpu",
        "-Wno-psabi",
    )


def main() -> int:
    """The command; returns the exit code: 1 where something does not compile."""
    import importlib.metadata
    import importlib.util

    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        print("csrc.zoo: torch is not installed", file=sys.stderr)
        return 1
    torch, version = Path(spec.origin).parent, importlib.metadata.version("torch")
    makes: dict[str, Callable[[], Path]] = {
        "CPU": lambda: zoo_library(torch, version),
        "CUDA": lambda: zoo_cuda_library(torch, version, AHEAD),
    }
    code = 0
    for kind, make in makes.items():
        start = time.perf_counter()
        try:
            print(f"{kind} kernels ready: {make()} ({time.perf_counter() - start:.1f} s)", flush=True)
        except BuildError as error:
            if kind == "CUDA" and isinstance(error, NoCompiler):
                print(f"{kind} kernels not built, {error}")
            else:
                print(f"csrc.zoo: {kind} kernels: {error}", file=sys.stderr)
                code = 1
    return code


def stop(number: int, frame: FrameType | None) -> NoReturn:
    """End with one line; what is half compiled is compiled anew at its first use."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    print(f"stopped by {signal.Signals(number).name}: nothing half-built is used", file=sys.stderr)
    raise SystemExit(128 + number)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    sys.exit(main())
