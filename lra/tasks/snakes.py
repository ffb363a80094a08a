"""Pathfinder's images: dashed curves, two of them long, with a round marker on two of their ends.

Label 1 where both markers are on one curve. The generator is csrc/pathfinder.cpp; an image is a function of seed,
resolution, difficulty and index alone, whatever the process, thread or block that makes it.
"""

from __future__ import annotations

import ctypes
import functools
import os
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from csrc.build import library

RESOLUTIONS = (32, 64, 128, 256)
# Dashes of each of the two long curves.
DIFFICULTIES = {"easy": 6, "intermediate": 9, "hard": 14}

# Images that are made between two looks at whether anybody still wants them: at most about 0.2 seconds.
STRIDE = 32


class Facts(NamedTuple):
    """How images came about; positions are (row, column)."""

    tries: np.ndarray  # (n,) int32: how often the two long curves were begun
    distractors: np.ndarray  # (n,) int32: short curves that found a place
    margin: np.ndarray  # (n,) int32: pixels kept free about a dash
    markers: np.ndarray  # (n, 2, 2) int32: the tail that is marked, then the head
    tails: np.ndarray  # (n, 2, 2) int32: of both long curves
    heads: np.ndarray  # (n, 2, 2) int32


class Images(NamedTuple):
    """Images in order of their index."""

    pixels: np.ndarray  # (n, resolution, resolution) uint8
    labels: np.ndarray  # (n,) uint8
    facts: Facts


@functools.cache
def _pathfinder() -> Any:
    function = ctypes.CDLL(str(library("pathfinder"))).pathfinder_generate
    numbers = [ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.argtypes = [*numbers, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function


def _check(seed: int, resolution: int, difficulty: str, first: int, count: int) -> None:
    if resolution not in RESOLUTIONS:
        raise ValueError(f"resolution={resolution} is none of {', '.join(map(str, RESOLUTIONS))}")
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty={difficulty} is none of {', '.join(DIFFICULTIES)}")
    if not 0 <= seed < 2**64:
        raise ValueError(f"seed={seed} is not in 0 .. 2^64 - 1")
    if first < 0 or count < 0 or first + count > 2**62:
        raise ValueError(f"images {first} .. {first} + {count} are not in 0 .. 2^62")


def generate(
    seed: int, resolution: int, difficulty: str, first: int, count: int, stop: threading.Event | None = None
) -> Images:
    """Images number first .. first + count - 1, made in the calling thread without Python's lock.

    Where `stop` is set meanwhile, the images that were not yet made are left out. ValueError for a setting that there
    is not; csrc.build.BuildError, a ValueError, where the generator cannot be compiled.
    """
    _check(seed, resolution, difficulty, first, count)
    pixels = np.empty((count, resolution, resolution), np.uint8)
    labels = np.empty(count, np.uint8)
    facts = np.empty((count, 15), np.int32)
    done = 0
    while done < count and not (stop is not None and stop.is_set()):
        step = min(STRIDE, count - done)
        parts = (pixels[done:], labels[done:], facts[done:])
        given = _pathfinder()(
            seed, resolution, DIFFICULTIES[difficulty], first + done, step, *(part.ctypes.data for part in parts)
        )
        assert given == facts.shape[1]
        done += step
    tries, distractors, margin = facts[:done, :3].T
    places = facts[:done, 3:]
    markers, targets = places[:, :4].reshape(-1, 2, 2), places[:, 4:].reshape(-1, 2, 2, 2)
    return Images(
        pixels[:done],
        labels[:done],
        Facts(tries, distractors, margin, markers, targets[:, :, 0], targets[:, :, 1]),
    )


def processors() -> int:
    """The processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def block_size(resolution: int) -> int:
    """Images in a block: at most 4 MiB of pixels, and at most 512."""
    return min(512, 2**22 // resolution**2)


def blocks(
    seed: int, resolution: int, difficulty: str, first: int, count: int, threads: int | None = None
) -> Iterator[Images]:
    """The same images in blocks, in order, made by several threads (by default one per processor).

    At most two blocks per thread are held. When the caller stops, so do the threads, within a few tenths of a second.
    """
    _check(seed, resolution, difficulty, first, count)
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads} is not at least 1")
    _pathfinder()
    return _blocks(seed, resolution, difficulty, first, count, threads or processors())


def _blocks(seed: int, resolution: int, difficulty: str, first: int, count: int, threads: int) -> Iterator[Images]:
    size, end = block_size(resolution), first + count
    starts = iter(range(first, end, size))
    stop = threading.Event()
    waiting: deque[Future[Images]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="snakes")

    def order_one() -> None:
        if (start := next(starts, None)) is not None:
            waiting.append(pool.submit(generate, seed, resolution, difficulty, start, min(size, end - start), stop))

    try:
        for _ in range(2 * threads):
            order_one()
        while waiting:
            block = waiting.popleft().result()
            order_one()
            yield block
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
