"""The checkpoint of a run: written whole, read without executing anything in it."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lra.files import write_atomically
from lra.folders import reason


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Write tensors, numbers, strings and containers of them, in one step."""
    # By way of memory, so that a full disk is an OSError and not one of the serializer's own.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint onto `device`. A file that is none is a ValueError that names it and says what to do."""
    return parse(path.read_bytes(), path, device)


def parse(content: bytes, path: Path, device: torch.device) -> dict[str, Any]:
    """The checkpoint that is the content of the file `path`."""
    try:
        demand_plain(content)
        # torch warns of what is foreign, and goes on with it.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            state = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{path} is not a whole checkpoint ({reason(error)}); fresh=true starts the run over"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is not a checkpoint of this project; fresh=true starts the run over")
    return state


def demand_plain(content: bytes) -> None:
    """ValueError where a zip has a packed member, as torch never writes: it may unpack to a thousand times as much."""
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(content):
                    raise ValueError("a member of it is packed")
