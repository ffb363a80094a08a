"""Published files from the network: found in seconds or refused in seconds, whole and checked, or not there."""

from __future__ import annotations

import fcntl
import hashlib
import os
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, NamedTuple
from urllib.error import HTTPError

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
    # A file has its name only once it is whole, so one that is there needs no lock, nor a folder that can be written.
    if not target.exists():
        place.manual.mkdir(parents=True, exist_ok=True)
        with _alone(place.manual / f".{file.name}.lock", file, place):
            # Another process may have brought it while this one waited.
            if not target.exists():
                remedy = (
                    f"download {file.address} ({file.size / 1e6:,.0f} MB) to {target}; {otherwise} needs no download"
                )
                _download(file, target, place, remedy)
                return target
    check_sha256(target, file.sha256, f"delete it, and it is fetched again from {file.address}")
    return target


@contextmanager
def _alone(path: Path, file: Published, place: Place) -> Iterator[None]:
    """Hold the lock on `path`; the system releases it however this process ends."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with place.progress(f"another process is downloading {file.name}: waiting for it", None):
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(file: Published, target: Path, place: Place, remedy: str) -> None:
    part = target.with_name(f".{target.name}.part")
    try:
        size, digest = 0, hashlib.sha256()
        with _opened(file.address, remedy) as answer, part.open("wb") as out:
            with place.progress(f"downloading {file.name}", file.size, in_bytes=True) as advance:
                # A server that never stops is cut off.
                while size <= file.size and (piece := _piece(answer, file, remedy)):
                    out.write(piece)
                    digest.update(piece)
                    size += len(piece)
                    advance(len(piece))
            out.flush()
            os.fsync(out.fileno())
        if digest.hexdigest() != file.sha256:
            raise ValueError(
                f"{file.address} sent {size:,} of {file.size:,} bytes, not of the published content: {remedy}"
            )
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
    given_up = threading.Event()

    def ask() -> None:
        try:
            found.append(urllib.request.urlopen(address, timeout=STALL))
            if given_up.is_set():
                found[0].close()
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, HTTPError):
                error.close()
            failed.append(error)

    # Looking up a name cannot be given a time limit; a thread that nobody waits for can be left behind.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(ANSWER)
    if found:
        return found[0]
    given_up.set()
    if failed and not isinstance(failed[0], OSError):
        # The addresses are ours. What the error would repeat is a part of the proxy's, which may be a password.
        raise ValueError(f"{address} cannot be reached (the environment's proxy is no address): {remedy}")
    reason = str(failed[0]) if failed else f"no answer in {ANSWER:g} s"
    raise ValueError(f"{address} cannot be reached ({reason}): {remedy}")
