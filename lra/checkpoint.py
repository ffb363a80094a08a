"""The checkpoints of a run: written whole, read without executing anything in them, each with a spare.

A checkpoint is the line `lra checkpoint 1 <sha256 of what follows>` and torch's own bytes. `last.pt` has the one before
it beside it as last.spare.pt, `best.pt` a second copy as best.spare.pt.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lra.files import Demand, spare, sync_folder, write_atomically
from lra.folders import reason

HEADER = re.compile(rb"lra checkpoint 1 ([0-9a-f]{64})\n")
# How torch's bytes begin; files of before have no line above them.
ARCHIVE = b"PK"
CPU = torch.device("cpu")
# What the two kinds of checkpoints hold.
LAST = ("state", "model", "optimizer", "scaler", "data_sha256")
BEST = ("step", "model")
REMEDY = "fresh=true starts the run over"


class Copy(NamedTuple):
    """What stands where a checkpoint should: `fault` says what is wrong with it, in words that follow its name."""

    content: bytes = b""
    step: int = 0
    fault: str = ""


def save(path: Path, state: Mapping[str, Any], demand: Demand | None = None, keep: Path | None = None) -> None:
    """Write tensors, numbers, strings and containers of them, in one step; `demand` and `keep` as in lra.files."""
    # By way of memory, so that a full disk is an OSError and not one of the serializer's own.
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    header = f"lra checkpoint 1 {hashlib.sha256(buffer.getbuffer()).hexdigest()}\n".encode()
    write_atomically(path, lambda file: file.writelines((header, buffer.getbuffer())), demand, keep)


def load(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint onto `device`. A file that is none is a ValueError that names it and says what to do."""
    return parse(path.read_bytes(), path, device)


def parse(content: bytes, path: Path, device: torch.device) -> dict[str, Any]:
    """The checkpoint that is the content of the file `path`."""
    try:
        return _opened(content, device)
    except _Broken as broken:
        raise ValueError(f"{path} {broken}; {REMEDY}") from broken


class _Broken(Exception):
    """What is wrong with a file, in words that follow its name."""


def _opened(content: bytes, device: torch.device) -> dict[str, Any]:
    try:
        rest = _checked(content)
        _demand_plain(rest)
        # torch warns of what is foreign, and goes on with it.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            state = torch.load(io.BytesIO(rest), map_location=device, weights_only=True)
    except Exception as error:
        raise _Broken(f"is not a whole checkpoint ({reason(error)})") from error
    if not isinstance(state, dict):
        raise _Broken("is not a checkpoint of this project")
    return state


def _checked(content: bytes) -> bytes:
    """torch's bytes, if they are those that were written."""
    if content.startswith(ARCHIVE):
        _demand_plain(content)
        # torch looks at no checksum, but has written one for each member.
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if damaged := archive.testzip():
                raise ValueError(f"the checksum of {damaged} is another")
        return content
    header = HEADER.match(content)
    if header is None:
        raise ValueError("it does not begin as one" if content else "it is empty")
    said, rest = header[1].decode(), content[header.end() :]
    if (found := hashlib.sha256(rest).hexdigest()) != said:
        raise ValueError(f"sha256 {found[:12]}, it says {said[:12]}")
    return rest


def _demand_plain(content: bytes) -> None:
    """ValueError where a zip has a packed member, as torch never writes: it may unpack to a thousand times as much."""
    if content.startswith(ARCHIVE):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(content):
                    raise ValueError("a member of it is packed")


def look(path: Path, keys: Sequence[str]) -> Copy:
    """The checkpoint with these keys at `path`, LAST or BEST."""
    try:
        content = path.read_bytes()
        state = _opened(content, CPU)
    except FileNotFoundError:
        return Copy(fault="is missing")
    except OSError as error:
        return Copy(fault=f"cannot be read ({error.strerror})")
    except _Broken as broken:
        return Copy(fault=str(broken))
    if missing := [key for key in keys if key not in state]:
        return Copy(fault=f"is not the checkpoint of a run: it has no {missing[0]}")
    at = state["state"] if "state" in keys else state
    step = at.get("step") if isinstance(at, dict) else None
    return (
        Copy(content, step) if isinstance(step, int) else Copy(fault="is not the checkpoint of a run: it has no step")
    )


def last(path: Path) -> bytes | None:
    """The last checkpoint, or the one before it where that is broken or missing; None where there is neither.

    A broken one is put aside as last.broken.pt, so that the next save does not let it take the place of the good one;
    one line on stderr says so. A ValueError where neither is whole.
    """
    now = look(path, LAST)
    if not now.fault:
        return now.content
    held = spare(path)
    before = look(held, LAST)
    if before.fault:
        if not path.exists() and not held.exists():
            return None
        raise ValueError(f"{path} {now.fault}, and {held.name} {before.fault}; {REMEDY}")
    if path.exists():
        os.replace(path, path.with_name(f"{path.stem}.broken{path.suffix}"))
        sync_folder(path.parent)
    _tell(f"{path} {now.fault}: going on from step {before.step}, which {held.name} holds")
    return before.content


def best(path: Path, step: int, evaluated: int | None = None, demand: Demand | None = None) -> bytes | None:
    """The checkpoint of the best step so far, `step`, whichever copy has it; the other copy is made again from it.

    evaluated: where a run goes on, its last evaluation. Both copies may then be of a later one, which comes again and
    writes them again: None. A ValueError where no copy is what it should be; a broken one is told on stderr.
    """
    places = (path, spare(path))
    copies = [look(place, BEST) for place in places]
    good = next((copy for copy in copies if not copy.fault and copy.step == step), None)
    if good is None:
        if evaluated is not None and any(not copy.fault and copy.step > evaluated for copy in copies):
            return None
        first, second = (copy.fault or f"is of step {copy.step}" for copy in copies)
        raise ValueError(
            f"{path} {first}, and {places[1].name} {second}: the weights of step {step} are lost; {REMEDY}"
        )
    for place, copy, other in zip(places, copies, reversed(places), strict=True):
        # A run of before has no second copy.
        if copy.fault and (place == path or place.exists()):
            _tell(f"{place} {copy.fault}: made again from {other.name}")
        if copy.content != good.content:
            write_atomically(place, lambda file: file.write(good.content), demand)
    return good.content


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
