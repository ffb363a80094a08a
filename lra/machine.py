"""What a run stands on: device, dtype, memory, versions, commit."""

from __future__ import annotations

import functools
import hashlib
import platform
import resource
import sys
from pathlib import Path

import torch

from lra.commit import git_commit as git_commit
from lra.words import WordError


def pick_device(name: str, local: int = 0, neighbours: int = 1) -> torch.device:
    """`auto` is CUDA where there is one; asking for a device that is not there is a WordError.

    Of the `neighbours` processes of a run on this machine, the one with the number `local` has the GPU of that number.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise WordError("device=cuda: this torch finds no CUDA device; device=auto or device=cpu runs here")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    gpus = torch.cuda.device_count()
    if neighbours > gpus:
        rule = "each process needs one of its own; device=cpu runs without"
        raise WordError(f"device={name}: {neighbours} processes and {gpus} CUDA devices on this machine, {rule}")
    return torch.device("cuda", local) if neighbours > 1 else torch.device("cuda")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where CUDA computes in it, float32 elsewhere (on CPUs bfloat16 is slower)."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
    if name == "float16" and device.type == "cpu":
        raise WordError("train.dtype=float16 needs device=cuda; float32 and bfloat16 run on a CPU")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def device_name(device: torch.device) -> str:
    """The name that a table shows."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    return f"{model}, {torch.get_num_threads()} threads"


def peak_memory_mb(device: torch.device) -> float:
    """Peak of the memory allocated on a GPU, or of the whole process on a CPU, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def is_out_of_memory(error: RuntimeError) -> bool:
    """True for CUDA's exception and for the CPU allocator's."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def versions() -> dict[str, str]:
    """Versions that can move a result."""
    # The benchmarks of a GPU read the rest of this file where torch alone is installed.
    import numpy as np

    return {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__}


@functools.cache
def kernel_sha256() -> str:
    """SHA-256 of the names and contents of what the compiled kernels are made of."""
    folder = Path(__file__).resolve().parents[1] / "csrc"
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".cpp", ".hpp", ".cu", ".cuh"):
            content = file.read_bytes()
            digest.update(f"{file.name} {len(content)}\0".encode() + content)
    return digest.hexdigest()
