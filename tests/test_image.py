"""Image: TensorFlow's grey and TFDS's order without TensorFlow, the published files, and the whole command."""

import hashlib
import io
import signal
import struct
import tarfile
import threading
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lra import data, prepare
from lra.tasks import image
from lra.tasks.base import Documents, Place, Reading
from lra.tasks.image import Image, grey, order
from tests.test_download import held, serving
from tests.test_prepare import WITHOUT_TENSORFLOW, run, start

SYNTHETIC = ("task=image", "task.source=synthetic")
FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
SPLIT_NAMES = {"train": "train", "val": "validation", "test": "test"}
SMALL = 10  # records in a file made here
NO_NETWORK = """
import socket
def refuse(*arguments, **options): raise socket.gaierror(-2, 'Name or service not known')
socket.getaddrinfo = socket.create_connection = refuse"""


def single(value: float) -> float:
    """A double rounded to single precision."""
    return struct.unpack("<f", struct.pack("<f", value))[0]


def scalar_grey(red: int, green: int, blue: int) -> int:
    """One colour, in Python's doubles: a sum or product of singles, made there and rounded, is that of singles."""
    light = 0.0
    for value, weight in ((red, 0.2989), (green, 0.5870), (blue, 0.1140)):
        light = single(light + single(single(value * single(1 / 255)) * single(weight)))
    return int(single(light * 255.5))


def test_a_colour_turns_grey_by_the_law_in_single_precision() -> None:
    levels = (*range(0, 256, 11), 1, 2, 127, 128, 254)
    colours = np.array(list(product(levels, repeat=3)), dtype=np.uint8)
    expected = [scalar_grey(*colour) for colour in colours.tolist()]
    assert grey(*colours.T).tolist() == expected


def test_all_colours_turn_grey_as_in_tensorflow() -> None:
    green, blue = (plane.astype(np.uint8) for plane in np.indices((256, 256)))
    other = 0
    digest = hashlib.sha256()
    for red in range(256):
        plane = grey(np.full_like(green, red), green, blue)
        digest.update(plane.tobytes())
        double = np.floor((red / 255 * 0.2989 + green / 255 * 0.5870 + blue / 255 * 0.1140) * 255.5)
        other += int((plane != double).sum())
    # TensorFlow differs from double precision for so many of all colours.
    assert other == 237
    assert digest.hexdigest() == "824a76d81dad2c5a2cf1fa0b2c0a5afe7d871ec2970e4fa2809b53ddbecdca93"


def test_what_is_grey_stays_as_it_is() -> None:
    values = np.arange(256, dtype=np.uint8)
    assert grey(values, values, values).tolist() == list(range(256))
    assert grey(values, values, values).dtype == np.uint8


def test_pure_colours_have_the_weights_of_their_channels() -> None:
    red, green, blue = np.eye(3, dtype=np.uint8) * 255
    assert grey(red, green, blue).tolist() == [int(0.2989 * 255.5), int(0.5870 * 255.5), int(0.1140 * 255.5)]


def test_the_order_is_that_of_the_benchmark() -> None:
    places = order("train", 50_000)
    assert places[:5].tolist() == [16399, 1680, 47917, 17307, 27051]
    assert places[45_000:45_005].tolist() == [13431, 9237, 17462, 32685, 9518]
    assert sorted(places.tolist()) == list(range(50_000))
    assert order("test", 10_000)[:3].tolist() != [place for place in places.tolist() if place < 10_000][:3]


def test_the_order_is_that_in_which_tfds_writes_what_it_shuffles(tmp_path: Path) -> None:
    import tensorflow_datasets as tfds

    class Numbers(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = "numbers"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"number": np.int64}))

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {"train": self._generate_examples(50), "test": self._generate_examples(20)}

        def _generate_examples(self, count: int) -> Any:
            return ((number, {"number": number}) for number in range(count))

    built = Numbers(data_dir=tmp_path, file_format="array_record")
    prepare._records(built)
    for split, count in (("train", 50), ("test", 20)):
        records = built.as_data_source(split=split)
        assert [int(records[place]["number"]) for place in range(count)] == order(split, count).tolist()


# The published files, in archives and folders made here.


def batch(seed: int, labels: list[int] | None = None) -> bytes:
    """A file of SMALL random pictures."""
    draw = np.random.default_rng(seed)
    records = draw.integers(0, 256, (SMALL, image.RECORD_BYTES), dtype=np.uint8)
    records[:, 0] = draw.integers(0, 10, SMALL) if labels is None else labels
    return records.tobytes()


GOOD = {file: batch(seed) for seed, file in enumerate(FILES)}


def packed(manual: Path, files: dict[str, bytes], prefix: str = "") -> Path:
    """An archive as published, with more in it."""
    manual.mkdir(parents=True, exist_ok=True)
    others = {"._data_batch_1.bin": b"junk", "batches.meta.txt": b"airplane\n", "readme.html": b"<html>"}
    with tarfile.open(manual / "cifar-10-binary.tar.gz", "w:gz", compresslevel=1) as archive:
        folder = tarfile.TarInfo(f"{prefix}cifar-10-batches-bin")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for name, content in {**others, **files}.items():
            member = tarfile.TarInfo(f"{prefix}cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return manual / "cifar-10-binary.tar.gz"


def unpacked(manual: Path, files: dict[str, bytes]) -> Path:
    folder = manual / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for name, content in {"._data_batch_1.bin": b"junk", "readme.html": b"<html>", **files}.items():
        (folder / name).write_bytes(content)
    return folder


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def small(archive: Path) -> str:
    """Statements by which a process takes an archive made here for the published one."""
    digest = sha256(archive.read_bytes())
    return (
        f"{WITHOUT_TENSORFLOW}\nfrom lra.tasks import image; image.RECORDS = {SMALL}\n"
        f"image.CIFAR = image.CIFAR._replace(sha256={digest!r})"
    )


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "RECORDS", SMALL)


def gathered(reading: Reading) -> dict[str, list[tuple[bytes, int]]]:
    """(pixels, label) of every picture of every split."""

    def examples(block: Documents) -> list[tuple[bytes, int]]:
        np.testing.assert_array_equal(np.diff(block.offsets), 1_024)
        pictures = block.tokens.reshape(-1, 1_024)
        return [(picture.tobytes(), int(label)) for picture, label in zip(pictures, block.labels, strict=True)]

    return {split: [each for block in blocks for each in examples(block)] for split, blocks in reading.blocks.items()}


@cache
def expected() -> dict[str, list[tuple[bytes, int]]]:
    """The splits of GOOD, record by record and pixel by pixel."""

    def example(record: bytes) -> tuple[bytes, int]:
        planes = record[1:1025], record[1025:2049], record[2049:]
        return bytes(scalar_grey(*colour) for colour in zip(*planes, strict=True)), record[0]

    joined = b"".join(GOOD[file] for file in FILES[:5])
    train, test = (
        [example(content[start : start + 3_073]) for start in range(0, len(content), 3_073)]
        for content in (joined, GOOD["test_batch.bin"])
    )
    shuffled = [train[place] for place in order("train", 50)]
    return {"train": shuffled[:45], "validation": shuffled[45:], "test": [test[place] for place in order("test", 10)]}


@pytest.mark.usefixtures("few")
def test_archive_and_folder_hold_the_same_pictures_in_the_benchmarks_splits(tmp_path: Path) -> None:
    readings = [
        image.read_batches(put)
        for put in (
            packed(tmp_path / "a", GOOD),
            packed(tmp_path / "b", dict(reversed(GOOD.items())), prefix="./"),
            unpacked(tmp_path / "c", GOOD),
        )
    ]
    for reading in readings:
        assert reading.counts == {"train": 45, "validation": 5, "test": 10}
        assert gathered(reading) == expected()
        assert reading.provenance["sha256"] == {file: sha256(GOOD[file]) for file in FILES}
        assert list(reading.provenance["sha256"]) == list(FILES)


def test_the_splits_are_as_large_as_published() -> None:
    assert image.RECORDS * 5 * 9 // 10 == 45_000
    assert (image.CIFAR.size, image.CIFAR.name) == (170_052_171, "cifar-10-binary.tar.gz")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("put", [packed, unpacked])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD["data_batch_3.bin"][:-1], "has 30,729 bytes, expected 30,730"),
        (GOOD["data_batch_3.bin"] + b"0" * 3_073, "has more than 30,730 bytes, expected 30,730"),
        (b"", "has 0 bytes, expected 30,730"),
        (batch(0, [0] * 7 + [10, 255, 0]), ", record 8: label 10, expected 0..9"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(
    tmp_path: Path, put: Callable[[Path, dict[str, bytes]], Path], content: bytes, says: str
) -> None:
    place = put(tmp_path, {**GOOD, "data_batch_3.bin": content})
    name = f"{place}: cifar-10-batches-bin/data_batch_3.bin"
    with pytest.raises(ValueError) as caught:
        image.read_batches(place)
    assert str(caught.value) == (f"{name}{says}" if says.startswith(",") else f"{name} {says}")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("put", [packed, unpacked])
@pytest.mark.parametrize("missing", ["data_batch_4.bin", "test_batch.bin"])
def test_a_missing_file_is_named(tmp_path: Path, put: Callable[[Path, dict[str, bytes]], Path], missing: str) -> None:
    place = put(tmp_path, {name: content for name, content in GOOD.items() if name != missing})
    with pytest.raises(ValueError) as caught:
        image.read_batches(place)
    assert str(caught.value) == f"{place} holds no cifar-10-batches-bin/{missing}"


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9])
def test_an_archive_cut_short_is_one_line(tmp_path: Path, share: float) -> None:
    place = packed(tmp_path, GOOD)
    place.write_bytes(place.read_bytes()[: int(share * place.stat().st_size)])
    with pytest.raises(ValueError, match=r"^\S+ (is broken or cut short \(.*\)|holds no \S+)$"):
        image.read_batches(place)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("at", range(3))
def test_a_corrupt_header_of_the_archive_is_one_line(tmp_path: Path, at: int) -> None:
    place = packed(tmp_path, GOOD)
    whole = place.read_bytes()
    place.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
    with pytest.raises(ValueError, match=r"^\S+ is broken or cut short \(.*\)$"):
        image.read_batches(place)


@pytest.mark.usefixtures("few")
def test_corrupt_bytes_inside_the_archive_end_in_nothing_but_one_line(tmp_path: Path) -> None:
    place = packed(tmp_path, GOOD)
    whole = place.read_bytes()
    said = []
    for at in range(20, len(whole) - 2_000, len(whole) // 12):
        place.write_bytes(whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :])
        try:
            image.read_batches(place)
        except ValueError as error:
            said.append(str(error))
    assert said
    assert {(message.startswith(str(place)), len(message.splitlines())) for message in said} == {(True, 1)}


def test_a_wrong_checksum_is_one_line_and_the_file_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = packed(tmp_path / "manual", GOOD)
    before = place.read_bytes()
    assert prepare.main(["task=image", f"data_dir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err == (
        f"error: {place} has sha256 {sha256(before)}, the published file has {image.CIFAR.sha256}: "
        f"delete it, and it is fetched again from {image.CIFAR.address}\n"
    )
    assert place.read_bytes() == before
    assert inside(tmp_path) == {"manual/cifar-10-binary.tar.gz"}


# The whole command.


def inside(data_dir: Path) -> set[str]:
    """The files in a data_dir, but for the locks and a name that TFDS keeps."""
    found = {str(path.relative_to(data_dir)) for path in data_dir.rglob("*") if not path.is_dir()}
    return {name for name in found if not name.endswith((".lock", ".config/metadata.json"))}


def test_the_command_prepares_archive_and_folder_alike_without_tensorflow(tmp_path: Path) -> None:
    archive = packed(tmp_path / "a" / "manual", GOOD)
    unpacked(tmp_path / "b" / "manual", GOOD)
    found = []
    for where in ("a", "b"):
        code, out, err = run(tmp_path / where, "task=image", first=small(archive) + NO_NETWORK)
        assert (code, err) == (0, "")
        assert "45 train, 5 val, 10 test, 61,440 tokens" in out
        found.append(data.load(tmp_path / where, Image(), "cifar10"))
    assert found[0].manifest["sha256"] == found[1].manifest["sha256"]
    for name, split in SPLIT_NAMES.items():
        arrays = getattr(found[0], name)
        pictures = [picture.tobytes() for picture in arrays.tokens.reshape(-1, 1_024)]
        assert list(zip(pictures, arrays.labels.tolist(), strict=True)) == expected()[split]
    manifest = found[0].manifest
    assert (manifest["kind"], manifest["max_len"], manifest["classes"]) == ("pixels", 1_024, 10)
    assert manifest["vocabulary"] == [str(value) for value in range(256)]


def test_the_command_downloads_what_is_missing(tmp_path: Path) -> None:
    archive = packed(tmp_path / "published", GOOD)
    content = archive.read_bytes()

    def reply(handler: Any) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(content)

    with serving(reply) as server:
        first = f"{small(archive)}\nimage.CIFAR = image.CIFAR._replace(address={server.address!r}, size={len(content)})"
        first += "\nimport os; os.environ['no_proxy'] = '*'"
        code, out, err = run(tmp_path / "data", "task=image", first=first)
        assert (code, err) == (0, "")
        assert out.splitlines()[0] == "downloading cifar-10-binary.tar.gz: 0 MB"
        assert run(tmp_path / "data", "task=image", first=first)[0] == 0
    assert server.requests == 1
    assert (tmp_path / "data" / "manual" / "cifar-10-binary.tar.gz").read_bytes() == content


def test_without_a_network_one_line_says_what_to_put_where(tmp_path: Path) -> None:
    code, out, err = run(tmp_path / "data", "task=image", first=WITHOUT_TENSORFLOW + NO_NETWORK)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    address = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    place = tmp_path / "data" / "manual" / "cifar-10-binary.tar.gz"
    assert err.startswith(f"error: {address} cannot be reached (")
    assert err.endswith(f": download {address} (170 MB) to {place}; task.source=synthetic needs no download\n")
    assert inside(tmp_path) == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_download_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    release = threading.Event()
    with serving(held(600_000, release)) as server:
        first = f"""
from lra.tasks import image; image.CIFAR = image.CIFAR._replace(address={server.address!r}, size=1_024_000)
import os; os.environ['no_proxy'] = '*'
from lra.tasks import download; piece = download._piece
def told(*arguments):
    got = piece(*arguments); print('got', file=sys.__stdout__, flush=True); return got
download._piece = told"""
        try:
            with start(tmp_path, "task=image", first=first) as process:
                assert process.stdout is not None
                while process.stdout.readline() != "got\n":
                    assert process.poll() is None
                assert inside(tmp_path) == {"manual/.cifar-10-binary.tar.gz.part"}
                process.send_signal(number)
                _, err = process.communicate()
        finally:
            release.set()
    assert process.returncode == 128 + number
    assert err == f"stopped by {number.name}: nothing half-written is left\n"
    assert inside(tmp_path) == set()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with the synthetic source, prepared without TensorFlow and without a network."""
    data_dir = tmp_path_factory.mktemp("image")
    code, out, err = run(data_dir, *SYNTHETIC, first=WITHOUT_TENSORFLOW + NO_NETWORK)
    assert (code, err) == (0, "")
    assert "1,024 train, 256 val, 256 test, 1,572,864 tokens" in out
    return data_dir


def test_the_synthetic_arrays_are_what_the_task_makes(prepared: Path) -> None:
    loaded = data.load(prepared, Image(), "synthetic")
    for name, split in SPLIT_NAMES.items():
        made = image.synthesize(image.SEED, split, image.SYNTHETIC_COUNTS[split])
        for key, array in made._asdict().items():
            np.testing.assert_array_equal(getattr(getattr(loaded, name), key), array)


def test_the_doctor_tells_the_place_of_the_patch_from_its_brightness(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main(["--doctor", *SYNTHETIC, f"data_dir={prepared}"]) == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    answers = {cells[0]: cells[1] for cells in rows if len(cells) == 2}
    nearest = "accuracy on test of the nearest class mean, fitted on train"
    assert float(answers[f"{nearest}: pixels"].rstrip("%")) > 90
    # Three standard errors above one of ten, over 256 pictures.
    assert float(answers[f"{nearest}: histogram of pixels"].rstrip("%")) < 15.7


def test_the_nearest_class_mean_is_found_by_distance() -> None:
    def split(values: list[int], labels: list[int]) -> data.Split:
        tokens = np.repeat(np.array(values, dtype=np.uint8), 1_024)
        return data.Split(tokens, np.arange(len(values) + 1) * 1_024, np.array(labels, dtype=np.uint8))

    train = split([10, 20, 100, 250], [3, 3, 0, 7])  # means 15, 100 and 250
    test = split([0, 57, 58, 174, 176, 255], [3, 3, 0, 0, 0, 9])
    assert image.nearest_mean(train, test, lambda pictures: pictures.astype(np.float64)) == 4 / 6
    counts = image.histogram(train.tokens.reshape(-1, 1_024))
    assert counts.shape == (4, 256)
    assert [(row.argmax(), row.max(), row.sum()) for row in counts] == [
        (value, 1_024, 1_024) for value in (10, 20, 100, 250)
    ]


def test_synthetic_pictures_hold_one_patch_whose_place_is_the_label() -> None:
    tokens, offsets, labels = image.synthesize(0, "train", 500)
    assert offsets.tolist() == list(range(0, 501 * 1_024, 1_024))
    assert set(labels.tolist()) == set(range(10))
    assert set(tokens.tolist()) == {0, 64, 192}
    assert 0.05 < (tokens == 0).mean() < 0.075
    for picture, label in zip(tokens.reshape(-1, 32, 32), labels.tolist(), strict=True):
        rows, columns = np.nonzero(picture == 192)
        assert (np.ptp(rows) < 10, np.ptp(columns) < 6) == (True, True)
        assert 16 * (label // 5) <= rows.min() <= rows.max() < 16 * (label // 5) + 16
        assert 6 * (label % 5) <= columns.min() <= columns.max() < 6 * (label % 5) + 8


def test_the_synthetic_bytes_are_those_of_every_other_machine() -> None:
    digest = hashlib.sha256()
    for split in ("train", "validation", "test"):
        for array in image.synthesize(image.SEED, split, 64):
            digest.update(data.content_sha256(array).encode())
    assert digest.hexdigest() == "35020b064410052f34746bd6046a63e239530453b47681191fcaf9bb4d3a8536"


def test_there_are_no_options_and_two_sources(tmp_path: Path) -> None:
    assert (Image.sources, Image.defaults(), Image.kind) == (("cifar10", "synthetic"), {}, "pixels")
    reading = Image().read("synthetic", Place(tmp_path, tmp_path))
    assert reading.counts == {"train": 1_024, "validation": 256, "test": 256}
    assert {split: len(next(iter(blocks)).labels) for split, blocks in reading.blocks.items()} == reading.counts
