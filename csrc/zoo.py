"""`python -m csrc.zoo`: build the library of the compiled attention operators ahead of its first use."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from .build import SOURCES, BuildError, library

# The kernels, which know nothing of torch, and what binds them to it.
KERNEL_FILES = ("block_sparse_avx512", "block_sparse_avx2", "block_sparse_portable", "block_sparse_cpu", "selection")
FILES = (*KERNEL_FILES, "binding")


def zoo_library(torch: Path, version: str) -> Path:
    """The library for the torch of this folder and version, built if there is none; BuildError with one line."""
    flags = (
        # Of torch only its stable ABI, as it was in 2.10.
        "-DTORCH_TARGET_VERSION=0x020a000000000000ULL",
        f'-DZOO_TORCH="{version}"',
        f"-I{torch / 'include'}",
        f"-L{torch / 'lib'}",
        "-Wl,-rpath," + str(torch / "lib"),
        "-Wl,--no-as-needed",
        "-ltorch_cpu",
        "-Wno-psabi",
    )
    return library("zoo", tuple(SOURCES / f"{name}.cpp" for name in FILES), flags)


def main() -> int:
    """The command; returns the exit code."""
    import importlib.metadata
    import importlib.util

    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        print("csrc.zoo: torch is not installed", file=sys.stderr)
        return 1
    start = time.perf_counter()
    try:
        path = zoo_library(Path(spec.origin).parent, importlib.metadata.version("torch"))
    except BuildError as error:
        print(f"csrc.zoo: {error}", file=sys.stderr)
        return 1
    print(f"ready: {path} ({time.perf_counter() - start:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
