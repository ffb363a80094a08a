"""Every test here runs the compiled kernels of a GPU, or fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from attention_zoo.ops import kernels


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _compiled_or_error(device: torch.device) -> Iterator[None]:
    with kernels.use("cuda"):
        assert kernels.available(device)
        yield
    torch.cuda.synchronize()
