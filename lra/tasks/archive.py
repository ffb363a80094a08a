"""Published archives and their unpacked folders, read in one pass without unpacking; what is broken is one line."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

from lra.tasks.base import Progress, silent

# The published archive of the benchmark: a .tar.gz under another name, with its folder doubled.
RELEASE = "lra_release.gz"
RELEASE_ADDRESS = "https://storage.googleapis.com/long-range-arena/lra_release.gz"
RELEASE_FOLDERS = ("lra_release/lra_release", "lra_release", ".")


def find(manual: Path, folders: Sequence[str], archive: str) -> Path | None:
    """The first of `folders` in `manual`, else the file `archive`, else None."""
    for folder in folders:
        if (manual / folder).is_dir():
            return manual / folder
    return manual / archive if (manual / archive).is_file() else None


def find_release(manual: Path, folder: str, otherwise: str) -> Path:
    """The unpacked `folder` of the benchmark's archive, or the archive, in `manual`; ValueError where neither is there.

    `otherwise` names the sources that need no download.
    """
    place = find(manual, [f"{each}/{folder}" for each in RELEASE_FOLDERS], RELEASE)
    if place is None:
        raise ValueError(
            f"{manual / RELEASE} is missing: download {RELEASE_ADDRESS} (8 GB) to that place or unpack it there; "
            f"{otherwise} needs no download"
        )
    return place


@contextmanager
def intact(place: Path) -> Iterator[None]:
    """Make what a broken or truncated archive raises a ValueError that names it."""
    try:
        yield
    except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile) as error:
        raise ValueError(f"{place} is broken or cut short ({error})") from error


def members(place: Path, wanted: Callable[[str], bool], progress: Progress = silent) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, content) of every file of the folder or .tar.gz `place` whose name is wanted; names begin with the folder.

    A folder is read in the order of its names, an archive in its own, once: read each content before the next. The
    caller works under `intact(place)`, which speaks for the contents too.
    """
    return _of_folder(place, wanted, progress) if place.is_dir() else _of_archive(place, wanted, progress)


def _of_folder(place: Path, wanted: Callable[[str], bool], progress: Progress) -> Iterator[tuple[str, IO[bytes]]]:
    with progress(f"reading {place.name}", None) as advance:
        for file in _files(place):
            name = f"{place.name}/{file.relative_to(place).as_posix()}"
            if wanted(name):
                with file.open("rb") as content:
                    yield name, content
                advance(1)


def _files(folder: Path) -> Iterator[Path]:
    """Every file below a folder, by name, without a list of all."""
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from _files(entry)
        else:
            yield entry


def _of_archive(place: Path, wanted: Callable[[str], bool], progress: Progress) -> Iterator[tuple[str, IO[bytes]]]:
    with (
        progress(f"reading {place.name}", place.stat().st_size, in_bytes=True) as advance,
        place.open("rb") as packed,
        gzip.open(_Counted(packed, advance)) as unpacked,
        # tarfile copies what is left of this buffer at every member: with a larger one, small files take far longer.
        tarfile.open(fileobj=unpacked, mode="r|", bufsize=1 << 16) as archive,
    ):
        while (member := archive.next()) is not None:
            # tarfile remembers every member, and the archive has millions of pictures.
            archive.members.clear()  # type: ignore[attr-defined]
            name = member.name.removeprefix("./")
            if member.isfile() and wanted(name):
                content = archive.extractfile(member)
                assert content is not None, "a regular file has a content"
                yield name, content
        # To tarfile a damaged header is the end of the archive: the checksum behind the last byte tells them apart.
        while unpacked.read(1 << 20):
            pass


class _Counted(io.RawIOBase):
    """A file whose reader hears how many bytes have been read."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], None]) -> None:
        super().__init__()
        self.file, self.advance = file, advance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = cast(io.BufferedReader, self.file).readinto(buffer)
        self.advance(count)
        return count


def check_sha256(file: Path, expected: str, remedy: str) -> None:
    """ValueError where a file is another one than the published."""
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != expected:
        raise ValueError(f"{file} has sha256 {found}, the published file has {expected}: {remedy}")


def shown(value: bytes) -> str:
    """A value from a file, as it may stand in a one-line message."""
    text = value.decode("utf-8", errors="replace")
    return repr(text if len(text) <= 40 else f"{text[:40]}...")
