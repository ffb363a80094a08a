"""The benchmark's own rule of fairness: a variant has at most 10% more parameters than softmax attention."""

from __future__ import annotations

LARGEST = 0.10


def excess(params: int, softmax: int | None) -> str:
    """`+502%` where `params` are over the benchmark's 10% more than `softmax`'s, empty where not or not known."""
    if not softmax or params <= (1 + LARGEST) * softmax:
        return ""
    return f"{params / softmax - 1:+.0%}"
