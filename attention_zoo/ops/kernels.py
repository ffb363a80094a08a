"""Which kernel runs an operator that has compiled ones: the setting, and the libraries behind it.

There are two libraries, one for CPUs and one for NVIDIA's GPUs. Each is built when an operator first wants it on such a
device, and probed there: every operator that it serves is compared with its reference. Where it cannot be built or does
not agree, the reference runs, and one line on stderr says why.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

WORDS = ("auto", "reference", "cpu", "cuda")
# What the compiled kernels take; sums are float32 everywhere, and so is everything on a CPU.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What they take on a GPU: tokens per block, and dimensions of a head, up to which fewer are filled up.
CUDA_BLOCK_SIZES = (16, 32, 64)
CUDA_DIMS = (16, 32, 64, 128)
# The compute capability from which on there is cp.async, and bfloat16 in the tensor cores.
OLDEST = (8, 0)
CPU = torch.device("cpu")


class KernelError(RuntimeError):
    """The compiled kernel was asked for and cannot run; one line says why."""


@dataclass
class _Library:
    """A library and what is known of it: whether it was tried, which thread is trying it, and why it does not run."""

    where: str
    load: Callable[[torch.device], None]
    tried: bool = False
    trying: int | None = None
    why_not: str | None = None


# One setting for the process and not for a thread: torch runs backward passes in threads of its own.
_word = "auto"
_lock = threading.RLock()
_probes: list[Callable[[torch.device], None]] = []
_told: set[str] = set()


@contextmanager
def use(word: str) -> Iterator[None]:
    """Within this context the whole process runs the kernels that `word` allows.

    auto: the compiled one where it serves; cpu, cuda: the one for that device, and a KernelError where it cannot run;
    reference: never a compiled one.
    """
    global _word
    if word not in WORDS:
        raise ValueError(f"kernel={word!r} is not one of {', '.join(WORDS)}")
    before, _word = _word, word
    try:
        yield
    finally:
        _word = before


def probe(check: Callable[[torch.device], None]) -> Callable[[torch.device], None]:
    """Have `check` called with a device once the library for it is loaded.

    It raises ValueError where an operator that is compiled for the device is wrong.
    """
    _probes.append(check)
    return check


def compiled(*tensors: Tensor, block_size: int | None = None, dim: int | None = None) -> bool:
    """Whether the compiled kernel runs an operator on these tensors, with so many tokens a block, dimensions a head."""
    return _serves(tensors[0].device, {x.dtype for x in tensors}, block_size, dim)


def name(device: torch.device, block_size: int | None = None, dim: int | None = None) -> str:
    """The kernel that runs on `device` in float32 and below: "cpu", "cuda" or "reference"."""
    return device.type if _serves(device, set(), block_size, dim) else "reference"


def available(device: torch.device = CPU) -> bool:
    """Whether the library for `device` is there and right; builds, loads and probes it at the first call."""
    library = _LIBRARIES[device.type]
    if not library.tried:
        with _lock:
            if not library.tried:
                library.trying = threading.get_ident()
                try:
                    library.why_not = _try(library, device)
                finally:
                    library.trying = None
                library.tried = True
    if library.why_not is not None:
        _refuse(library.why_not)
    return library.why_not is None


def ready(device: torch.device) -> bool:
    """Whether the library for `device` has been loaded, is right, and may run: never builds, prints or raises."""
    library = _LIBRARIES.get(device.type)
    return library is not None and library.tried and library.why_not is None and _word in ("auto", device.type)


def prepare(device: torch.device) -> None:
    """Load the library for CPUs where `device` is one and the setting allows it, for operators that ask `ready`.

    A KernelError where the setting asks for it and it cannot run.
    """
    if device.type == "cpu" and _word in ("auto", "cpu"):
        available(device)


def _serves(device: torch.device, dtypes: set[torch.dtype], block_size: int | None, dim: int | None) -> bool:
    library = _LIBRARIES.get(device.type)
    # The references that probes call must not ask for the kernel that is being probed.
    if _word == "reference" or (library is not None and library.trying == threading.get_ident()):
        return False
    if _word in _LIBRARIES and _word != device.type:
        raise KernelError(f"kernel={_word} runs on a {_LIBRARIES[_word].where}, not on {device}")
    if library is None:
        return False
    if odd := _odd(device, dtypes, block_size, dim):
        if _word == device.type:
            raise KernelError(f"kernel={_word} computes {odd}")
        # On a CPU float64 is how the kernels are judged.
        if device.type != "cpu":
            _refuse(f"the compiled one computes {odd}")
        return False
    if not available(device):
        return False
    if device.type == "cuda" and _capability(device) < OLDEST:
        _refuse(f"the compiled one needs a GPU of sm_80 or newer, not {device} of {_sm(_capability(device))}")
        return False
    return True


def _odd(device: torch.device, dtypes: set[torch.dtype], block_size: int | None, dim: int | None) -> str:
    """What the library for `device` takes instead of this, and empty where it takes it."""
    if odd := sorted(map(str, dtypes.difference(DTYPES))):
        return f"float32, bfloat16 and float16, not {odd[0]}"
    if device.type == "cpu":
        return ""
    if len(dtypes) > 1:
        return f"q, k and v of one dtype, not {' and '.join(sorted(map(str, dtypes)))}"
    if block_size is not None and block_size not in CUDA_BLOCK_SIZES:
        return f"blocks of {', '.join(map(str, CUDA_BLOCK_SIZES))} tokens, not {block_size}"
    if dim is not None and dim > CUDA_DIMS[-1]:
        return f"heads of at most {CUDA_DIMS[-1]} dimensions, not {dim}"
    return ""


def _refuse(why: str) -> None:
    """Say once, in one line, why the reference runs; an error where a compiled kernel was asked for."""
    if _word in _LIBRARIES:
        raise KernelError(f"kernel={_word}: {why}")
    with _lock:
        if why not in _told:
            _told.add(why)
            print(f"kernel: the PyTorch reference runs, {why}", file=sys.stderr, flush=True)


def _try(library: _Library, device: torch.device) -> str | None:
    """None, or why there is no compiled kernel for `device`."""
    try:
        library.load(device)
        with torch.no_grad():
            for check in _probes:
                check(device)
    # BuildError of csrc.build is a ValueError.
    except (OSError, ValueError, RuntimeError) as error:
        return (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
    return None


def _load_for_cpu(device: torch.device) -> None:
    from csrc.zoo import zoo_library

    torch.ops.load_library(str(zoo_library(Path(torch.__file__).parent, torch.__version__)))


def _load_for_cuda(device: torch.device) -> None:
    from csrc.zoo import zoo_cuda_library

    if torch.version.cuda is None or not torch.cuda.is_available():
        raise ValueError("this torch finds no CUDA device")
    if _capability(device) < OLDEST:
        raise ValueError(f"the compiled one needs a GPU of sm_80 or newer, not {_sm(_capability(device))}")
    here = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    architectures = {10 * major + minor for major, minor in here if (major, minor) >= OLDEST}
    path = zoo_cuda_library(Path(torch.__file__).parent, torch.__version__, architectures)
    torch.ops.load_library(str(path))


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _sm(capability: tuple[int, int]) -> str:
    return f"sm_{capability[0]}{capability[1]}"


_LIBRARIES = {"cpu": _Library("CPU", _load_for_cpu), "cuda": _Library("GPU", _load_for_cuda)}


def trials(device: torch.device) -> list[tuple[torch.dtype, float]]:
    """The dtypes that a probe on `device` tries, and how far results of numbers around 1 may be off."""
    dtypes = (torch.float32,) if device.type == "cpu" else DTYPES
    return [(dtype, max(1e-4, 16 * torch.finfo(dtype).eps)) for dtype in dtypes]


def agree(operator: str, found: Sequence[Tensor], expected: Sequence[Tensor], within: float = 1e-4) -> None:
    """ValueError unless all values are within `within` of what is expected of a probe."""
    pairs = [(x.to(y.dtype), y) for x, y in zip(found, expected, strict=True)]
    errors = [torch.where(x == y, 0.0, x - y).abs().max().item() for x, y in pairs]
    if not all(error < within for error in errors):
        raise ValueError(f"the compiled {operator} is off by {max(errors):.2g} from its reference")


# What the library for CPUs takes: float32, dense, and a head dimension that is a multiple of 16.
def wide(x: Tensor) -> Tensor:
    """(..., D) -> float32 (..., D rounded up to a multiple of 16)."""
    x = x.float()
    missing = -x.shape[-1] % 16
    return (F.pad(x, (0, missing)) if missing else x).contiguous()


def narrow(x: Tensor, like: Tensor) -> Tensor:
    """What `wide` or `filled` made of `like`, back in its shape and dtype."""
    return x[..., : like.shape[-1]].to(like.dtype).contiguous()


def pairs(blocks: Tensor) -> Tensor:
    """Pairs of blocks in one of the two integer types that the library reads."""
    return (blocks if blocks.dtype in (torch.int32, torch.int64) else blocks.long()).contiguous()


def dense(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous()


# What the library for GPUs takes: one of four head dimensions, dense, and addresses that are multiples of 16 bytes.
def filled(x: Tensor) -> Tensor:
    """(..., D) -> (..., the next of CUDA_DIMS), in its dtype."""
    missing = next(dim for dim in CUDA_DIMS if dim >= x.shape[-1]) - x.shape[-1]
    return aligned(F.pad(x, (0, missing)) if missing else x)


def aligned(x: Tensor) -> Tensor:
    x = x.contiguous()
    return x.clone() if x.data_ptr() % 16 else x


def stream(x: Tensor) -> int:
    """The handle of the stream that is current on a tensor's device."""
    return torch.cuda.current_stream(x.device).cuda_stream
