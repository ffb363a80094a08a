"""Every configured attention trains: the loss falls on generated ListOps, and nothing warns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from lra.config import Config, Model, Train
from lra.data import Split, collate
from lra.loop import build
from lra.tasks.listops import VOCABULARY, generate

ATTN = sorted((Path(__file__).resolve().parent.parent / "conf" / "attn").glob("*.yaml"))
SEQ_LEN, BATCH, STEPS = 128, 4, 16


@pytest.fixture(scope="module")
def documents() -> Split:
    """The first expressions of the benchmark's own distribution, 500 to 2,000 tokens long; training cuts them."""
    first = next(generate(3, "train", 8 * BATCH))
    return Split(first.tokens, first.offsets, first.labels)


@pytest.mark.parametrize("file", ATTN, ids=lambda file: file.stem)
def test_sixteen_steps_lower_the_loss(file: Path, documents: Split) -> None:
    words: dict[str, Any] = yaml.safe_load(file.read_text())
    config = Config(attn=words, model=Model(seq_len=SEQ_LEN, dropout=0.0), train=Train(steps=STEPS, warmup=5))
    model = build(config, vocab=len(VOCABULARY), classes=10)

    def loss(examples: np.ndarray) -> torch.Tensor:
        batch = collate(documents, examples, SEQ_LEN)
        return torch.nn.functional.cross_entropy(model(batch.tokens, batch.mask), batch.labels)

    seen = np.arange(8 * BATCH)
    before = loss(seen).detach()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss(seen.reshape(-1, BATCH)[step % 8]).backward()
        optimizer.step()
    after = loss(seen).detach()
    assert after.isfinite()
    assert after < before - 0.1
