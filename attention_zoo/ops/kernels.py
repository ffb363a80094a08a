"""Which kernel runs an operator that has a compiled one: the setting, and the library behind it.

The library is built when an operator first wants it, and probed: every operator that it serves is compared with its
reference. Where it cannot be built or does not agree, the reference runs, and one line on stderr says why.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

WORDS = ("auto", "reference", "cpu")
# What the compiled kernels compute, all of it in float32.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class KernelError(RuntimeError):
    """The compiled kernel was asked for and cannot run; one line says why."""


# One setting for the process and not for a thread: torch runs backward passes in threads of its own.
_word = "auto"
_lock = threading.RLock()
_probes: list[Callable[[], None]] = []
_why_not: str | None = None
_state = "unknown"


@contextmanager
def use(word: str) -> Iterator[None]:
    """Within this context the whole process runs the kernels that `word` allows.

    auto: the compiled one where it serves; cpu: the same, but a KernelError where it cannot run; reference: never.
    """
    global _word
    if word not in WORDS:
        raise ValueError(f"kernel={word!r} is not one of {', '.join(WORDS)}")
    before, _word = _word, word
    try:
        yield
    finally:
        _word = before


def probe(check: Callable[[], None]) -> Callable[[], None]:
    """Have `check` called once the library is loaded: it raises ValueError where a compiled operator is wrong."""
    _probes.append(check)
    return check


def compiled(*tensors: Tensor) -> bool:
    """Whether the compiled kernel runs an operator on these tensors, all of them on a CPU."""
    if _word == "reference":
        return False
    if odd := {x.dtype for x in tensors}.difference(DTYPES):
        if _word == "cpu":
            raise KernelError(f"kernel=cpu computes float32, bfloat16 and float16, not {odd.pop()}")
        return False
    return available()


def name(device: torch.device) -> str:
    """The kernel that runs on `device` in float32 and below: "cpu" or "reference"."""
    if device.type != "cpu":
        if _word == "cpu":
            raise KernelError(f"kernel=cpu runs on a CPU, not on {device}")
        return "reference"
    return "cpu" if _word != "reference" and available() else "reference"


def available() -> bool:
    """Whether the library is there and right; builds, loads and probes it at the first call."""
    global _state, _why_not
    if _state != "known":
        with _lock:
            # The references that probes call must not ask for the kernel that is being probed.
            if _state == "probing":
                return False
            if _state == "unknown":
                _state = "probing"
                _why_not = _load()
                _state = "known"
                if _why_not is not None and _word != "cpu":
                    print(f"kernel: the PyTorch reference runs, {_why_not}", file=sys.stderr, flush=True)
    if _why_not is not None and _word == "cpu":
        raise KernelError(f"kernel=cpu: {_why_not}")
    return _why_not is None


def _load() -> str | None:
    """None, or why there is no compiled kernel."""
    from csrc.build import BuildError
    from csrc.zoo import zoo_library

    try:
        torch.ops.load_library(str(zoo_library(Path(torch.__file__).parent, torch.__version__)))
        with torch.no_grad():
            for check in _probes:
                check()
    except (BuildError, OSError, ValueError, RuntimeError) as error:
        return (str(error.__cause__ or error).splitlines() or [type(error).__name__])[0]
    return None


def agree(operator: str, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """ValueError unless all values are within 1e-4 of what is expected of a probe."""
    errors = [torch.where(x == y, 0.0, x - y).abs().max().item() for x, y in zip(found, expected, strict=True)]
    if not all(error < 1e-4 for error in errors):
        raise ValueError(f"the compiled {operator} is off by {max(errors):.2g} from its reference")


# What the library takes: float32, dense, and a head dimension that is a multiple of 16.
def wide(x: Tensor) -> Tensor:
    """(..., D) -> float32 (..., D rounded up to a multiple of 16)."""
    x = x.float()
    missing = -x.shape[-1] % 16
    return (F.pad(x, (0, missing)) if missing else x).contiguous()


def narrow(x: Tensor, like: Tensor) -> Tensor:
    """What `wide` made of `like`, back in its shape and dtype."""
    return x[..., : like.shape[-1]].to(like.dtype).contiguous()


def pairs(blocks: Tensor) -> Tensor:
    """Pairs of blocks in one of the two integer types that the library reads."""
    return (blocks if blocks.dtype in (torch.int32, torch.int64) else blocks.long()).contiguous()


def dense(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.contiguous()
