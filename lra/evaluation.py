"""A whole split scored: every example once, whatever the number of processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lra import machine
from lra.data import Batch, Split, collate, evaluation_batches
from lra.endings import OutOfMemory
from lra.ranks import ALONE, Ranks


class Scores(NamedTuple):
    """Of a whole split: mean cross-entropy (nats), accuracy in 0..1, logits (E, classes), labels (E,), in its order."""

    loss: float
    accuracy: float
    logits: np.ndarray
    labels: np.ndarray


@torch.no_grad()
def evaluate(
    model: nn.Module, split: Split, max_len: int, batch_size: int, device: torch.device, dtype: torch.dtype,
    mask_zero: bool = False, each: Callable[[int], object] = lambda done: None, ranks: Ranks = ALONE,
) -> Scores:  # fmt: skip
    """Score every example of a split; nothing is dropped, batches are cut by length.

    Of `world` processes each takes every `world`-th batch, and all have the scores of the whole split, with the bits of
    one. Before each round of batches, `each` hears how many examples are done; what it raises ends the evaluation.
    OutOfMemory where a process has no room for a batch.
    """
    logits: Tensor | None = None
    done = 0
    model.eval()
    batches = list(evaluation_batches(split, batch_size))
    for start in range(0, len(batches), ranks.world):
        each(done)
        together = batches[start : start + ranks.world]
        done += sum(map(len, together))
        short = False
        for indices in together[ranks.rank : ranks.rank + 1]:
            batch = to_device(collate(split, indices, max_len, mask_zero=mask_zero), device)
            try:
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    out = model(batch.tokens, batch.mask).float()
            except RuntimeError as error:
                if not machine.is_out_of_memory(error):
                    raise
                short = True
                continue
            logits = out.new_zeros(len(split.labels), out.shape[1]) if logits is None else logits
            logits[torch.from_numpy(indices).to(device)] = out
        if ranks.largest("score", short):
            raise OutOfMemory(f"no memory to evaluate {batch_size} examples at once")
    model.train()
    classes = int(ranks.largest("score", 0 if logits is None else logits.shape[1]))
    if logits is None:
        logits = torch.zeros(len(split.labels), classes, device=device)
    # As integers: a row is 0 on all processes but one, and the sum has its very bits.
    ranks.add(logits.view(torch.int32))
    labels = torch.from_numpy(np.asarray(split.labels, dtype=np.int64)).to(device)
    loss = F.cross_entropy(logits.double(), labels)
    accuracy = (logits.argmax(1) == labels).double().mean()
    return Scores(loss.item(), accuracy.item(), logits.cpu().numpy(), labels.cpu().numpy())


def head(split: Split, examples: int) -> Split:
    """The first examples of a split."""
    if split.pairs is None:
        return split._replace(offsets=split.offsets[: examples + 1], labels=split.labels[:examples])
    return split._replace(pairs=split.pairs[:examples], labels=split.labels[:examples])


def to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(part.to(device, non_blocking=True) for part in batch))
