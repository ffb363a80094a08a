"""The law of a reader of foreign files: it reads what it is given, or refuses it with one line; nothing else."""

from __future__ import annotations

import resource
import signal
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest

from tests.faults import SEED, amount, draws

# In full four tests a reader, so that processes share them.
CHUNKS = pytest.mark.parametrize("chunk", range(amount(1, 4)))
EACH = amount(100, 2_500)
LONGEST_LINE = 400
# Of one input; a reader is thousands of times faster.
SECONDS = 60
# By which what a process holds may grow while it reads a chunk.
GROWTH = 400 << 20


class TooLong(BaseException):
    """A reader hangs. No `except Exception` of a reader holds it up."""


def attack(
    reader: str,
    chunk: int,
    make: Callable[[Random], Any],
    read: Callable[[Any], object],
    tally: Counter[str],
    refusals: type[Exception] | tuple[type[Exception], ...] = ValueError,
    names: str = "",
    share: float = 1.0,
) -> None:
    """Read a `share` of EACH inputs. `make` makes one of the draws.

    `read` reads it and asserts what holds for all that is read.

    names: what the line of a refusal must name.
    """
    for outcome in ("read", "refused"):
        tally[f"foreign files: {reader}: {outcome}"] += 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with warnings.catch_warnings(record=True) as warned, _bounded():
        warnings.simplefilter("always")
        count = round(share * EACH)
        for number in range(chunk * count, (chunk + 1) * count):
            given = make(draws(reader, number))
            signal.setitimer(signal.ITIMER_REAL, SECONDS)
            try:
                outcome = _read(read, given, refusals, names)
                assert not warned, f"a warning: {warned[0].message}"
            except (Exception, TooLong) as error:
                raise AssertionError(
                    f"{reader}, input {number} of seed {SEED}, {_shown(given)}: {type(error).__name__}: {error}"
                ) from error
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
            tally[f"foreign files: {reader}: {outcome}"] += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
    assert grown <= GROWTH, f"{reader}: {grown >> 20} MiB more"


def _read(read: Callable[[Any], object], given: Any, refusals: Any, names: str) -> str:
    try:
        read(given)
    except refusals as error:
        one_line(error, names)
        return "refused"
    return "read"


def one_line(error: Exception, names: str) -> None:
    """A refusal is one line that can be printed, is short and says what is refused."""
    said = str(error)
    assert said, "nothing said"
    assert said.isprintable(), f"not one line that can be printed: {said!r}"
    # The folder of a test is longer than those of people.
    assert len(said.replace(names, "")) <= LONGEST_LINE if names else len(said) <= LONGEST_LINE, f"long: {said}"
    assert names in said, f"does not name {names}: {said}"


def _shown(given: Any) -> str:
    said = repr(given)
    return said if len(said) <= 300 else f"{said[:200]}... ({len(said):,} characters) ...{said[-80:]}"


@contextmanager
def _bounded() -> Iterator[None]:
    def late(signum: int, frame: FrameType | None) -> None:
        raise TooLong(f"no end after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


class _Touch:
    """What a pickle runs when it is opened."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return open, (str(self.trap), "w")


def payload(trap: Path) -> bytes:
    """A pickle that makes the file `trap` where it is opened."""
    import pickle

    return pickle.dumps(_Touch(trap), 2)
