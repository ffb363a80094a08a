"""Text: the published archive byte for byte, no film in both train and validation, one line for what is wrong."""

import gzip
import hashlib
import io
import math
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lra import data, prepare
from lra.data import Split, content_sha256
from lra.tasks import text
from lra.tasks.base import Documents, Place, Reading, documents
from lra.tasks.draws import Draws
from lra.tasks.text import Review, Text
from lra.words import WordError
from tests.test_listops import joined
from tests.test_prepare import WITHOUT_TENSORFLOW, run

KINDS = ("neg", "pos")
PER_CLASS = 20


def rating(kind: str, number: int) -> int:
    return (1 if kind == "neg" else 7) + number % 4


def film(kind: str, number: int) -> str:
    """Films have a review of each class, but for the last, which has two of one class."""
    return f"http://www.imdb.com/title/tt{min(number, PER_CLASS - 2):07}/usercomments"


def published() -> dict[str, bytes]:
    """A small archive of the published layout, with what real reviews have in them."""
    oddities: tuple[bytes, ...] = (
        b'He said "no",\tthen left.',
        b"line\r\nline\n",
        b"<br /><br />",
        b" both ends ",
        "né – 好".encode(),
    )
    oddities += (b"\xff\xfe\x00 not UTF-8", b"_", b"I don't | like `it`")
    files = {"README": b"Large Movie Review Dataset v1.0", "imdb.vocab": b"the\n", "train/labeledBow.feat": b"9 0:9\n"}
    for part in ("test", "train"):
        for kind in KINDS:
            lines = (film(kind, number) for number in range(PER_CLASS))
            files[f"{part}/urls_{kind}.txt"] = "".join(f"{line}\n" for line in lines).encode()
            for number in range(PER_CLASS):
                content = f"{part} {kind} {number} ".encode() + oddities[number % len(oddities)]
                files[f"{part}/{kind}/{number}_{rating(kind, number)}.txt"] = content
    return files | {"train/unsup/0_0.txt": b"unrated", "train/urls_unsup.txt": b"http://\n"}


GOOD = published()


def packed(manual: Path, files: Mapping[str, bytes], folder: str = "aclImdb") -> Path:
    """The archive, of the published name."""
    manual.mkdir(exist_ok=True)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    place = manual / "aclImdb_v1.tar.gz"
    place.write_bytes(gzip.compress(out.getvalue(), mtime=0))
    return place


def unpacked(manual: Path, files: Mapping[str, bytes], folder: str = "aclImdb") -> Path:
    for name, content in files.items():
        (manual / folder / name).parent.mkdir(parents=True, exist_ok=True)
        (manual / folder / name).write_bytes(content)
    return manual / folder


Put = Callable[[Path, Mapping[str, bytes]], Path]


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def expect(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    """Let what stands at `place` be the published archive."""
    if place.is_file():
        monkeypatch.setattr(text, "ARCHIVE", text.ARCHIVE._replace(sha256=sha256(place)))


def read(manual: Path, **options: Any) -> Reading:
    return Text(**options).read("imdb", Place(manual, manual))


def examples(reading: Reading) -> dict[str, list[tuple[bytes, int]]]:
    return {split: joined(iter(blocks)) for split, blocks in reading.blocks.items()}


def reviews(part: str, files: Mapping[str, bytes] = GOOD) -> Counter[tuple[bytes, int]]:
    """(text, label) of the rated reviews of a part."""
    return Counter(
        (content, label)
        for label, kind in enumerate(KINDS)
        for name, content in files.items()
        if name.startswith(f"{part}/{kind}/")
    )


def test_every_byte_is_a_token_of_its_own_name() -> None:
    assert len(set(Text.vocabulary)) == 256
    assert [Text.vocabulary[byte] for byte in b"a |~"] == ["a", " ", "|", "~"]
    assert [Text.vocabulary[byte] for byte in b"\x00\n\x7f\xff"] == ["\\x00", "\\x0a", "\\x7f", "\\xff"]


def test_the_archive_is_the_one_that_tfds_knows() -> None:
    import tensorflow_datasets

    known = Path(tensorflow_datasets.__file__).parent / "datasets" / "imdb_reviews" / "checksums.tsv"
    address, size, digest, name = known.read_text().split("\t")
    assert tuple(text.ARCHIVE) == (name.strip(), address.replace("http:", "https:"), int(size), digest)


def test_options_are_checked_and_name_the_data() -> None:
    assert Text.defaults() == {"split": "clean", "max_len": 4000}
    assert Text().config("imdb") == "imdb"
    assert Text(split="legacy", max_len=1000).config("imdb") == "imdb,split=legacy,max_len=1000"
    with pytest.raises(WordError, match=r"^task.split=legcy is not one of clean, legacy; did you mean 'legacy'\?$"):
        Text(split="legcy")
    for wrong in (0, -1, 65_537):
        with pytest.raises(ValueError, match=rf"^task.max_len={wrong} is not between 1 and 65,536 bytes$"):
            Text(max_len=wrong)


@pytest.mark.parametrize("folder", ["aclImdb", "./aclImdb", "aclImdb/aclImdb"])
@pytest.mark.parametrize("put", [packed, unpacked])
def test_every_rated_review_comes_out_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: Any, folder: str
) -> None:
    junk = {"train/neg/._0_1.txt": b"Mac", "train/pos/.DS_Store": b"Mac", "train/._urls_neg.txt": b"Mac"}
    expect(monkeypatch, put(tmp_path, junk | GOOD, folder))
    reading = read(tmp_path)
    found = examples(reading)
    assert list(found) == ["train", "validation", "test"]
    assert Counter(found["train"] + found["validation"]) == reviews("train")
    assert Counter(found["test"]) == reviews("test")
    assert reading.counts == {split: len(each) for split, each in found.items()}
    assert reading.provenance["truncated"] == 0
    assert reading.provenance["published"] == {"train": 22_500, "validation": 2_500, "test": 25_000}


def test_archive_and_folder_in_any_order_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backwards = dict(reversed(GOOD.items()))
    found = []
    for name, put, files in (("a", packed, GOOD), ("b", packed, backwards), ("c", unpacked, backwards)):
        expect(monkeypatch, put(tmp_path / name, files))
        found.append(examples(read(tmp_path / name)))
    assert found[0] == found[1] == found[2]
    for split in found[0].values():
        assert len({label for _, label in split[: len(split) // 2]}) == 2


def test_the_order_is_that_of_every_other_machine(tmp_path: Path) -> None:
    unpacked(tmp_path, GOOD)
    blocks = [block for split in read(tmp_path).blocks.values() for block in split]
    digest = hashlib.sha256("".join(content_sha256(array) for block in blocks for array in block).encode())
    assert digest.hexdigest() == "a36ae261d5547146dedf244a85f05d6fb96444c897275d24fb1b98ab4fd1b90e"


def test_an_unpacked_folder_goes_before_the_archive(tmp_path: Path) -> None:
    unpacked(tmp_path, GOOD)
    (tmp_path / "aclImdb_v1.tar.gz").write_bytes(b"another file")
    assert read(tmp_path).provenance["place"] == "aclImdb"


def films_of(found: Iterable[tuple[bytes, int]]) -> Counter[str]:
    """How many train reviews of each film are among these."""
    words = [content.split(b" ") for content, _ in found]
    return Counter(film(kind.decode(), int(number)) for _, kind, number, *_ in words)


def test_validation_is_a_tenth_of_each_class_and_shares_no_film_with_train(tmp_path: Path) -> None:
    unpacked(tmp_path, GOOD)
    reading = read(tmp_path)
    found = examples(reading)
    held_out, kept = films_of(found["validation"]), films_of(found["train"])
    assert Counter(label for _, label in found["validation"]) == {0: 2, 1: 2}
    assert Counter(label for _, label in found["train"]) == {0: 18, 1: 18}
    assert held_out.keys().isdisjoint(kept)
    assert reading.provenance["films"] == {"train": len(kept), "validation": len(held_out)}


def test_films_of_the_published_size_give_an_exact_tenth_of_each_class() -> None:
    draws = Draws(0, 0, 0)
    films: dict[bytes, list[Review]] = {}
    for kind in KINDS:
        number = 0
        while number < 12_500:
            # From 1 review to 30, most films few, as in the archive; every fifth film is in both classes.
            size = min(30, 64 // (1 + int(draws.below(64, 1)[0])), 12_500 - number)
            address = f"{number % 5 and kind}{number}".encode()
            films.setdefault(address, []).extend(Review("train", kind, number + i) for i in range(size))
            number += size
    chosen = text.films_of_validation(films, Path("aclImdb"))
    taken = Counter(review.kind for each in chosen for review in films[each])
    assert taken == {"neg": 1_250, "pos": 1_250}
    assert text.films_of_validation(dict(reversed(films.items())), Path("aclImdb")) == chosen


def test_legacy_validates_on_test_and_trains_on_all(tmp_path: Path) -> None:
    unpacked(tmp_path, {name: content for name, content in GOOD.items() if "urls_" not in name})
    reading = read(tmp_path, split="legacy", max_len=10)
    found = examples(reading)
    assert found["validation"] == found["test"]
    assert {split: len(each) for split, each in found.items()} == dict.fromkeys(("train", "validation", "test"), 40)
    assert reading.provenance["published"] == dict.fromkeys(("train", "validation", "test"), 25_000)
    # Each review counts once.
    assert reading.provenance["truncated"] == 80


def test_a_long_review_is_cut_and_counted(tmp_path: Path) -> None:
    files = GOOD | {f"test/pos/{PER_CLASS}_10.txt": b"x" * 5_000, f"test/neg/{PER_CLASS}_1.txt": b"y" * 4_000}
    unpacked(tmp_path, files)
    reading = read(tmp_path)
    found = dict(examples(reading)["test"])
    assert reading.provenance["truncated"] == 1
    assert (found[b"x" * 4_000], found[b"y" * 4_000]) == (1, 0)
    expected = sum(len(content) > 20 for part in ("train", "test") for content, _ in reviews(part, files))
    short = read(tmp_path, max_len=20)
    assert short.provenance["truncated"] == expected
    assert max(len(content) for split in examples(short).values() for content, _ in split) == 20


def without(*names: str) -> dict[str, bytes]:
    return {name: content for name, content in GOOD.items() if not name.startswith(names)}


BROKEN = {
    "no rating": ({"train/neg/100.txt": b"x"}, "train/neg holds '100.txt', expected <id>_<rating>.txt"),
    "another ending": ({"test/pos/100_8.html": b"x"}, "test/pos holds '100_8.html', expected <id>_<rating>.txt"),
    "a foreign file": ({"test/pos/two\nlines": b"x"}, r"holds a file of the name 'aclImdb/test/pos/two\nlines'"),
    "another class's rating": ({"train/neg/100_7.txt": b"x"}, "train/neg/100_7.txt has rating 7, neg has 1 to 4"),
    "a rating that is kept out": ({"test/pos/100_6.txt": b"x"}, "test/pos/100_6.txt has rating 6, pos has 7 to 10"),
    "a rating of none": ({"train/neg/100_0.txt": b"x"}, "train/neg/100_0.txt has rating 0, neg has 1 to 4"),
    "a rating off the scale": ({"test/pos/100_11.txt": b"x"}, "test/pos/100_11.txt has rating 11, pos has 7 to 10"),
    "an empty review": ({"test/neg/100_1.txt": b""}, "aclImdb/test/neg/100_1.txt is empty"),
    "a number twice": ({"train/pos/3_9.txt": b"x"}, "is another review 3 of train/pos"),
    "a padded number twice": ({"train/pos/03_9.txt": b"x"}, "is another review 3 of train/pos"),
    "no address": ({"train/pos/20_9.txt": b"x"}, "train/urls_pos.txt has no line for review 20, it has 20 lines"),
    "a blank address": ({"train/urls_neg.txt": b"a\n \n" * 10}, "urls_neg.txt has no line for review"),
    "no addresses": ({"train/urls_neg.txt": b""}, "urls_neg.txt has no line for review"),
    "one film": ({"train/urls_pos.txt": b"a\n" * 20}, "no film fits into a tenth of train's 20 pos reviews"),
}


@pytest.mark.parametrize("put", [packed, unpacked])
@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_as_published_is_one_line_with_place_and_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: Put, name: str
) -> None:
    files, finding = BROKEN[name]
    place = put(tmp_path, GOOD | files)
    expect(monkeypatch, place)
    with pytest.raises(ValueError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert finding in message
    assert message.startswith(str(place))
    assert len(message.splitlines()) == 1
    assert len(message) < 300


@pytest.mark.parametrize("put", [packed, unpacked])
@pytest.mark.parametrize(
    ("missing", "finding"),
    [
        ("train/pos/", "holds no train/pos/<id>_<rating>.txt"),
        ("test/neg/", "holds no test/neg/<id>_<rating>.txt"),
        ("train/urls_pos.txt", "holds no train/urls_pos.txt, by which task.split=clean keeps films together"),
        ("", "holds no train/neg/<id>_<rating>.txt"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, put: Put, missing: str, finding: str
) -> None:
    (tmp_path / "aclImdb").mkdir()
    place = put(tmp_path, without(missing))
    if put is packed:
        (tmp_path / "aclImdb").rmdir()
    expect(monkeypatch, place)
    with pytest.raises(ValueError) as caught:
        read(tmp_path)
    assert str(caught.value) == f"{place} {finding}"


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_an_archive_cut_short_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    place = packed(tmp_path, GOOD)
    place.write_bytes(place.read_bytes()[: int(share * place.stat().st_size)])
    expect(monkeypatch, place)
    with pytest.raises(ValueError, match=r"aclImdb_v1.tar.gz is broken or cut short \(.+\)$"):
        read(tmp_path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_damaged_byte_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    place = packed(tmp_path, GOOD)
    content = bytearray(place.read_bytes())
    content[int(share * len(content))] ^= 255
    place.write_bytes(content)
    expect(monkeypatch, place)
    with pytest.raises(ValueError, match=r"aclImdb_v1.tar.gz is broken or cut short \(.+\)$|aclImdb_v1.tar.gz: "):
        read(tmp_path)


def test_a_damaged_header_is_not_the_end_of_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = packed(tmp_path, GOOD)
    content = place.read_bytes()
    plain = bytearray(gzip.decompress(content))
    # The last member's header, and the checksum of the undamaged archive behind it.
    plain[plain.rindex(b"ustar") + 10] ^= 255
    place.write_bytes(gzip.compress(plain, mtime=0)[:-8] + content[-8:])
    expect(monkeypatch, place)
    with pytest.raises(ValueError, match=r"aclImdb_v1.tar.gz is broken or cut short \(CRC check failed.+\)$"):
        read(tmp_path)


def test_an_archive_of_other_content_is_refused_before_it_is_read(tmp_path: Path) -> None:
    place = packed(tmp_path, GOOD)
    with pytest.raises(ValueError) as caught:
        read(tmp_path)
    for part in (str(place), sha256(place), text.ARCHIVE.sha256, text.ARCHIVE.address):
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("split", ["clean", "legacy"])
def test_the_whole_command_prepares_the_archive(tmp_path: Path, split: str) -> None:
    place = packed(tmp_path / "manual", GOOD)
    first = f"""{WITHOUT_TENSORFLOW}
from lra.tasks import text
text.ARCHIVE = text.ARCHIVE._replace(sha256={sha256(place)!r})"""
    code, out, err = run(tmp_path, "task=text", f"task.split={split}", "task.max_len=30", first=first)
    assert (code, err) == (0, "")
    task = Text(split=split, max_len=30)
    expected = {"clean": "36 train (22,500 published), 4 val (2,500 published), 40 test (25,000 published)"}
    expected["legacy"] = ", ".join(f"40 {name} (25,000 published)" for name in data.SPLITS)
    assert expected[split] in out.splitlines()[-1]
    loaded = data.load(tmp_path, task, "imdb")
    blocks = {split: Documents(*getattr(loaded, name)[:3]) for name, split in prepare.TFDS_SPLITS.items()}
    unpacked(tmp_path / "plain", GOOD)
    assert {split: joined(iter([block])) for split, block in blocks.items()} == examples(
        read(tmp_path / "plain", split=split, max_len=30)
    )
    assert loaded.manifest["provenance"]["truncated"] > 0
    assert loaded.manifest["options"] == task.options


def test_a_broken_archive_leaves_nothing_but_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = packed(tmp_path / "manual", GOOD)
    assert prepare.main(["task=text", f"data_dir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {place} has sha256 ")
    assert len(err.splitlines()) == 1
    left = {path.name for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith(".lock")}
    assert left == {"aclImdb_v1.tar.gz"}


def test_synthetic_texts_are_short_and_lean_to_their_label() -> None:
    found = [each for split in text.SYNTHETIC_COUNTS for each in text.synthesize(0, split, 200)]
    assert len({content for content, _ in found}) == 600
    assert all(100 <= len(content) <= 400 for content, _ in found)
    right = 0
    for content, label in found:
        words = content.decode().split()
        right += (sum(word in text.PRAISE for word in words) > sum(word in text.BLAME for word in words)) == label
    assert right > 0.97 * len(found)
    assert 0.4 < np.mean([label for _, label in found]) < 0.6


def test_the_options_hold_for_synthetic_texts_too(tmp_path: Path) -> None:
    place = Place(tmp_path, tmp_path)
    whole = Text().read("synthetic", place)
    cut = Text(split="legacy", max_len=200).read("synthetic", place)
    assert whole.counts == cut.counts == text.SYNTHETIC_COUNTS
    plain, short = examples(whole), examples(cut)
    assert short["train"] == [(content[:200], label) for content, label in plain["train"]]
    assert short["validation"] == short["test"] != plain["validation"]
    expected = sum(len(content) > 200 for content, _ in plain["train"] + plain["test"])
    assert (whole.provenance["truncated"], cut.provenance["truncated"]) == (0, expected)


def split_of(*pairs: tuple[bytes, int]) -> Split:
    return Split(*documents((content for content, _ in pairs), (label for _, label in pairs)))


def test_words_are_letters_in_small_each_once() -> None:
    assert text.words(b"It's GOOD, good<br />7 times \xe9t\xe9") == [b"it's", b"good", b"br", b"times", b"t"]


def test_naive_bayes_decides_by_the_larger_posterior() -> None:
    train = split_of((b"good film", 1), (b"good good", 1), (b"bad film", 0), (b"fine", 1))
    # Words in documents: good 2, film 1, fine 1 among 4 of class 1; bad 1, film 1 among 2 of class 0; 4 known words.
    for content in (b"good", b"bad", b"film", b"bad film", b"bad bad unknown", b"", b"good bad"):
        against, in_favour = math.log((1 + 1) / (4 + 2)), math.log((3 + 1) / (4 + 2))
        for word in text.words(content):
            if word != b"unknown":
                against += math.log((1 + (word in (b"bad", b"film"))) / (2 + 4))
                in_favour += math.log((1 + {b"good": 2, b"film": 1, b"fine": 1}.get(word, 0)) / (4 + 4))
        label = int(in_favour > against)
        asked = split_of((content or b"?", label))
        assert text.naive_bayes(train, asked, text.words) == 1.0
    assert text.naive_bayes(train, split_of((b"good", 1), (b"bad bad", 0), (b"good", 0)), text.words) == 2 / 3


def test_the_doctor_tells_lengths_and_the_baselines() -> None:
    train = split_of((b"a" * 10 + b" good", 1), (b"b" * 10 + b" bad", 0))
    test = split_of((b"a" * 4_000, 1), (b"b" * 1_000, 0), (b"b good", 1), (b"\xe9 bad ", 0))
    assert dict(Text().doctor(train, train, test)) == {
        "documents of 1,000 bytes or more, test": "50.0%",
        "documents of 4,000 bytes or more, test": "25.0%",
        "accuracy on test of naive Bayes over bytes, fitted on train": "100.0%",
        "accuracy on test of naive Bayes over words, fitted on train": "75.0%",
    }
    assert "documents of 500 bytes or more, test" in dict(Text(max_len=500).doctor(train, train, test))


def test_the_doctor_reads_prepared_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["task=text", "task.source=synthetic", f"data_dir={tmp_path}"]
    assert prepare.main(words) == 0
    assert prepare.main([*words, "--doctor"]) == 0
    shown = capsys.readouterr().out
    (row,) = (line for line in shown.splitlines() if "naive Bayes over words" in line)
    assert float(row.split("|")[2].strip(" %")) > 95
