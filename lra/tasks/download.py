"""Published files from the network: found in seconds or refused in seconds, whole and checked, or not there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, NamedTuple

from lra.tasks.archive import check_sha256
from lra.tasks.base import Place

# Seconds until an address must have answered, name look-up included, and between two pieces of an answer.
ANSWER, STALL = 4.0, 30.0
PIECE = 1 << 18


class Published(NamedTuple):
    """A file that its authors serve."""

    name: str
    address: str
    size: int  # bytes
    sha256: str


def fetch(file: Published, place: Place, otherwise: str) -> Path:
    """The published file in `place.manual`, brought there if it is missing, and of the published content.

    `otherwise` names the sources that need no download, for the one line of the ValueError where there is no network.
    """
    target = place.manual / file.name
    place.manual.mkdir(parents=True, exist_ok=True)
    with (place.manual / f".{file.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            remedy = f"delete it, and it is fetched again from {file.address}"
            check_sha256(target, file.sha256, remedy)
        else:
            remedy = f"download {file.address} ({file.size / 1e6:,.0f} MB) to {target}; {otherwise} needs no download"
            _download(file, target, place, remedy)
    return target


def _download(file: Published, target: Path, place: Place, remedy: str) -> None:
    part = target.with_name(f".{target.name}.part")
    try:
        with _opened(file.address, remedy) as answer, part.open("wb") as out:
            digest = hashlib.sha256()
            with place.progress(f"downloading {file.name}", file.size, in_bytes=True) as advance:
                while piece := _piece(answer, file, remedy):
                    out.write(piece)
                    digest.update(piece)
                    advance(len(piece))
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != file.sha256:
            size = f"{part.stat().st_size:,} of {file.size:,} bytes"
            raise ValueError(f"{file.address} sent {size} and another content than published: {remedy}")
        part.rename(target)
    finally:
        part.unlink(missing_ok=True)


def _piece(answer: IO[bytes], file: Published, remedy: str) -> bytes:
    try:
        return answer.read(PIECE)
    except (OSError, HTTPException) as error:
        raise ValueError(f"{file.address} broke off ({error}): {remedy}") from error


def _opened(address: str, remedy: str) -> Any:
    """The answer of an address; ValueError within seconds where there is none."""
    found: list[Any] = []
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            found.append(urllib.request.urlopen(address, timeout=STALL))
        except (OSError, HTTPException, ValueError) as error:
            failed.append(error)

    # Looking up a name cannot be given a time limit; a thread that nobody waits for can be left behind.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER)
    if found:
        return found[0]
    reason = str(failed[0]) if failed else f"no answer in {ANSWER:g} s"
    raise ValueError(f"{address} cannot be reached ({reason}): {remedy}")
