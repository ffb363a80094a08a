"""Arrays that are larger than memory should be."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np

PIECE_BYTES = 16 << 20


def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """An array in consecutive pieces of up to 16 MB; of a mapped one, no more than a piece stays in memory."""
    rows = max(PIECE_BYTES * len(array) // max(array.nbytes, 1), 1)
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    for start in range(0, len(array), rows):
        yield array[start : start + rows]
        if isinstance(base, mmap.mmap):
            base.madvise(mmap.MADV_DONTNEED)
