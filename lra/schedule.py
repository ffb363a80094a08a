"""The learning rate as a function of the step alone: nothing to save, nothing to restore."""

from __future__ import annotations

import math

from lra.config import Train


def rate(train: Train, step: int) -> float:
    """The learning rate of the update that follows `step` others, 0 <= step < train.steps."""
    warmup, steps = train.warmup, train.steps
    if train.schedule == "rsqrt":
        return train.lr * min(1.0, step / warmup) / math.sqrt(max(step, warmup))
    if train.schedule == "cosine":
        done = max(0.0, (step - warmup) / steps)
        return train.lr * min(1.0, step / warmup) * (1 + math.cos(math.pi * done)) / 2
    start, end = train.lr / 25, train.lr / 250_000
    if step < warmup:
        return between(start, train.lr, step / (warmup - 1))
    return between(train.lr, end, (step - warmup + 1) / (steps - warmup))


def beta1(train: Train, step: int) -> float:
    """Adam's beta1 of the same update: 0.9, or with cycle_momentum from 0.95 to 0.85 and back as the rate rises."""
    if not train.cycle_momentum:
        return 0.9
    if step < train.warmup:
        return between(0.95, 0.85, step / (train.warmup - 1))
    return between(0.85, 0.95, (step - train.warmup + 1) / (train.steps - train.warmup))


def peak(train: Train) -> float:
    """The largest rate of the run."""
    return max(rate(train, step) for step in (min(train.warmup, train.steps) - 1, min(train.warmup, train.steps - 1)))


def between(start: float, end: float, share: float) -> float:
    """`start` at share 0, `end` at share 1, straight in between."""
    return start + (end - start) * share
