"""Published archives and their unpacked folders, read in one pass without unpacking; what is broken is one line."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self, TypeVar, cast

from lra.tasks.base import Progress, silent

# The published archive of the benchmark: a .tar.gz under another name, with its folder doubled.
RELEASE = "lra_release.gz"
RELEASE_ADDRESS = "https://storage.googleapis.com/long-range-arena/lra_release.gz"
RELEASE_FOLDERS = ("lra_release/lra_release", "lra_release", ".")
# A byte of deflate unpacks to at most as many.
FOLD = 1_032
# What a header that only describes the next one may have: tarfile searches it in time that grows as its square.
HEADER_BYTES = 1 << 13
LINE_BYTES = 64 << 20
LONGEST_NAME = 200


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
        raise ValueError(f"{place} is broken or cut short ({ascii(str(error))[1:-1][:100]})") from error


def members(place: Path, wanted: Callable[[str], bool], progress: Progress = silent) -> Iterator[tuple[str, IO[bytes]]]:
    """(name, content) of every file of the folder or .tar.gz `place` whose name is wanted; names begin with the folder.

    A folder is read in the order of its names, an archive in its own, once: read each content before the next. The
    caller works under `intact(place)`, which speaks for the contents too. Nothing is written anywhere, so a name that
    climbs out of the folder is a name like any other; links, devices and pipes are passed over.
    """
    found = _of_folder(place, wanted, progress) if place.is_dir() else _of_archive(place, wanted, progress)
    for name, content in found:
        # Names stand in messages.
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise ValueError(f"{place} holds a file of the name {shown(name.encode(errors='replace'))}")
        yield name, content


def whole(content: IO[bytes], most: int, source: str) -> bytes:
    """All of a content; ValueError naming `source` where that is more than `most` bytes."""
    found = content.read(most + 1)
    if len(found) > most:
        raise ValueError(f"{source} has more than {most:,} bytes")
    return found


def lines(content: IO[bytes], source: str) -> Iterator[bytes]:
    """The lines of a content; ValueError naming `source` where one is longer than any of the published files."""
    while line := content.readline(LINE_BYTES + 1):
        if len(line) > LINE_BYTES:
            raise ValueError(f"{source}: {shown(line)} is longer than {LINE_BYTES:,} bytes")
        yield line


def _of_folder(place: Path, wanted: Callable[[str], bool], progress: Progress) -> Iterator[tuple[str, IO[bytes]]]:
    with progress(f"reading {place.name}", None) as advance:
        for file in _files(place):
            name = f"{place.name}/{file.relative_to(place).as_posix()}"
            if wanted(name):
                with file.open("rb") as content:
                    yield name, content
                advance(1)


def files(folder: Path, names: Iterable[str], progress: Progress = silent) -> Iterator[IO[bytes]]:
    """The contents of the files `names` of a folder, in that order: read each before the next."""
    places = [folder / name for name in names]
    with progress(f"reading {folder.name}", sum(file.stat().st_size for file in places), in_bytes=True) as advance:
        for file in places:
            with file.open("rb") as content, io.BufferedReader(_Counted(content, advance), 1 << 20) as counted:
                yield counted


def _files(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Every file below a folder, by name, without a list of all; no pipes, and no link that leads back up."""
    about = folder.stat()
    here = (about.st_dev, about.st_ino)
    if here in above:
        return
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            yield from _files(entry, (*above, here))
        elif entry.is_file():
            yield entry


def _of_archive(place: Path, wanted: Callable[[str], bool], progress: Progress) -> Iterator[tuple[str, IO[bytes]]]:
    with (
        progress(f"reading {place.name}", place.stat().st_size, in_bytes=True) as advance,
        place.open("rb") as packed,
        gzip.open(_Counted(packed, advance)) as unpacked,
        # tarfile copies what is left of this buffer at every member: with a larger one, small files take far longer.
        _sound(lambda: tarfile.open(fileobj=unpacked, mode="r|", bufsize=1 << 16, tarinfo=_Header)) as archive,
    ):
        most = FOLD * place.stat().st_size
        while (member := _sound(archive.next)) is not None:
            # tarfile remembers every member, and the archive has millions of pictures.
            archive.members.clear()  # type: ignore[attr-defined]
            # To pass over a size that is not there, tarfile would read on for years.
            if not 0 <= member.size <= most:
                raise tarfile.ReadError(f"a member of {member.size} bytes")
            name = member.name.removeprefix("./")
            if member.isfile() and not member.issparse() and wanted(name):
                content = archive.extractfile(member)
                assert content is not None, "a regular file has a content"
                yield name, content
        # To tarfile a damaged header is the end of the archive: the checksum behind the last byte tells them apart.
        while unpacked.read(1 << 20):
            pass


class _Header(tarfile.TarInfo):
    """A header that asks for no more memory than its kind needs."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        header = super().frombuf(buf, encoding, errors)
        if header.type in _DESCRIBING and not 0 <= header.size <= HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse file")
        return header

    def _proc_gnusparse_10(self, *about: Any) -> None:
        """The map of a sparse file is part of its content, and as long as it says."""
        raise tarfile.ReadError("a sparse file")


# Long names and the extended headers of POSIX: their content describes the next member.
_DESCRIBING = (b"L", b"K", b"x", b"g", b"X")
Found = TypeVar("Found")


def _sound(read: Callable[[], Found]) -> Found:
    """What tarfile makes of a header. A foreign one makes it raise nearly anything: here a TarError."""
    try:
        return read()
    except (OSError, EOFError, MemoryError, zlib.error, tarfile.TarError):
        raise
    except Exception as error:
        raise tarfile.ReadError(f"no header of a member: {type(error).__name__}") from error


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
    said = repr(text if len(text) <= 40 else f"{text[:40]}...")
    return said if len(said) <= 160 else f"{said[:160]}...'"
