"""The checkpoint of a run: written whole, read without executing anything in it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lra.files import Demand, write_atomically


def save(path: Path, state: Mapping[str, Any], demand: Demand | None = None) -> None:
    """Write tensors, numbers, strings and containers of them, in one step; `demand` as in lra.files."""
    # By way of memory, so that a full disk is an OSError and not one of the serializer's own.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()), demand)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint onto `device`. A file that is none is a ValueError that names it and says what to do."""
    return parse(path.read_bytes(), path, device)


def parse(content: bytes, path: Path, device: torch.device) -> dict[str, Any]:
    """The checkpoint that is the content of the file `path`."""
    try:
        state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is not a whole checkpoint ({reason}); fresh=true starts the run over") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint of this project; fresh=true starts the run over")
    return state
