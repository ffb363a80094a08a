"""Pathfinder and Path-X: the images made here, the published archive, bars for tests, and what a sceptic asks."""

import io
import random
import signal
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from lra import data, prepare
from lra.tasks import TASKS, archive, pathfinder, snakes, task
from lra.tasks.base import Documents, Place
from lra.tasks.pathfinder import Pathfinder, PathX
from lra.words import WordError
from tests.runs import ROOT
from tests.test_prepare import WITHOUT_TENSORFLOW, inside, run, start

SPLITS = {"train": "train", "val": "validation", "test": "test"}


def images(blocks: Iterable[Documents], resolution: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """(n, resolution, resolution) pixels and (n,) labels of all blocks."""
    pixels, labels = [], []
    for tokens, offsets, block_labels in blocks:
        assert tokens.dtype == block_labels.dtype == np.uint8
        np.testing.assert_array_equal(offsets, np.arange(len(block_labels) + 1) * resolution**2)
        pixels.append(tokens.reshape(-1, resolution, resolution))
        labels.append(block_labels)
    return np.concatenate(pixels), np.concatenate(labels)


def left(data_dir: Path) -> set[str]:
    """What a preparation leaves in a data_dir, but for what TFDS keeps of its own."""
    return inside(data_dir) - {"tfds/lra_pathfinder/.config/metadata.json"}


# The task and its options.


def test_the_tasks_are_images_of_pixel_values() -> None:
    assert (Pathfinder().max_len, PathX().max_len) == (1_024, 16_384)
    for kind in (Pathfinder, PathX):
        assert (kind.kind, kind.classes, kind.sources) == ("pixels", 2, ("generated", "release", "synthetic"))
        assert kind.vocabulary == tuple(str(value) for value in range(256))


def test_path_x_is_pathfinder_of_128_pixels() -> None:
    assert PathX().config("generated") == "generated"
    assert Pathfinder(resolution=128).config("generated") == "generated,resolution=128"
    assert PathX(difficulty="easy").words("release") == "task=pathx task.source=release task.difficulty=easy"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"resolution": 48}, "task.resolution=48 is not one of 32, 64, 128, 256"),
        ({"resolution": 32.5}, "task.resolution=32.5 must be a whole number"),
        ({"resolution": True}, "task.resolution=True must be a whole number"),
        ({"resolution": None}, "task.resolution=None must be a whole number"),
        ({"difficulty": "hrad"}, "task.difficulty=hrad is not one of easy, intermediate, hard; did you mean 'hard'?"),
        ({"difficulty": None}, "task.difficulty=None is not one of easy, intermediate, hard"),
    ],
)
@pytest.mark.parametrize("name", ["pathfinder", "pathx"])
def test_a_wrong_option_is_named_with_what_there_is(name: str, words: dict[str, Any], says: str) -> None:
    with pytest.raises(WordError) as caught:
        task({"name": name, **words})
    assert str(caught.value).startswith(says)


@pytest.mark.parametrize("name", ["pathfinder", "pathx"])
def test_the_configuration_names_every_option_with_its_default(name: str) -> None:
    words = yaml.safe_load((ROOT / "conf" / "task" / f"{name}.yaml").read_text())
    kind = TASKS[name]
    assert words == kind.defaults() | {
        "name": name, "source": "generated", "version": kind.version, "mask_zero_pixels": False
    }  # fmt: skip


# Images made here.


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The generated source with few images, in several blocks."""
    counts = {"train": 70, "validation": 20, "test": 10}
    monkeypatch.setattr(pathfinder, "COUNTS", counts)
    monkeypatch.setattr(snakes, "block_size", lambda resolution: 16)
    return counts


def test_as_many_images_are_made_as_were_published() -> None:
    assert pathfinder.COUNTS == {"train": 160_000, "validation": 20_000, "test": 20_000}


@pytest.mark.parametrize("chosen", [Pathfinder(), Pathfinder(resolution=64, difficulty="easy"), PathX()])
def test_the_splits_are_consecutive_images_of_the_generator(
    few: dict[str, int], tmp_path: Path, chosen: Pathfinder
) -> None:
    reading = chosen.read("generated", Place(tmp_path, tmp_path))
    assert reading.counts == few
    first = tries = 0
    for split, count in few.items():
        made = snakes.generate(pathfinder.SEED, chosen.resolution, chosen.difficulty, first, count)
        pixels, labels = images(reading.blocks[split], chosen.resolution)
        np.testing.assert_array_equal(pixels, made.pixels)
        np.testing.assert_array_equal(labels, made.labels)
        first, tries = first + count, tries + int(made.facts.tries.sum())
    dashes = {"easy": 6, "hard": 14}[chosen.difficulty]
    assert reading.provenance == {"seed": pathfinder.SEED, "dashes": dashes, "tries": tries}


def test_any_number_of_threads_makes_the_same_data(
    few: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifests = []
    for threads, size in ((1, 16), (3, 16), (2, 7)):
        monkeypatch.setattr(snakes, "processors", lambda threads=threads: threads)
        monkeypatch.setattr(snakes, "block_size", lambda resolution, size=size: size)
        where = tmp_path / f"{threads}-{size}"
        assert prepare.main(["task=pathfinder", f"data_dir={where}"]) == 0
        manifests.append(data.load(where, Pathfinder(), "generated").manifest)
    assert manifests[0] == manifests[1] == manifests[2]
    assert manifests[0]["provenance"]["tries"] > 100


def test_without_a_compiler_one_line_says_so_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, _, err = run(tmp_path, "task=pathfinder")
    assert code == 2
    assert err.startswith("error: ")
    assert "no-such-compiler" in err
    assert len(err.splitlines()) == 1
    assert left(tmp_path) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_images_are_made_ends_it_with_nothing_left(tmp_path: Path, number: signal.Signals) -> None:
    # 64 x 64 hard is the slowest setting: 200,000 of them take many minutes.
    with start(tmp_path, "task=pathfinder", "task.resolution=64") as process:
        assert process.stdout is not None
        while process.stdout.readline() != "making examples: 200,000\n":
            assert process.poll() is None
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert err == f"stopped by {number.name}: nothing half-written is left\n"
    assert left(tmp_path) == set()


def test_a_generator_that_fails_leaves_nothing(
    few: dict[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*numbers: Any) -> snakes.Images:
        if numbers[3] >= 32:
            raise ValueError("image 32 cannot be made")
        return made(*numbers)

    made = snakes.generate
    monkeypatch.setattr(snakes, "generate", fail)
    assert prepare.main(["task=pathfinder", f"data_dir={tmp_path}"]) == 2
    assert capsys.readouterr().err == "error: image 32 cannot be made\n"
    assert left(tmp_path) == set()


# Bars for tests.


@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
def test_a_synthetic_bar_is_whole_where_the_label_says_so(resolution: int) -> None:
    count = 64
    pixels, labels = images(pathfinder.synthesize(0, "train", resolution, count), resolution)
    assert len(pixels) == count
    assert set(np.unique(pixels)) == {0, 128, 255}
    zoom = resolution // 32
    seen = set()
    for image, label in zip(pixels[:, ::zoom, ::zoom], labels, strict=True):
        rows, columns = np.nonzero(image)
        box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        bar = box if len(box) == 3 else box.T
        assert bar.shape[0] == 3
        assert 16 <= bar.shape[1] <= 24
        assert (bar[:, [0, 1, 2, -3, -2, -1]] == 255).all()
        assert (bar[:, 3:-3] > 0).all() == label
        seen.add((len(box) == 3, int(label)))
    np.testing.assert_array_equal(pixels, pixels[:, ::zoom, ::zoom].repeat(zoom, axis=1).repeat(zoom, axis=2))
    assert len(seen) == 4


def test_synthetic_images_depend_on_seed_and_split() -> None:
    def first(seed: int, split: str) -> bytes:
        return images(pathfinder.synthesize(seed, split, 32, 8))[0].tobytes()

    assert first(0, "train") == first(0, "train")
    assert len({first(seed, split) for seed in (0, 1) for split in pathfinder.COUNTS}) == 6


# The whole command.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with the synthetic source, prepared where TensorFlow cannot be imported; never to be changed."""
    data_dir = tmp_path_factory.mktemp("prepared")
    code, out, err = run(data_dir, "task=pathfinder", "task.source=synthetic", first=WITHOUT_TENSORFLOW)
    assert (code, err) == (0, "")
    assert "1,024 train, 256 val, 256 test, 1,572,864 tokens" in out.splitlines()[-1]
    return data_dir


def test_the_command_writes_what_the_task_makes(prepared: Path) -> None:
    loaded = data.load(prepared, Pathfinder(), "synthetic")
    assert (loaded.manifest["kind"], loaded.manifest["max_len"], loaded.manifest["options"]) == ("pixels", 1_024, {})
    for name, split in SPLITS.items():
        arrays = getattr(loaded, name)
        made = pathfinder.synthesize(pathfinder.SEED, split, 32, len(arrays.labels))
        assert images([Documents(*arrays[:3])])[0].tobytes() == images(made)[0].tobytes()
        assert abs(arrays.labels.mean() - 0.5) < 0.1


def test_the_doctor_says_what_brightness_gives_away(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--doctor", "task=pathfinder", "task.source=synthetic", f"data_dir={prepared}"]) == 0
    rows = dict(
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.splitlines()
        if line.count("|") == 3
    )
    test = data.load(prepared, Pathfinder(), "synthetic").test
    lit = test.tokens.reshape(-1, 1_024) > 0
    shares = [lit[test.labels == label].mean() for label in (0, 1)]
    assert rows["share of non-zero pixels, mean of test"] == (
        f"{lit.mean():.3f} ({shares[0]:.3f} of label 0, {shares[1]:.3f} of label 1)"
    )
    # A bar with a gap is darker than any without.
    assert rows["accuracy on test of a threshold on that share, fitted on train"] == "100.0%"


@pytest.mark.parametrize(
    ("train", "labels", "test", "answers", "right"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], [2, 3, 9, 0], [0, 1, 1, 0], 1.0),
        ([1, 2, 3, 4], [1, 1, 0, 0], [2, 3, 9, 0], [1, 0, 0, 1], 1.0),
        ([1, 2, 3, 4], [1, 1, 0, 0], [2, 3, 9, 0], [0, 1, 1, 0], 0.0),
        # One value alone says nothing: all of train's more frequent label.
        ([5, 5, 5, 5], [1, 1, 1, 0], [5, 6, 4, 5], [1, 1, 1, 0], 0.75),
        ([5, 5, 5, 5], [0, 1, 0, 0], [5, 5, 5, 5], [0, 0, 0, 0], 1.0),
        ([1, 2, 3], [1, 1, 1], [0, 2, 4], [1, 1, 1], 1.0),
        ([1, 2, 3], [0, 0, 0], [0, 2, 3], [0, 0, 0], 1.0),
    ],
)
def test_the_best_threshold_of_train_is_scored_on_test(
    train: list[int], labels: list[int], test: list[int], answers: list[int], right: float
) -> None:
    found = pathfinder.threshold_accuracy(np.array(train), np.array(labels), np.array(test), np.array(answers))
    assert found == right


def test_no_threshold_does_better_on_what_it_was_fitted_to() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        values, labels = draw.integers(0, 9, 30), draw.integers(0, 2, 30)
        cuts = [(values > cut) == label for cut in range(-1, 9) for label in (0, 1)]
        best = max(float((cut == labels).mean()) for cut in cuts)
        assert pathfinder.threshold_accuracy(values, labels, values, labels) == best


# The published archive, made here.

ROOTS = {"easy": "curv_baseline", "intermediate": "curv_contour_length_9", "hard": "curv_contour_length_14"}


def png(pixels: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def pixels_of(folder: int, sample: int, resolution: int = 32) -> np.ndarray:
    """An image of which no two are equal."""
    image = np.random.default_rng([folder, sample]).integers(0, 256, (resolution, resolution), dtype=np.uint8)
    return image * (image > 180)


def label_of(folder: int, sample: int) -> int:
    return (folder + sample * 7) // 3 % 2


def line(folder: int, sample: int, label: Any = None) -> str:
    label = label_of(folder, sample) if label is None else label
    return f"imgs/{folder} sample_{sample}.png {sample} {label} 1.0 14 4 2 0.5 1 1\n"


def published(resolution: int = 32, difficulty: str = "hard", folders: int = 3, samples: int = 15) -> dict[str, bytes]:
    """The files of one setting by their names below lra_release/."""
    root = f"pathfinder{resolution}/{ROOTS[difficulty]}"
    files = {}
    for folder in range(folders):
        # The order of the lines is not that of the names.
        order = random.Random(folder).sample(range(samples), samples)
        files[f"{root}/metadata/{folder}.npy"] = "".join(line(folder, sample) for sample in order).encode()
        for sample in range(samples):
            files[f"{root}/imgs/{folder}/sample_{sample}.png"] = png(pixels_of(folder, sample, resolution))
    return files


HARD = "pathfinder32/curv_contour_length_14"
GOOD = published()
JUNK = {
    f"{HARD}/imgs/0/._sample_0.png": b"\x00\x05\x16\x07",
    f"{HARD}/metadata/._0.npy": b"\x00\x05\x16\x07",
    f"{HARD}/.DS_Store": b"junk",
    f"{HARD}/imgs/0/Thumbs.db": b"junk",
    "pathfinder32/curv_baseline/imgs/0/sample_172.png": b"",
    "pathfinder32/curv_baseline/metadata/0.npy": b"of another setting",
    "pathfinder128/curv_contour_length_14/metadata/0.npy": b"of another setting",
    "listops-1000/basic_train.tsv": b"of another task",
}


def pack(
    manual: Path, files: Mapping[str, bytes] | Iterable[tuple[str, bytes]], folder: str = "lra_release/lra_release/"
) -> Path:
    manual.mkdir(parents=True, exist_ok=True)
    with tarfile.open(manual / "lra_release.gz", "w:gz", compresslevel=1) as packed:
        for name, content in files.items() if isinstance(files, Mapping) else files:
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return manual / "lra_release.gz"


def unpack(manual: Path, files: Mapping[str, bytes], folder: str = "") -> Path:
    for name, content in files.items():
        file = manual / folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return manual / folder / HARD


def read(manual: Path, chosen: Pathfinder | None = None) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(pixels, labels) of every split of the release in `manual`."""
    chosen = chosen or Pathfinder()
    scratch = manual / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    reading = chosen.read("release", Place(manual, scratch))
    found = {split: images(blocks, chosen.resolution) for split, blocks in reading.blocks.items()}
    assert {split: len(labels) for split, (_, labels) in found.items()} == reading.counts
    return found


def same(one: dict[str, tuple[np.ndarray, np.ndarray]], other: dict[str, tuple[np.ndarray, np.ndarray]]) -> bool:
    return all(np.array_equal(a, b) for split in one for a, b in zip(one[split], other[split], strict=True))


def by_tfds(
    folder: Path, files: Mapping[str, bytes], resolution: int, difficulty: str
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The same by a builder of tensorflow_datasets that shuffles, with the benchmark's keys, slices and filter."""
    import tensorflow_datasets as tfds

    root = f"pathfinder{resolution}/{ROOTS[difficulty]}"

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = "judge"
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            features = tfds.features.FeaturesDict(
                {"image": tfds.features.Text(), "label": tfds.features.ClassLabel(num_classes=2)}
            )
            return tfds.core.DatasetInfo(builder=self, features=features)

        def _split_generators(self, manager: Any) -> Any:
            return {difficulty: self._generate_examples()}

        def _generate_examples(self) -> Any:
            for name, content in files.items():
                if name.startswith(f"{root}/metadata/"):
                    for number, each in enumerate(content.decode().split("\n")[:-1], start=1):
                        fields = each.split(" ")
                        example = {"image": files[f"{root}/{fields[0]}/{fields[1]}"], "label": int(fields[3])}
                        yield "_".join([*fields[:2], str(number)]), example

    tfds.disable_progress_bar()
    built = Builder(data_dir=folder, file_format="array_record")
    built.download_and_prepare()
    found = {}
    for split, percent in (("train", "[:80%]"), ("validation", "[80%:90%]"), ("test", "[90%:]")):
        records = built.as_data_source(split=f"{difficulty}{percent}")
        kept = [record for record in (records[i] for i in range(len(records))) if len(record["image"]) > 0]
        pixels = [np.asarray(Image.open(io.BytesIO(record["image"]))) for record in kept]
        found[split] = np.stack(pixels), np.array([record["label"] for record in kept], dtype=np.uint8)
    return found


@pytest.mark.parametrize(
    ("resolution", "difficulty", "folders", "samples"),
    [(32, "hard", 3, 15), (32, "easy", 1, 25), (64, "intermediate", 5, 11)],
)
def test_order_and_split_are_those_that_tensorflow_datasets_gives_the_benchmark(
    tmp_path: Path, resolution: int, difficulty: str, folders: int, samples: int
) -> None:
    files = published(resolution, difficulty, folders, samples)
    # An empty file counts when the splits are cut.
    files[f"pathfinder{resolution}/{ROOTS[difficulty]}/imgs/0/sample_7.png"] = b""
    pack(tmp_path, files)
    chosen = Pathfinder(resolution=resolution, difficulty=difficulty)
    found = read(tmp_path, chosen)
    assert same(found, by_tfds(tmp_path / "judge", files, resolution, difficulty))
    assert sum(len(labels) for _, labels in found.values()) == folders * samples - 1


@pytest.mark.parametrize("order", ["images first", "metadata first", "mixed"])
@pytest.mark.parametrize("prefix", ["lra_release/lra_release/", "./lra_release/", ""])
def test_the_archive_is_read_in_any_order_of_its_members(tmp_path: Path, order: str, prefix: str) -> None:
    files = list({**GOOD, **JUNK}.items())
    if order == "mixed":
        random.Random(0).shuffle(files)
    else:
        files.sort(key=lambda file: ("metadata" in file[0]) == (order == "images first"))
    pack(tmp_path / "one", files, prefix)
    pack(tmp_path / "other", GOOD)
    assert same(read(tmp_path / "one"), read(tmp_path / "other"))


def test_every_image_comes_once_with_its_label(tmp_path: Path) -> None:
    pack(tmp_path, GOOD)
    found = {
        image.tobytes(): int(label)
        for pixels, labels in read(tmp_path).values()
        for image, label in zip(pixels, labels, strict=True)
    }
    assert found == {
        pixels_of(folder, sample).tobytes(): label_of(folder, sample) for folder in range(3) for sample in range(15)
    }


@pytest.mark.parametrize("folder", ["lra_release/lra_release", "lra_release", ""])
def test_the_unpacked_folder_reads_as_the_archive_does(tmp_path: Path, folder: str) -> None:
    pack(tmp_path / "packed", GOOD)
    unpack(tmp_path / "unpacked", {**GOOD, **JUNK}, folder)
    assert same(read(tmp_path / "packed"), read(tmp_path / "unpacked"))


def test_line_ends_and_spaces_change_nothing(tmp_path: Path) -> None:
    odd = {
        name: content.replace(b"\n", b"\r\n").replace(b" 1.0 ", b"  1.0\t").removesuffix(b"\r\n")
        if name.endswith(".npy")
        else content
        for name, content in GOOD.items()
    }
    pack(tmp_path / "plain", GOOD)
    pack(tmp_path / "odd", odd)
    assert same(read(tmp_path / "plain"), read(tmp_path / "odd"))


def test_images_are_decoded_in_blocks_of_any_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path, GOOD)
    whole = read(tmp_path)
    for pixels in (1, 5 * 1_024):
        monkeypatch.setattr(pathfinder, "BLOCK_PIXELS", pixels)
        assert same(whole, read(tmp_path))


def test_empty_files_are_counted_and_nothing_else_is_lost(tmp_path: Path) -> None:
    empty = {f"{HARD}/imgs/{folder}/sample_3.png": b"" for folder in (0, 2)}
    pack(tmp_path, GOOD | empty)
    reading = Pathfinder().read("release", Place(tmp_path, tmp_path))
    assert reading.provenance == {"place": "lra_release.gz", "empty": 2, "published": pathfinder.COUNTS}
    assert sum(reading.counts.values()) == 43


def changed(name: str, content: bytes | None) -> dict[str, bytes]:
    """The files with one of them put in or, for None, left out."""
    files = {**GOOD, f"{HARD}/{name}": content}
    return {name: content for name, content in files.items() if content is not None}


def with_line(number: int, text: str) -> dict[str, bytes]:
    """The files with another line in metadata/1.npy."""
    lines = GOOD[f"{HARD}/metadata/1.npy"].decode().splitlines(keepends=True)
    lines[number - 1] = text
    return changed("metadata/1.npy", "".join(lines).encode())


def array(rows: list[list[str]]) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array(rows))
    return file.getvalue()


SAMPLE = "imgs/2/sample_4.png"
GREY = pixels_of(2, 4)
PHOTO = io.BytesIO()
Image.fromarray(GREY).save(PHOTO, "JPEG")
BROKEN = {
    "no image for a line": (changed(SAMPLE, None), f"metadata/2.npy, line .*: there is no {SAMPLE}"),
    "no line for an image": (changed("imgs/2/sample_99.png", png(GREY)), "imgs/2/sample_99.png has no line in the"),
    "no metadata": (
        {name: content for name, content in GOOD.items() if "metadata" not in name},
        r"holds no pathfinder32/curv_contour_length_14/metadata/\*.npy",
    ),
    "empty metadata": (changed("metadata/1.npy", b""), "metadata/1.npy is empty"),
    "an array": (
        changed("metadata/1.npy", array([["imgs/1", "sample_0.png", "0", "1"]])),
        "1.npy is a NumPy array, exp",
    ),
    "binary": (changed("metadata/1.npy", b"\x00\xff" * 99), "metadata/1.npy, line 1: 1 fields in '"),
    "a short line": (
        with_line(3, "imgs/1 sample_0.png 0\n"),
        "1.npy, line 3: 3 fields in 'imgs/1 sample_0.png 0', exp",
    ),
    "a blank line": (with_line(3, "\n"), "metadata/1.npy, line 3: 0 fields in '', expected 4 or more"),
    "label 2": (with_line(3, line(1, 0, 2)), "metadata/1.npy, line 3: label '2', expected 0 or 1"),
    "label -1": (with_line(3, line(1, 0, -1)), "metadata/1.npy, line 3: label '-1', expected 0 or 1"),
    "label no number": (with_line(3, line(1, 0, "yes")), "metadata/1.npy, line 3: label 'yes', expected 0 or 1"),
    "a line twice": (
        with_line(3, line(0, 2)),
        "metadata/1.npy, line 3: imgs/0/sample_2.png is in .*metadata/0.npy too",
    ),
    "no PNG": (changed(SAMPLE, b"<html>404</html>"), f"{SAMPLE} is no whole PNG file"),
    "half a PNG": (changed(SAMPLE, png(GREY)[:300]), f"{SAMPLE} is no whole PNG file"),
    "a changed byte": (
        changed(SAMPLE, png(GREY)[:200] + bytes([png(GREY)[200] ^ 255]) + png(GREY)[201:]),
        f"{SAMPLE} is no whole PNG file",
    ),
    "a photo": (changed(SAMPLE, PHOTO.getvalue()), f"{SAMPLE} is no whole PNG file"),
    "wrong size": (changed(SAMPLE, png(GREY[:, :31])), f"{SAMPLE} has 31 x 32 pixels of mode L, expected 32 x 32 of"),
    "transposed bits": (
        changed(SAMPLE, png(np.repeat(GREY, 2, 0))),
        f"{SAMPLE} has 32 x 64 pixels of mode L, expected",
    ),
    "colours": (changed(SAMPLE, png(np.repeat(GREY[..., None], 3, 2))), "has 32 x 32 pixels of mode RGB, expected"),
    "two colours": (changed(SAMPLE, png(GREY > 200)), f"{SAMPLE} has 32 x 32 pixels of mode 1, expected"),
    "16 bits": (changed(SAMPLE, png(GREY.astype(np.uint16))), f"{SAMPLE} has 32 x 32 pixels of mode I;16, expected"),
    "few images": (published(folders=1, samples=3), "3 images in .* are too few for three splits"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("put", [pack, unpack])
def test_what_is_not_as_published_is_one_line_with_place_and_member(
    tmp_path: Path, put: Callable[[Path, dict[str, bytes]], Path], name: str
) -> None:
    files, finding = BROKEN[name]
    place = put(tmp_path, files)
    with pytest.raises(ValueError, match=finding) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{place}")
    assert len(message.splitlines()) == 1
    assert len(message) < 400


def test_a_member_that_is_there_twice_is_named(tmp_path: Path) -> None:
    pack(tmp_path, [*GOOD.items(), (f"{HARD}/{SAMPLE}", png(GREY))])
    with pytest.raises(ValueError, match=rf"lra_release.gz: lra_release/lra_release/{HARD}/{SAMPLE} is there twice$"):
        read(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.999])
def test_an_archive_cut_short_is_named(tmp_path: Path, share: float) -> None:
    packed = pack(tmp_path, GOOD)
    packed.write_bytes(packed.read_bytes()[: int(share * packed.stat().st_size)])
    with pytest.raises(ValueError, match=r"lra_release.gz is broken or cut short \(.+\)$"):
        read(tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.99])
def test_a_changed_byte_of_the_archive_is_noticed(tmp_path: Path, share: float) -> None:
    packed = pack(tmp_path, GOOD)
    content = bytearray(packed.read_bytes())
    content[int(share * len(content))] ^= 0x55
    packed.write_bytes(content)
    with pytest.raises(ValueError, match="lra_release.gz") as caught:
        read(tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_release_says_where_to_get_it_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        PathX().require("release", tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path / "lra_release.gz"), archive.RELEASE_ADDRESS, "task.source=generated needs no download"):
        assert part in message
    assert "\n" not in message


def test_a_folder_of_another_setting_is_not_taken_for_the_release(tmp_path: Path) -> None:
    unpack(tmp_path, published(difficulty="easy"))
    Pathfinder(difficulty="easy").require("release", tmp_path)
    with pytest.raises(ValueError, match="lra_release.gz is missing"):
        Pathfinder().require("release", tmp_path)


def test_the_command_reads_the_release_without_tensorflow(tmp_path: Path) -> None:
    pack(tmp_path / "manual", {**GOOD, **JUNK})
    code, out, err = run(tmp_path, "task=pathfinder", "task.source=release", first=WITHOUT_TENSORFLOW)
    assert (code, err) == (0, "")
    for part in ("36 train (160,000 published)", "4 val (20,000 published)", "5 test (20,000 published)"):
        assert part in out.splitlines()[-1]
    loaded, expected = data.load(tmp_path, Pathfinder(), "release"), read(tmp_path / "manual")
    for name, split in SPLITS.items():
        arrays = getattr(loaded, name)
        assert arrays.tokens.tobytes() == expected[split][0].tobytes()
        assert arrays.labels.tolist() == expected[split][1].tolist()
    assert loaded.manifest["provenance"]["empty"] == 0


@pytest.mark.parametrize("name", ["no image for a line", "half a PNG", "label 2"])
def test_a_broken_release_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    place = pack(tmp_path / "manual", BROKEN[name][0])
    assert prepare.main(["task=pathfinder", "task.source=release", f"data_dir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {place}: ")
    assert len(err.splitlines()) == 1
    assert left(tmp_path) == {"manual/lra_release.gz"}
