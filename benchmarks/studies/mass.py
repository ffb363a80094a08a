"""Where softmax attention puts its mass: the entropy of its rows, and the share that stays near the diagonal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.studies.inputs import QKV

# Queries at once: a block of logits of 4096 tokens takes 8 MiB.
ROWS = 512


def logits(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """q k^T / sqrt(D): queries (R, D), keys (N, D) -> (R, N) float32."""
    return queries @ keys.T * np.float32(1 / math.sqrt(keys.shape[1]))


def entropy_of(scores: np.ndarray) -> np.ndarray:
    """(R,) float64: the entropy in nats of each row's softmax; scores (R, N) float32 are used up."""
    scores -= scores.max(axis=1, keepdims=True)
    weights = np.exp(scores)
    total = weights.sum(axis=1, dtype=np.float64)
    np.multiply(weights, scores, out=scores)
    return np.log(total) - scores.sum(axis=1, dtype=np.float64) / total


class Mass(NamedTuple):
    """By instance and head, (I, H) each, over the real queries: the mean, lowest and highest row entropy in nats, and
    the mean share of a row's mass on keys at most half a window away."""

    mean: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray
    near: np.ndarray


def entropies(qkv: QKV) -> np.ndarray:
    """(I, H) nats: the mean over the real queries of the entropy of their weights on the real keys."""
    found = [
        np.mean(np.concatenate([entropy_of(logits(q[here], k)) for here in _blocks(places)]))
        for q, k, places in _heads(qkv)
    ]
    return np.reshape(found, qkv.q.shape[:2])


def mass(qkv: QKV, window: int) -> Mass:
    """Where softmax attention of these inputs looks."""
    found = []
    for q, k, places in _heads(qkv):
        entropy, near = [], []
        for here in _blocks(places):
            scores = logits(q[here], k)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            close = np.abs(places[here, None] - places) <= window // 2
            near.append((weights * close).sum(axis=1) / weights.sum(axis=1))
            entropy.append(entropy_of(scores))
        rows = np.concatenate(entropy)
        found.append((rows.mean(), rows.min(), rows.max(), np.concatenate(near).mean()))
    return Mass(*np.transpose(found).reshape(4, *qkv.q.shape[:2]))


def _heads(qkv: QKV) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Head by head of each instance: q and k of its real tokens (N, D), and their places (N,)."""
    for i, h in np.ndindex(*qkv.q.shape[:2]):
        places = np.arange(qkv.q.shape[2]) if qkv.mask is None else np.flatnonzero(qkv.mask[i])
        yield qkv.q[i, h, places], qkv.k[i, h, places], places


def _blocks(places: np.ndarray) -> list[slice]:
    return [slice(start, start + ROWS) for start in range(0, len(places), ROWS)]
