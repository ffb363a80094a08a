"""The CUDA kernels of csrc/ on a CPU: built with tests/cuda_shim/, called with tensors, watched at every access.

The machine of the shim is compiled as it is, the kernels with the compiler's instrumentation for races and undefined
behaviour, whose calls the machine answers. A kernel that breaks a rule raises a KernelFault.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from csrc.build import SOURCES, _compiler, library

SHIM = Path(__file__).parent / "cuda_shim"
ENTRIES = {
    "attention_forward.cu": ("zoo_cuda_forward",),
    "attention_backward.cu": ("zoo_cuda_backward_prepare", "zoo_cuda_backward"),
    "coarse.cu": ("zoo_cuda_means", "zoo_cuda_coarse_forward", "zoo_cuda_coarse_backward"),
    "choice.cu": ("zoo_cuda_logits", "zoo_cuda_choose"),
}
NUMBERS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class KernelFault(RuntimeError):
    """A kernel did what a GPU forbids, or an entry point refused its arguments."""


def _structure(name: str, *fields: str) -> type[ctypes.Structure]:
    types = {"shape": Shape, "number": ctypes.c_int, "wide": ctypes.c_int, "root": ctypes.c_double}
    return type(
        name, (ctypes.Structure,), {"_fields_": [(field, types.get(field, ctypes.c_void_p)) for field in fields]}
    )


class Shape(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("heads", "length", "dim", "block_size", "count", "pairs")),
        ("scale", ctypes.c_float),
    ]  # fmt: skip


Forward = _structure(
    "Forward",
    *("shape", "number", "wide", "blocks", "q", "k", "v", "mask", "prior_logit", "prior_value", "out", "lse"),
)
Backward = _structure(
    "Backward",
    *("shape", "number", "wide", "blocks", "q", "k", "v", "out", "d_out", "lse", "d_lse", "mask", "prior_logit"),
    *("prior_value", "shift", "total", "d_prior_logit", "d_prior_value", "d_means", "d_q", "d_k", "d_v"),
)
Coarse = _structure(
    "Coarse",
    *("shape", "number", "wide", "blocks", "q", "k", "v", "mask", "means", "logs", "prior_logit", "prior_value"),
    *("d_prior_logit", "d_prior_value", "d_means"),
)
Logits = _structure("Logits", "shape", "number", "q", "k", "mask", "root", "means", "logits")


class Choice(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("heads", "count", "first_blocks", "diagonal_blocks", "most", "room")),
        *((name, ctypes.c_void_p) for name in ("logits", "real", "budget", "pairs")),
        ("fill", ctypes.c_int),
    ]


@functools.cache
def _compiler_is_clang() -> bool:
    return "clang" in subprocess.run([*_compiler(), "--version"], capture_output=True, text=True).stdout


def watched() -> tuple[str, ...]:
    """Flags by which kernels tell the machine what they do. Passed on to the compiler proper: its driver would link a
    runtime of its own."""
    wanted = ["thread", "alignment", "signed-integer-overflow", "integer-divide-by-zero"]
    wanted += ["array-bounds", "shift-base", "shift-exponent"] if _compiler_is_clang() else ["bounds", "shift"]
    return ("-Wp," + ",".join(f"-fsanitize={name}" for name in wanted),)


@functools.cache
def _digest() -> str:
    """Of all that the kernels include: csrc/build.py knows the headers beside a source alone."""
    files = [*sorted(SOURCES.glob("*.cu*")), *sorted(SOURCES.glob("*.hpp")), *sorted(SHIM.glob("*"))]
    return hashlib.sha256(b"\0".join(path.read_bytes() for path in files if path.is_file())).hexdigest()[:16]


@functools.cache
def machine() -> ctypes.CDLL:
    """The shim's machine, which all kernels share."""
    loaded = ctypes.CDLL(str(_machine()))
    loaded.cuda_shim_error.restype = ctypes.c_char_p
    return loaded


def _machine() -> Path:
    return library("cuda_shim", (SHIM / "machine.cpp",), ("-O2", f"-I{SHIM}", f'-DDIGEST="{_digest()}"'))


@functools.cache
def kernels(name: str) -> ctypes.CDLL:
    """The compiled kernels of csrc/<name>, or of tests/cuda_shim/<name>."""
    flags = (
        *("-O1", f"-I{SHIM}", f"-I{SOURCES}", f"-DKERNELS=<{name}>", f'-DDIGEST="{_digest()}"', "-Wno-unknown-pragmas"),
        # A stack that is too small ends at a page that must not be touched, and nothing may step over it.
        "-fstack-clash-protection",
        *watched(),
        f"-Wl,--no-as-needed,{_machine()}",
    )
    machine()
    return ctypes.CDLL(str(library(f"cuda_{Path(name).stem}", (SHIM / "kernels.cpp",), flags)))


def check(error: int) -> None:
    """KernelFault with the machine's account of an error."""
    if error:
        raise KernelFault(f"error {error}: {machine().cuda_shim_error().decode()}")


@contextmanager
def arrays(written: Sequence[str], **tensors: Tensor | None) -> Iterator[None]:
    """Within this context kernels may touch these tensors and nothing else, and write to those that are named."""
    for name, x in tensors.items():
        if x is not None and x.numel():
            assert x.is_contiguous(), name
            size = ctypes.c_int64(x.numel() * x.element_size())
            each, at = ctypes.c_int64(x.element_size()), ctypes.c_void_p(x.data_ptr())
            machine().cuda_shim_array(name.encode(), at, size, each, int(name in written))
    try:
        yield
    finally:
        machine().cuda_shim_forget_arrays()


def seed(number: int) -> None:
    """The order of blocks and threads from now on."""
    machine().cuda_shim_seed(ctypes.c_uint64(number))


def _call(
    entry: str,
    arguments: ctypes.Structure,
    written: Sequence[str],
    tensors: Mapping[str, Tensor | None],
    *rest: ctypes.c_void_p,
    watch: bool = True,
) -> None:
    source = next(name for name, entries in ENTRIES.items() if entry in entries)
    for name, x in tensors.items():
        if hasattr(arguments, name):
            setattr(arguments, name, None if x is None else x.data_ptr())
    function = getattr(kernels(source), entry)
    with arrays(written, **tensors if watch else {}):
        check(function(ctypes.byref(arguments), *rest, None))


def _shape(q: Tensor, block_size: int, blocks: Tensor | None, scale: float | None = None) -> Shape:
    heads, length, dim = q.shape
    pairs = 0 if blocks is None else blocks.shape[1]
    return Shape(heads, length, dim, block_size, -(-length // block_size), pairs, scale or 1 / math.sqrt(dim))


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of bytes 255: NaN, or -1."""
    x = torch.empty(shape, dtype=dtype)
    x.view(torch.uint8).fill_(255)
    return x


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    blocks: Tensor,
    block_size: int,
    mask: Tensor | None = None,
    prior_logit: Tensor | None = None,
    prior_value: Tensor | None = None,
    *,
    watch: bool = True,
) -> tuple[Tensor, Tensor]:
    """out and lse of zoo::block_sparse_attention; the priors are float32."""
    shape = _shape(q, block_size, blocks)
    out, lse = poisoned(*q.shape, dtype=q.dtype), poisoned(*q.shape[:2])
    tensors = {
        **{"q": q, "k": k, "v": v, "blocks": blocks, "mask": mask},
        **{"prior_logit": prior_logit, "prior_value": prior_value},
        **{"out": out, "lse": lse},
    }
    given = Forward(shape=shape, number=NUMBERS[q.dtype], wide=blocks.dtype == torch.int64)
    _call("zoo_cuda_forward", given, ("out", "lse"), tensors, watch=watch)
    return out, lse


class Backwards:
    """The two phases of the backward of `forward`, which share memory."""

    def __init__(self, d_out: Tensor, d_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
                 blocks: Tensor, block_size: int, mask: Tensor | None = None, prior_logit: Tensor | None = None,
                 prior_value: Tensor | None = None, *, watch: bool = True) -> None:  # fmt: skip
        self.given = Backward(
            shape=_shape(q, block_size, blocks), number=NUMBERS[q.dtype], wide=blocks.dtype == torch.int64
        )
        self.watch = watch
        self.tensors: dict[str, Tensor | None] = {
            **{"blocks": blocks, "q": q, "k": k, "v": v, "out": out, "d_out": d_out, "lse": lse, "d_lse": d_lse},
            **{"mask": mask, "prior_logit": prior_logit, "prior_value": prior_value},
            **{name: poisoned(*lse.shape) for name in ("shift", "total")},
            **{f"d_{name}": poisoned(*q.shape, dtype=q.dtype) for name in ("q", "k", "v")},
        }
        for name, prior in (("d_prior_logit", prior_logit), ("d_prior_value", prior_value)):
            self.tensors[name] = None if prior is None else poisoned(*prior.shape)

    def prepare(self) -> tuple[Any, Any]:
        """The gradients of prior_logit and prior_value, None without priors."""
        written = "shift", "total", "d_prior_logit", "d_prior_value"
        _call("zoo_cuda_backward_prepare", self.given, written, self.tensors, watch=self.watch)
        return self.tensors["d_prior_logit"], self.tensors["d_prior_value"]

    def finish(self, d_means: Tensor | None = None) -> list[Any]:
        """The gradients of q, k and v."""
        names = "d_q", "d_k", "d_v"
        self.tensors["d_means"] = d_means
        _call("zoo_cuda_backward", self.given, names, self.tensors, watch=self.watch)
        return [self.tensors[name] for name in names]


class Coarsely:
    """MRA-2's coarse part, whose entry points share memory."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, blocks: Tensor, block_size: int, mask: Tensor | None) -> None:
        shape = _shape(q, block_size, blocks)
        self.given = Coarse(shape=shape, number=NUMBERS[q.dtype], wide=blocks.dtype == torch.int64)
        heads, count, dim = q.shape[0], shape.count, q.shape[2]
        self.tensors: dict[str, Tensor | None] = {
            **{"q": q, "k": k, "v": v, "blocks": blocks, "mask": mask},
            **{"means": poisoned(3, heads, count, dim), "logs": poisoned(heads, count)},
            **{"prior_logit": poisoned(heads, count), "prior_value": poisoned(heads, count, dim)},
            **{"d_means": poisoned(3, heads, count, dim)},
            **{"d_prior_logit": None, "d_prior_value": None},
        }

    def _run(self, entry: str, *written: str) -> tuple[Any, ...]:
        _call(entry, self.given, written, self.tensors)
        return tuple(self.tensors[name] for name in written)

    def means(self) -> tuple[Any, ...]:
        """(3, G, K, D) and the base-2 logarithms of the real tokens (G, K)."""
        return self._run("zoo_cuda_means", "means", "logs")

    def forward(self) -> tuple[Any, ...]:
        """prior_logit and prior_value, after `means`."""
        return self._run("zoo_cuda_coarse_forward", "prior_logit", "prior_value")

    def backward(self, d_prior_logit: Tensor, d_prior_value: Tensor) -> Any:
        """d_means, after `forward`."""
        self.tensors |= {"d_prior_logit": d_prior_logit, "d_prior_value": d_prior_value}
        return self._run("zoo_cuda_coarse_backward", "d_means")[0]


def logits(q: Tensor, k: Tensor, block_size: int, mask: Tensor | None) -> Tensor:
    """zoo::block_logits."""
    shape = _shape(q, block_size, None)
    heads, count = q.shape[0], shape.count
    given = Logits(shape=shape, number=NUMBERS[q.dtype], root=math.sqrt(q.shape[2]))
    result = poisoned(heads, count, count)
    tensors = {
        **{"q": q, "k": k, "mask": mask, "logits": result},
        "means": poisoned(2, heads, count, q.shape[2], dtype=torch.float64),
    }
    _call("zoo_cuda_logits", given, ("means", "logits"), tensors)
    return result


def choose(
    logits: Tensor, real: Tensor, budget: Tensor, most: int, first_blocks: int, diagonal_blocks: int, fill: bool
) -> Tensor:
    """zoo::choose_blocks."""
    heads, count, _ = logits.shape
    room = most + count if fill else most
    pairs, lost = poisoned(heads, room, 2, dtype=torch.int64), poisoned(heads, count, count, dtype=torch.int32)
    given = Choice(heads, count, first_blocks, diagonal_blocks, most, room, fill=int(fill))
    tensors = {"logits": logits, "real": real, "budget": budget, "pairs": pairs, "lost": lost}
    _call("zoo_cuda_choose", given, ("pairs", "lost"), tensors, ctypes.c_void_p(lost.data_ptr()))
    return pairs
