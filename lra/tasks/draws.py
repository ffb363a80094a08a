"""Random integers that are the same on every machine."""

from __future__ import annotations

import numpy as np


class Draws:
    """Uniform integers that depend on (seed, split, chunk) alone: raw Philox words, a stream that numpy has frozen."""

    def __init__(self, seed: int, split: int, chunk: int) -> None:
        self.stream = np.random.Philox(key=np.array([seed, split << 32 | chunk], dtype=np.uint64))

    def below(self, bound: int, count: int) -> np.ndarray:
        """(count,) uint8 in [0, bound); no value is more likely than another by more than 2^-32."""
        words = self.stream.random_raw((count + 1) // 2).astype("<u8", copy=False).view("<u4")[:count]
        return ((words.astype(np.uint64) * np.uint64(bound)) >> np.uint64(32)).astype(np.uint8)
