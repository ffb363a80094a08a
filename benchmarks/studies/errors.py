"""How far an attention's output is from softmax's: relative Frobenius error of every head, and the entropy it had."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.studies.sweeps import Choice

if TYPE_CHECKING:
    from attention_zoo import Attention
    from benchmarks.studies.inputs import QKV

# Rows of logits at a time: with 4,096 columns 16 MiB, which a few passes find in the cache or nearly so.
ROWS = 512


def exact(qkv: QKV) -> tuple[np.ndarray, np.ndarray]:
    """Softmax attention of the real tokens, (I, H, N, D) float64, and the mean entropy of its rows in nats, (I, H).

    All in float64, a third of a second per head of 4,096 tokens on one core. Padded tokens neither attend nor are
    attended to: their output is 0. An instance without a real token has the entropy nan.
    """
    import torch

    out = np.zeros(qkv.q.shape)
    entropy = np.full(qkv.q.shape[:2], math.nan)
    for instance, head in np.ndindex(*entropy.shape):
        real = slice(None) if qkv.mask is None else qkv.mask[instance].nonzero()[0]
        q, k, v = (torch.from_numpy(x[instance, head][real]).double() for x in qkv[1:4])
        if len(q) == 0:
            continue
        k_t = k.T.contiguous() / math.sqrt(k.shape[1])
        rows, total = [], 0.0
        for part in q.split(ROWS):
            logits = part @ k_t
            logits -= logits.amax(-1, keepdim=True)
            weights = logits.exp()
            normaliser = weights.sum(-1, keepdim=True)
            rows.append(weights @ v / normaliser)
            # H = log Z - E[logit]. A weight that underflows adds nothing, and its logit is finite: 0 log 0 is 0.
            total += float((normaliser.log() - weights.mul_(logits).sum(-1, keepdim=True) / normaliser).sum())
        out[instance, head][real] = torch.cat(rows).numpy()
        entropy[instance, head] = max(total / len(q), 0.0)
    return out, entropy


def errors(out: Any, exact_out: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """(I, H) |out - exact_out| / |exact_out|, Frobenius norms over the real tokens; out (I, H, N, D) array or tensor.

    nan where the exact output is 0 throughout.
    """
    given = np.asarray(out.detach().double().cpu() if hasattr(out, "detach") else out, dtype=np.float64)
    real = np.ones((1, 1, 1, 1)) if mask is None else mask[:, None, :, None]
    # By `where`, so that what stands in padded places, even nan, is never read.
    missed = np.where(real, given - exact_out, 0.0)
    norms = [np.sqrt(np.square(x).sum((2, 3))) for x in (missed, np.where(real, exact_out, 0.0))]
    return np.divide(norms[0], norms[1], out=np.full(norms[0].shape, math.nan), where=norms[1] > 0)


def core_of(choice: Choice, qkv: QKV) -> Attention:
    """The variant, or `eager` softmax, built for the heads, head dim and length of the inputs, in evaluation mode.

    What it draws, its weights, features, hashes or random blocks, is the same in every process.
    """
    import torch

    from attention_zoo import ZOO
    from benchmarks.studies.baselines import EXACT

    _, heads, length, dim = qkv.q.shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (ZOO | EXACT)[choice.attn](heads, dim, length, **dict(choice.keywords)).eval()
