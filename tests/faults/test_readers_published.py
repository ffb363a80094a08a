"""Published data sets that people bring: a release is read as it should be, or one line says what is wrong with it."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image as Picture

from lra.tasks import image, listops, pathfinder, retrieval, text
from lra.tasks.base import Documents, Reading
from tests.faults.foreign import CHUNKS, attack
from tests.faults.mutation import (
    Member,
    gzipped,
    mutated,
    redrawn,
    retabled,
    retarred,
    tarred,
)

LINKED = (tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)


class Release(NamedTuple):
    """A published data set: how its small files look, how they are changed, and what reads them."""

    files: dict[str, bytes]
    change: Callable[[Random, bytes], bytes]
    read: Callable[[Path, Path], object]  # (place, scratch)


class Given(NamedTuple):
    """An archive, or the files of a folder."""

    packed: bytes
    files: tuple[Member, ...] = ()


def whole(reading: Reading, vocabulary: int, classes: int, longest: int) -> None:
    """What holds for every source that has been opened."""
    assert set(reading.counts) == set(reading.blocks) == {"train", "validation", "test"}
    for split, blocks in reading.blocks.items():
        found = list(blocks)
        assert sum(len(block.offsets) - 1 for block in found) == reading.counts[split]
        for block in found:
            sound(block, vocabulary, longest)
            if reading.pairs is None:
                assert len(block.labels) == len(block.offsets) - 1
                assert (block.labels < classes).all()
        if reading.pairs is not None:
            pairs, labels = reading.pairs[split]
            assert pairs.shape == (len(labels), 2)
            assert (pairs >= 0).all()
            assert (pairs < reading.counts[split]).all()
            assert (labels < classes).all()


def sound(block: Documents, vocabulary: int, longest: int) -> None:
    tokens, offsets, labels = block
    assert (tokens.dtype, offsets.dtype, labels.dtype) == (np.uint8, np.int64, np.uint8)
    assert offsets[0] == 0
    assert offsets[-1] == len(tokens)
    assert (np.diff(offsets) > 0).all()
    assert (np.diff(offsets) <= longest).all()
    assert (tokens < vocabulary).all()


def of_listops() -> Release:
    rows = ("( ( [MAX 1 ) 2 ] )\t2", "( [MIN 3 4 [MED 5 6 7 ] ]\t3", "[SM 9 9 ]\t8")
    content = "".join(f"{row}\r\n" for row in ("Source\tTarget", *rows)).encode()
    files = {f"listops-1000/{name}": content for name in listops.RELEASED_FILES.values()}

    def read(place: Path, scratch: Path) -> None:
        whole(listops.read_release(place, 8), len(listops.VOCABULARY), 10, 8)

    return Release(files, lambda draw, old: retabled(draw, old, draw.choice((b"\t", b" "))), read)


def of_aan() -> Release:
    rows = ("0.0\tP1\tP2\tOne \\n paper\tAnother", "1.0\tP1\tP3\tOne \\n paper\tA third", "1\tP3\tP3\tx\ty")
    content = "".join(f"{row}\n" for row in rows).encode()

    def read(place: Path, scratch: Path) -> None:
        found = retrieval.find_aan(place) if place.is_dir() else place
        whole(retrieval.read_aan(found, 8, scratch), 256, 2, 8)

    files = {f"tsv_data/{name}": content for name in retrieval.FILES.values()}
    return Release(files, lambda draw, old: retabled(draw, old, b"\t"), read)


def of_imdb() -> Release:
    files = {
        f"aclImdb/{part}/{kind}/{number}_{rating}.txt": b"It was a film, <br /> after all."
        for part in ("train", "test")
        for kind, rating in (("neg", 1), ("pos", 10))
        for number in range(2)
    }
    files |= {f"aclImdb/train/urls_{kind}.txt": b"http://a\nhttp://b\n" for kind in ("neg", "pos")}

    def read(place: Path, scratch: Path) -> None:
        texts, addresses = text.read_reviews(place)
        assert {(review.part, review.kind) for review in texts} == {
            (p, k) for p in ("train", "test") for k in text.RATINGS
        }
        assert all(0 < len(each) <= text.LONGEST for each in texts.values())
        assert set(addresses) <= set(text.RATINGS)
        films = text.reviews_by_film([review for review in texts if review.part == "train"], addresses, place)
        assert sum(map(len, films.values())) == sum(review.part == "train" for review in texts)

    return Release(files, lambda draw, old: retabled(draw, old, b" "), read)


def of_cifar() -> Release:
    record = bytes([3]) + bytes(range(256)) * 12
    files = {f"{image.FOLDER}/{name}": record * 2 for names in image.FILES.values() for name in names}

    def read(place: Path, scratch: Path) -> None:
        whole(image.read_batches(place), 256, 10, image.PIXELS)

    return Release(files, lambda draw, old: mutated(draw, old), read)


def of_pathfinder() -> Release:
    folder = "pathfinder32/curv_contour_length_14"
    pixels = np.arange(1_024, dtype=np.uint8).reshape(32, 32)
    picture = io.BytesIO()
    Picture.fromarray(pixels).save(picture, "PNG")
    files = {
        f"{folder}/metadata/1.npy": "".join(f"imgs/1 sample_{i}.png {i} {i % 2} 1 2\n" for i in range(10)).encode()
    }
    files |= {f"{folder}/imgs/1/sample_{i}.png": picture.getvalue() for i in range(10)}

    def change(draw: Random, old: bytes) -> bytes:
        if old.startswith(b"\x89PNG"):
            return redrawn(draw, old) if draw.random() < 0.7 else mutated(draw, old)
        return retabled(draw, old, b" ")

    def read(place: Path, scratch: Path) -> None:
        whole(pathfinder.read_release(place, 32, "hard", scratch), 256, 2, 1_024)

    return Release(files, change, read)


RELEASES = {
    "ListOps": of_listops,
    "AAN": of_aan,
    "IMDb": of_imdb,
    "CIFAR-10": of_cifar,
    "Pathfinder": of_pathfinder,
}


def changed(draw: Random, release: Release, escaped: str) -> list[Member]:
    """The files of a release, some of them changed."""
    members = [Member(name, content) for name, content in release.files.items()]
    for _ in range(draw.choice((1, 1, 2))):
        at = draw.randrange(len(members))
        content = members[at].content
        new = (
            release.change(draw, content) if draw.random() < 0.7 else mutated(draw, content, (*release.files.values(),))
        )
        members[at] = members[at]._replace(content=new)
    return members


def archived(draw: Random, release: Release, escaped: str) -> Given:
    members = (
        changed(draw, release, escaped) if draw.random() < 0.6 else [Member(*each) for each in release.files.items()]
    )
    if draw.random() < 0.6:
        members = retarred(draw, members, escaped)
    packed = tarred(members, draw.choice((bytes(1_024), bytes(1_024), b"", bytes(512), b"junk" * 300)))
    if draw.random() < 0.2:
        packed = mutated(draw, packed)
    return Given(gzipped(draw, packed))


def unpacked(draw: Random, release: Release, escaped: str) -> Given:
    members = changed(draw, release, escaped)
    for _ in range(draw.choice((0, 0, 1, 2))):
        at = draw.randrange(len(members))
        member = members[at]
        match draw.randrange(5):
            case 0:
                link = draw.choice((escaped, "..", ".", member.name.rpartition("/")[2], "/dev/null", "nowhere"))
                members[at] = member._replace(type=draw.choice(LINKED), link=link)
            case 1:
                del members[at]
            case 2:
                members.append(Member(f"{member.name.rpartition('/')[0]}/loop", type=tarfile.SYMTYPE, link=".."))
            case 3:
                name = draw.choice(
                    ("\n", "\udcff", "9" * 200, "-1_1.txt", "0_99999.txt", ".x", "a b", "\u202e.png", "x.npy")
                )
                members[at] = member._replace(name=f"{member.name.rpartition('/')[0]}/{name}")
            case _:
                folder = f"{member.name.rpartition('/')[0]}/deeper/"
                members[at] = member._replace(name=folder + member.name.rpartition("/")[2])
    return Given(b"", tuple(members))


def lay_out(members: tuple[Member, ...], place: Path) -> None:
    """Put the files of a folder on the disk."""
    for member in members:
        file = place / member.name.partition("/")[2]
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_symlink() or file.exists():
            continue
        if member.type == tarfile.SYMTYPE:
            file.symlink_to(member.link)
        elif member.type == tarfile.FIFOTYPE:
            os.mkfifo(file)
        elif member.type == tarfile.DIRTYPE:
            file.mkdir()
        else:
            file.write_bytes(member.content)


@pytest.mark.parametrize("form", ["archive", "folder"])
@pytest.mark.parametrize("name", RELEASES)
@CHUNKS
def test_a_release_is_read_or_refused_with_one_line(
    room: Path, tally: Counter[str], monkeypatch: pytest.MonkeyPatch, name: str, form: str, chunk: int
) -> None:
    monkeypatch.setattr(image, "RECORDS", 2)
    # The order of the records comes from a library that takes seconds to import, and from no file.
    monkeypatch.setattr(image, "order", lambda split, count: np.arange(count))
    release, scratch = RELEASES[name](), room / "scratch"
    outside = room / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    scratch.mkdir()
    make = archived if form == "archive" else unpacked
    top = "pathfinder32/curv_contour_length_14" if name == "Pathfinder" else next(iter(release.files)).partition("/")[0]
    place = room / "release.gz" if form == "archive" else room / top

    def read(given: Given) -> None:
        if given.files:
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            inner = len(top.split("/")) - 1
            lay_out(tuple(m._replace(name="/".join(m.name.split("/")[inner:])) for m in given.files), place)
        else:
            place.write_bytes(given.packed)
        try:
            release.read(place, scratch)
        finally:
            assert {path.name for path in room.iterdir()} <= {"scratch", "outside", place.name, place.parent.name}
            assert {path.name for path in scratch.iterdir()} <= {"images", "train", "validation", "test"}
            assert [path.name for path in outside.iterdir()] == ["secret"]

    attack(
        f"{name}, {form}",
        chunk,
        lambda draw: make(draw, release, str(outside / "secret")),
        read,
        tally,
        names=str(place),
        share=0.5,
    )


@CHUNKS
def test_a_picture_is_pixels_or_one_line(tally: Counter[str], chunk: int) -> None:
    content = next(each for each in of_pathfinder().files.values() if each.startswith(b"\x89PNG"))

    def make(draw: Random) -> bytes:
        new = redrawn(draw, content) if draw.random() < 0.7 else content
        return mutated(draw, new) if draw.random() < 0.4 else new

    def read(given: bytes) -> None:
        pixels = pathfinder._decode(given, "imgs/1/sample_1.png", 32)
        assert (pixels.shape, pixels.dtype) == ((32, 32), np.uint8)

    attack("PNG", chunk, make, read, tally, names="imgs/1/sample_1.png")
