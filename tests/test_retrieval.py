"""Retrieval: the published pairs, in files and archives made here, synthetic pairs, and what a sceptic asks of them."""

import hashlib
import io
import random
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lra import data, prepare
from lra.tasks import pair_statistics, retrieval, task
from lra.tasks.archive import RELEASE_ADDRESS
from lra.tasks.base import Place, Reading
from lra.tasks.retrieval import Retrieval
from lra.tasks.vocabularies import BYTES
from lra.words import WordError
from tests.test_prepare import WITHOUT_TENSORFLOW, run

Row = tuple[int, bytes, bytes, bytes, bytes]
NAMES = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
DOUBLED = "lra_release/lra_release/tsv_data"


def tsv(rows: Iterable[Row], end: bytes = b"\n") -> bytes:
    return b"".join(b"%d.0\t%s\t%s\t%s\t%s%s" % (*row, end) for row in rows)


def corpus(seed: int, count: int, papers: int = 12) -> list[Row]:
    """Pairs of papers with texts of any bytes but tabs and line feeds, some of them beginning with quotes."""
    draw = random.Random(seed)
    letters = bytes(set(range(256)) - set(b"\t\r\n"))
    texts = {
        b"P%02d-%d" % (seed, paper): draw.choice([b"", b'"', b"'"]) + bytes(draw.choices(letters, k=1 + 7 * paper))
        for paper in range(papers)
    }
    pairs = [draw.sample(sorted(texts), 2) for _ in range(count)]
    return [(draw.randrange(2), a, b, texts[a], texts[b]) for a, b in pairs]


SPLITS = {"train": corpus(1, 40), "validation": corpus(2, 10), "test": corpus(3, 8)}
FILES = {NAMES[split]: tsv(rows) for split, rows in SPLITS.items()}


def direct(manual: Path, files: dict[str, bytes] = FILES) -> Path:
    manual.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (manual / name).write_bytes(content)
    return manual


def unpacked(manual: Path, files: dict[str, bytes] = FILES, folder: str = DOUBLED) -> Path:
    return direct(manual / folder, files)


def archive(manual: Path, files: dict[str, bytes] = FILES, folder: str = DOUBLED) -> Path:
    """The published archive: folders, a file of another task and what macOS leaves, then the files."""
    manual.mkdir(parents=True, exist_ok=True)
    with tarfile.open(manual / "lra_release.gz", "w:gz") as packed:
        top = tarfile.TarInfo(folder)
        top.type = tarfile.DIRTYPE
        packed.addfile(top)
        others = {
            f"{folder}/basic_train.tsv": b"of another task",
            f"{folder}/new_aan_pairs.train.only_ids.tsv": b"1.0\tP\tQ\n",
            **{f"{folder}/._{name}": b"Mac OS X" for name in files},
            **{f"other/{name}": b"not of this folder" for name in files},
        }
        for name, content in (others | {f"{folder}/{name}": content for name, content in files.items()}).items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return manual / "lra_release.gz"


def read(folder: Path, **options: Any) -> Reading:
    """The published source in `folder`, its papers kept beside it."""
    scratch = folder.with_name(f"{folder.name}-scratch")
    scratch.mkdir(exist_ok=True)
    return Retrieval(**options).read("aan", Place(folder, scratch))


def texts(reading: Reading, split: str) -> list[bytes]:
    """The documents of a split."""
    return [
        tokens[start:end].tobytes() for tokens, offsets, _ in reading.blocks[split] for start, end in pairwise(offsets)
    ]


def examples(reading: Reading, split: str) -> list[tuple[int, bytes, bytes]]:
    """(label, text, text) of every example of a split."""
    assert reading.pairs is not None
    documents = texts(reading, split)
    assert len(documents) == reading.counts[split]
    pairs, labels = reading.pairs[split]
    assert (pairs.dtype, labels.dtype) == (np.int32, np.uint8)
    return [(label, documents[a], documents[b]) for label, (a, b) in zip(labels.tolist(), pairs.tolist(), strict=True)]


def plain(rows: Sequence[Row], max_len: int = 4_000) -> list[tuple[int, bytes, bytes]]:
    return [(label, first[:max_len], second[:max_len]) for label, _, _, first, second in rows]


def test_every_byte_has_a_name_of_its_own() -> None:
    assert Retrieval.vocabulary == BYTES
    assert len(set(BYTES)) == 256
    assert (BYTES[ord("a")], BYTES[ord(" ")], BYTES[9], BYTES[127], BYTES[255]) == ("a", " ", r"\x09", r"\x7f", r"\xff")


@pytest.mark.parametrize("order", [("train", "validation", "test"), ("test", "train", "validation")])
@pytest.mark.parametrize("folder", [DOUBLED, "./lra_release/tsv_data", "tsv_data"])
def test_the_archive_is_read_in_any_order_of_its_members(tmp_path: Path, order: tuple[str, ...], folder: str) -> None:
    archive(tmp_path / "manual", {NAMES[split]: FILES[NAMES[split]] for split in order}, folder)
    reading = read(tmp_path / "manual")
    for split, rows in SPLITS.items():
        assert examples(reading, split) == plain(rows)
    assert list(reading.blocks) == list(reading.counts) == ["train", "validation", "test"]
    assert reading.provenance == {
        "place": "lra_release.gz",
        "sha256": {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()},
        "published": {"train": 147_086, "validation": 18_090, "test": 17_437},
        "truncated": 0,
        "conflicting_texts": {"train": 0, "validation": 0, "test": 0},
    }


@pytest.mark.parametrize("folder", [".", "tsv_data", "lra_release/tsv_data", DOUBLED])
def test_unpacked_files_read_as_the_archive_does(tmp_path: Path, folder: str) -> None:
    unpacked(tmp_path / "manual", folder=folder)
    archive(tmp_path / "other")
    here, there = read(tmp_path / "manual"), read(tmp_path / "other")
    for split in SPLITS:
        assert examples(here, split) == examples(there, split)
    assert here.provenance["sha256"] == there.provenance["sha256"]


ANY_TEXT = st.binary(min_size=1, max_size=12).filter(lambda text: not set(text) & set(b"\t\n") and text[-1:] != b"\r")
ANY_ROW = st.tuples(st.integers(0, 1), st.sampled_from([b"A", b"B", b'"C"']), st.just(b"D"), ANY_TEXT, ANY_TEXT)


@given(
    rows=st.lists(ANY_ROW, min_size=1, max_size=30), end=st.sampled_from([b"\n", b"\r\n"]), max_len=st.integers(1, 9)
)
@settings(max_examples=50)
def test_any_rows_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], end: bytes, max_len: int
) -> None:
    manual = direct(tmp_path_factory.mktemp("any") / "manual", {name: tsv(rows, end) for name in NAMES.values()})
    reading = read(manual, max_len=max_len)
    assert examples(reading, "train") == plain(rows, max_len)
    papers = {
        (paper, text[:max_len])
        for _, a, b, first, second in rows
        for paper, text in ((a, first), (b, second))
    }  # fmt: skip
    assert reading.counts["train"] == len(papers)
    assert reading.provenance["conflicting_texts"]["train"] == len(papers) - len({paper for paper, _ in papers})


def test_a_text_that_begins_with_a_quote_swallows_no_rows(tmp_path: Path) -> None:
    rows = [(1, b"A", b"B", b'"Open', b"b"), (0, b"C", b"D", b"c", b'd"'), (1, b"E", b"F", b'""', b'"e" "f')]
    reading = read(direct(tmp_path / "manual", FILES | {NAMES["test"]: tsv(rows)}))
    assert examples(reading, "test") == plain(rows)


def test_the_last_line_needs_no_end_and_a_return_within_a_text_is_no_end(tmp_path: Path) -> None:
    rows = [(1, b"A", b"B", b"a\ra", b"\rb\xff\x00"), (0, b"B", b"A", b"\r", b"b\x85\xe2\x80\xa8\x0bb")]
    reading = read(direct(tmp_path / "manual", FILES | {NAMES["test"]: tsv(rows).removesuffix(b"\n")}))
    assert examples(reading, "test") == plain(rows)


def test_a_paper_is_stored_once_and_numbered_in_order_of_first_appearance(tmp_path: Path) -> None:
    rows = [(1, b"X", b"Y", b"x", b"y"), (0, b"Y", b"W", b"y", b"w"), (1, b"X", b"X", b"x", b"x")]
    reading = read(direct(tmp_path / "manual", FILES | {NAMES["train"]: tsv(rows)}))
    assert reading.pairs is not None
    assert texts(reading, "train") == [b"x", b"y", b"w"]
    assert reading.pairs["train"].pairs.tolist() == [[0, 1], [1, 2], [0, 0]]
    assert reading.pairs["train"].labels.tolist() == [1, 0, 1]


def test_another_text_under_an_id_is_another_document_and_counted(tmp_path: Path) -> None:
    rows = [(1, b"X", b"Y", b"one", b"y"), (0, b"X", b"Y", b"two", b"y"), (1, b"X", b"Z", b"one", b"one")]
    reading = read(direct(tmp_path / "manual", FILES | {NAMES["train"]: tsv(rows)}))
    assert examples(reading, "train") == plain(rows)
    assert reading.provenance["conflicting_texts"] == {"train": 1, "validation": 0, "test": 0}


def test_papers_are_cut_and_what_differs_behind_the_cut_is_one_paper(tmp_path: Path) -> None:
    rows = [(1, b"X", b"Y", b"abcd", b"abc"), (0, b"X", b"Y", b"abcx", b"abc")]
    manual = direct(tmp_path / "manual", FILES | {NAMES["test"]: tsv(rows)})
    reading = read(manual, max_len=3)
    assert reading.counts["test"] == 2
    assert examples(reading, "test") == [(1, b"abc", b"abc"), (0, b"abc", b"abc")]
    assert reading.provenance["conflicting_texts"]["test"] == 0
    whole = {
        split: {(a, x) for row in rows for a, x in ((row[1], row[3]), (row[2], row[4]))}
        for split, rows in SPLITS.items()
    }
    cut = sum(len(text) > 3 for split in ("train", "validation") for _, text in whole[split])
    assert reading.provenance["truncated"] == cut + 1


def test_reading_holds_no_more_than_a_line_and_the_pairs(tmp_path: Path) -> None:
    rows = [(0, b"A%d" % (i % 40), b"B", b"%d" % (i % 40) * 5_000, b"b" * 10_000) for i in range(1_500)]
    manual = direct(tmp_path / "manual", FILES | {NAMES["train"]: tsv(rows)})
    assert (manual / NAMES["train"]).stat().st_size > 25e6
    tracemalloc.start()
    reading = read(manual)
    blocks = sum(len(block.tokens) for block in reading.blocks["train"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert blocks == 41 * 4_000
    assert peak < 4e6


GOOD = b"1.0\tA\tB\ta\tb\n"
BROKEN = {
    "empty": (b"", " is empty"),
    "four columns": (GOOD + b"1.0\tA\tB\ta\n", r"line 2: 4 columns in '1.0\tA\tB\ta\n', expected 5"),
    "a tab in a text": (GOOD + b"0.0\tA\tB\ta\tb\tc\n", r"line 2: 6 columns in '0.0\tA\tB\ta\tb\tc\n', expected 5"),
    "a blank line": (GOOD + b"\n" + GOOD, r"line 2: 1 columns in '\n', expected 5"),
    "a return alone ends no line": (GOOD.replace(b"\n", b"\r") * 2, r"line 1: 9 columns"),
    "an empty text": (b"1.0\tA\tB\ta\t\r\n", "line 1: column 5 is empty"),
    "an empty id": (b"1.0\t\tB\ta\tb\n", "line 1: column 2 is empty"),
    "a label of three": (GOOD * 2 + b"2.0\tA\tB\ta\tb\n", "line 3: label '2.0', expected 0.0 or 1.0"),
    "half a label": (b"0.5\tA\tB\ta\tb\n", "line 1: label '0.5', expected 0.0 or 1.0"),
    "no label": (b"\tA\tB\ta\tb\n", "line 1: label '', expected 0.0 or 1.0"),
    "a header": (b"label\tid1\tid2\ttext1\ttext2\n", "line 1: label 'label', expected 0.0 or 1.0"),
    "no number": (b"nan\tA\tB\ta\tb\n", "line 1: label 'nan', expected 0.0 or 1.0"),
    "a byte order mark": (b"\xef\xbb\xbf" + GOOD, "line 1: label '\\ufeff1.0', expected 0.0 or 1.0"),
    "binary": (bytes(range(256)) * 40, "line 1: 2 columns in '"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("put", [archive, unpacked, direct])
def test_a_broken_file_is_one_line_with_file_line_and_value(tmp_path: Path, put: Any, name: str) -> None:
    content, finding = BROKEN[name]
    place = put(tmp_path / "manual", FILES | {NAMES["validation"]: content})
    with pytest.raises(ValueError) as caught:
        read(tmp_path / "manual")
    message = str(caught.value)
    file = f"{place}: {DOUBLED}/new_aan_pairs.eval.tsv" if put is archive else f"{place}/new_aan_pairs.eval.tsv"
    assert message.startswith(file)
    assert finding in message
    assert len(message.splitlines()) == 1
    assert len(message) < 300


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "LINE_BYTES", 1_000)
    fits = b"1.0\tA\tB\ta\t" + b"b" * 989
    assert len(fits) == 999
    read(direct(tmp_path / "manual", FILES | {NAMES["test"]: fits + b"\n" + fits}))
    direct(tmp_path / "manual", {NAMES["test"]: fits + b"\n" + fits + b"bb"})
    with pytest.raises(ValueError, match=r"test.tsv, line 2: '1.0\\tA.*\.\.\.' is longer than 1,000 bytes$"):
        read(tmp_path / "manual")


@pytest.mark.parametrize("text", ["0", "1", "0.0", "1.0", "0.", "1.000000"])
def test_a_label_is_zero_or_one_however_it_is_written(tmp_path: Path, text: str) -> None:
    row = f"{text}\tA\tB\ta\tb\n".encode()
    assert examples(read(direct(tmp_path / "manual", FILES | {NAMES["test"]: row})), "test") == [
        (int(float(text)), b"a", b"b")
    ]


@pytest.mark.parametrize("name", NAMES.values())
@pytest.mark.parametrize("put", [archive, unpacked, direct])
def test_a_missing_file_is_named(tmp_path: Path, put: Any, name: str) -> None:
    place = put(tmp_path / "manual", {other: content for other, content in FILES.items() if other != name})
    with pytest.raises(ValueError, match=rf"^{place} holds no (tsv_data/)?{name}$"):
        read(tmp_path / "manual")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.7, 0.9, 0.99])
def test_an_archive_cut_short_is_named(tmp_path: Path, share: float) -> None:
    packed = archive(tmp_path / "manual")
    packed.write_bytes(packed.read_bytes()[: int(share * packed.stat().st_size)])
    with pytest.raises(ValueError, match=r"lra_release.gz is broken or cut short \(.+\)$"):
        read(tmp_path / "manual")


def test_a_changed_bit_anywhere_in_an_archive_is_found(tmp_path: Path) -> None:
    packed = archive(tmp_path / "manual")
    whole = packed.read_bytes()
    # The header of gzip has a time and a name that nothing depends on.
    for place in np.linspace(32, len(whole) - 1, 60).astype(int):
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        packed.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"lra_release.gz is broken or cut short|lra_release.gz: .*, line \d+: "
        ) as it:
            read(tmp_path / "manual")
        assert len(str(it.value).splitlines()) == 1


def test_a_missing_source_says_what_to_put_where_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare.main(["task=retrieval", f"data_dir={tmp_path / 'data'}"]) == 2
    out, err = capsys.readouterr()
    for part in (
        str(tmp_path / "data" / "manual"), "new_aan_pairs.train.tsv, .eval.tsv and .test.tsv", "lra_release.gz",
        RELEASE_ADDRESS, "tsv_data", "task.source=synthetic needs no download",
    ):  # fmt: skip
        assert part in err
    assert (out, len(err.splitlines())) == ("", 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("0", "task.max_len=0 must be between 1 and 65,536"),
        (-1, "task.max_len=-1 must be between 1 and 65,536"),
        ("65537", "task.max_len=65537 must be between 1 and 65,536"),
        ("4k", "task.max_len=4k must be a whole number"),
        (4000.7, "task.max_len=4000.7 must be a whole number"),
        (True, "task.max_len=True must be a whole number"),
    ],
)
def test_a_wrong_length_is_one_line(value: object, says: str) -> None:
    with pytest.raises(WordError) as caught:
        task({"name": "retrieval", "max_len": value})
    assert str(caught.value) == says


def test_another_length_is_another_data_set() -> None:
    assert Retrieval().config("aan") == "aan"
    assert Retrieval(max_len=1_000).config("aan") == "aan,max_len=1000"


# Synthetic pairs.


def synthetic(split: str, seed: int = retrieval.SEED) -> list[retrieval.Row]:
    return list(retrieval.synthesize(seed, split, retrieval.SYNTHETIC_COUNTS[split]))


def test_synthetic_bytes_are_those_of_every_other_machine() -> None:
    digest = hashlib.sha256()
    for split in NAMES:
        for label, ids, both in synthetic(split):
            digest.update(b"%d %s %s " % (label, *ids) + b"|".join(both))
    assert digest.hexdigest() == "f5d6314c7888059d2aa869e7009d718e1089c23f53bcd883ca9fe28efcf3459b"


def test_synthetic_papers_are_short_and_their_commonest_letters_tell_the_topic() -> None:
    rows = synthetic("train")
    papers = {key: text for row in rows for key, text in zip(row.ids, row.texts, strict=True)}
    assert len({text for row in rows for text in row.texts}) == len(papers)
    assert {60, 200} <= {len(text) for text in papers.values()} <= set(range(60, 201))
    for key, text in papers.items():
        shares = [sum(text.count(letter) for letter in topic) for topic in retrieval.TOPICS]
        assert np.argmax(shares) == int(key.split(b"-")[0])
    for label, (first, second), _ in rows:
        assert label == (first.split(b"-")[0] == second.split(b"-")[0])
        assert first != second


def test_synthetic_pairs_are_balanced_and_share_their_papers() -> None:
    rows = synthetic("train")
    assert abs(sum(row.label for row in rows) - 512) < 3.3 * 16
    uses = Counter(key for row in rows for key in row.ids)
    assert sum(use > 1 for use in uses.values()) > 400


def test_splits_and_seeds_share_no_synthetic_text() -> None:
    found = [{text for row in synthetic(split, seed) for text in row.texts} for split in NAMES for seed in (0, 1)]
    assert len(set.union(*found)) == sum(map(len, found))


# The whole command, from archive to batch.


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data_dir with both sources, prepared where TensorFlow cannot be imported; never to be changed."""
    data_dir = tmp_path_factory.mktemp("prepared")
    archive(
        data_dir / "manual",
        FILES | {NAMES["train"]: tsv([*SPLITS["train"], (1, b"L", b"L", b"l" * 5_000, b"l" * 5_000)])},
    )
    published = f"from lra.prepare import main; assert main(['task=retrieval', {f'data_dir={data_dir}'!r}]) == 0"
    first = f"{WITHOUT_TENSORFLOW}\n{published}"
    code, out, err = run(data_dir, "task=retrieval", "task.source=synthetic", first=first)
    assert (code, err) == (0, "")
    counts = "41 train (147,086 published), 10 val (18,090 published), 8 test (17,437 published)"
    for part in (counts, "1 cut to 4,000 tokens", "1,024 train, 256 val, 256 test"):
        assert part in out
    return data_dir


def test_the_arrays_on_disk_are_the_published_pairs(prepared: Path) -> None:
    loaded = data.load(prepared, Retrieval(), "aan")
    for name, split in zip(data.SPLITS, SPLITS.values(), strict=True):
        arrays: data.Split = getattr(loaded, name)
        assert arrays.pairs is not None
        documents = [arrays.tokens[a:b].tobytes() for a, b in pairwise(arrays.offsets)]
        found = [
            (label, documents[a], documents[b])
            for label, (a, b) in zip(arrays.labels.tolist(), arrays.pairs.tolist(), strict=True)
        ]
        assert found[: len(split)] == plain(split)
    assert loaded.manifest["provenance"]["truncated"] == 1
    assert loaded.manifest["vocabulary"] == list(BYTES)
    assert loaded.train.lengths[-1] == loaded.manifest["max_len"] == 4_000


def test_nothing_but_data_records_and_the_archive_is_left(prepared: Path) -> None:
    kept = {path.name for path in prepared.iterdir() if not path.name.endswith(".lock")}
    assert kept == {"manual", "tfds", "retrieval-aan", "retrieval-synthetic"}
    assert [path.name for path in (prepared / "manual").iterdir()] == ["lra_release.gz"]


def test_documents_and_pairs_are_tfds_data_sets(prepared: Path) -> None:
    import tensorflow_datasets as tfds

    test = data.load(prepared, Retrieval(), "aan").test
    assert test.pairs is not None
    pairs, documents = (
        tfds.builder_from_directory(prepared / "tfds" / name / "aan" / "1.0.0").as_data_source(split="test")
        for name in ("lra_retrieval", "lra_retrieval_documents")
    )
    assert len(pairs) == len(test.labels)
    for i, record in enumerate(pairs):
        assert (record["pair"].tolist(), record["label"]) == (test.pairs[i].tolist(), test.labels[i])
        for document in record["pair"]:
            start, end = test.offsets[document : document + 2]
            assert documents[document]["tokens"].tolist() == test.tokens[start:end].tolist()


def test_a_batch_is_two_documents_an_example_of_like_lengths(prepared: Path) -> None:
    train = data.load(prepared, Retrieval(), "synthetic").train
    assert train.pairs is not None
    sampler = data.Sampler(train.lengths, 32, 0)
    epoch = [sampler.batch(step) for step in range(sampler.batches_per_epoch)]
    assert sorted(np.concatenate(epoch).tolist()) == list(range(1_024))
    for chosen in epoch:
        tokens, mask, labels = data.collate(train, chosen, 4_000)
        assert tokens.shape == mask.shape == (32, 2, -(-train.lengths[chosen].max() // 32) * 32)
        torch.testing.assert_close(labels, torch.from_numpy(train.labels[chosen]).long())
        torch.testing.assert_close(
            mask.sum(2), torch.from_numpy(np.diff(train.offsets)[train.pairs[chosen]])
        )  # fmt: skip
        assert tokens[~mask].eq(0).all()
        first, last = (train.tokens[train.offsets[:-1] + at][train.pairs[chosen]] for at in (0, 59))
        assert (tokens[:, :, 0].numpy() == first).all()
        assert (tokens[:, :, 59].numpy() == last).all()


def test_a_shorter_length_cuts_the_synthetic_papers_too(prepared: Path, tmp_path: Path) -> None:
    words = ["task=retrieval", "task.source=synthetic", "task.max_len=100", f"data_dir={tmp_path}"]
    assert prepare.main(words) == 0
    short = data.load(tmp_path, Retrieval(max_len=100), "synthetic")
    whole = data.load(prepared, Retrieval(), "synthetic")
    assert short.train.lengths.max() == 100
    np.testing.assert_array_equal(short.train.pairs, whole.train.pairs)
    assert short.manifest["provenance"]["truncated"] == sum(
        int((np.diff(getattr(whole, name).offsets) > 100).sum()) for name in data.SPLITS
    )


@pytest.mark.parametrize(
    ("damage", "says"),
    [(b"1.0\tA\tB\ta\n", "line 1: 4 columns"), (b"", "is empty"), (b"1.0\tA\tB\ta\t\n", "line 1: column 5 is empty")],
)
def test_a_broken_source_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: bytes, says: str
) -> None:
    archive(tmp_path / "manual", FILES | {NAMES["test"]: damage})
    assert prepare.main(["task=retrieval", f"data_dir={tmp_path}"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {tmp_path / 'manual' / 'lra_release.gz'}: ")
    assert says in err
    assert len(err.splitlines()) == 1
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"manual/lra_release.gz", ".retrieval-aan.lock"}


def test_what_fails_at_the_pairs_leaves_no_documents_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(prepare, "pair_builder", fail)
    assert prepare.main(["task=retrieval", "task.source=synthetic", f"data_dir={tmp_path}"]) == 1
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in left if ".config" not in name} == {".retrieval-synthetic.lock"}


# What a sceptic asks.


def split_of(documents: Sequence[bytes], pairs: Sequence[tuple[int, int]], labels: Sequence[int]) -> data.Split:
    offsets = np.cumsum([0, *map(len, documents)])
    tokens = np.frombuffer(b"".join(documents), np.uint8)
    return data.Split(tokens, offsets, np.array(labels, np.uint8), np.array(pairs, np.int32))


def test_the_doctor_finds_what_train_gives_away() -> None:
    train = split_of([b"a", b"b", b"c"], [(0, 1), (1, 0), (0, 0), (1, 2), (2, 1)], [1, 0, 1, 0, 0])
    val = split_of([b"c", b"d"], [(0, 1)], [1])
    test = split_of([b"b", b"x", b"a", b"d"], [(0, 2), (1, 1), (3, 0), (2, 3)], [1, 0, 0, 1])
    answers = dict(Retrieval().doctor(train, val, test))
    assert answers["pairs of a document, train"] == "3.3 on average, 2 to 4"
    assert answers["share of test's documents that are in train"] == "50.0%"
    assert answers["test pairs of which 0, 1, 2 documents are in train"] == "25.0%, 50.0%, 25.0%"
    # The mean labels of a, b, c are 3/4, 1/4, 0, of others 2/5: only the first and the last pair reach a half.
    assert answers["accuracy on test of the labels that the two documents have in train"] == "100.0%"


def test_equal_texts_are_one_document_whatever_their_index() -> None:
    train = split_of([b"a", b"a", b"b"], [(0, 2), (1, 2)], [1, 1])
    (numbers,) = pair_statistics.number({"train": train})
    assert numbers.tolist() == [0, 0, 1]


def test_cosines_are_those_of_the_vectors_and_zero_for_nothing() -> None:
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((5, 7))
    vectors[3] = 0
    pairs = np.array([(a, b) for a in range(5) for b in range(5)])
    expected = [
        0 if 3 in (a, b) else vectors[a] @ vectors[b] / np.linalg.norm(vectors[a]) / np.linalg.norm(vectors[b])
        for a, b in pairs
    ]
    np.testing.assert_allclose(pair_statistics.cosines(vectors, pairs), expected, atol=1e-12)


def test_bigrams_are_counted_within_documents_alone() -> None:
    counts = pair_statistics.bigrams(split_of([b"abab", b"ab", b"z"], [(0, 1)], [1])) ** 2
    np.testing.assert_allclose(counts.sum(axis=1), [3, 1, 0], rtol=1e-6)
    np.testing.assert_allclose(np.sort(counts[0])[-2:], [1, 2], rtol=1e-6)
    assert counts[1].argmax() == counts[0].argmax()


def test_the_doctor_reads_prepared_pairs(prepared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--doctor", "task=retrieval", "task.source=synthetic", f"data_dir={prepared}"]) == 0
    shown = capsys.readouterr().out
    rows = {
        cells[0]: cells[1]
        for line in shown.splitlines()
        if len(cells := [cell.strip() for cell in line.strip("|").split("|")]) > 1
    }
    alike = "accuracy on test of the cosine of byte-bigram counts, threshold fitted on train"
    assert float(rows[alike].rstrip("%")) > 95
    assert rows["share of test's documents that are in train"] == "0.0%"
