"""The doctor tells what is in the arrays, whatever the task, draws it, and keeps little of it in memory."""

from __future__ import annotations

import io
import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread

from lra import arrays, data, doctor, prepare
from lra.data import Split
from lra.seal import sealed
from lra.tasks import listops
from tests.runs import ROOT, environment
from tests.test_data import Toy, make_split, store

LISTOPS = listops.ListOps()
SYNTHETIC = "task.source=synthetic"
BYTES = [chr(i) if 32 < i < 127 else f"0x{i:02x}" for i in range(256)]


def split(documents: Sequence[bytes], labels: Sequence[int], pairs: list[tuple[int, int]] | None = None) -> Split:
    offsets = np.cumsum([0, *map(len, documents)])
    both = None if pairs is None else np.array(pairs, dtype=np.int32)
    return Split(np.frombuffer(b"".join(documents), np.uint8), offsets, np.array(labels, np.uint8), both)


def examine(
    data_dir: Path, capsys: pytest.CaptureFixture[str], splits: Mapping[str, Split], **facts: object
) -> tuple[str, dict[str, list[str]]]:
    """What the doctor prints of these splits, and its tables by their first cells."""
    store(data.folder(data_dir, Toy(), "made"), splits, **facts)
    doctor.doctor(Toy(), "made", data_dir)
    out, err = capsys.readouterr()
    assert err == ""
    return out, rows(out)


def rows(shown: str) -> dict[str, list[str]]:
    tables = [line for line in shown.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line[1:-1].split(" |")] for line in tables]
    return {first: rest for first, *rest in reversed(cells)}


@pytest.fixture
def synthetic(tmp_path: Path) -> Path:
    """A data_dir with synthetic ListOps."""
    splits = {}
    for name, tfds_name in prepare.TFDS_SPLITS.items():
        (made,) = listops.synthesize(listops.SEED, tfds_name, listops.SYNTHETIC_COUNTS[tfds_name])
        splits[name] = Split(*made)
    facts = {"task": "listops", "source": "synthetic", "vocabulary": list(listops.VOCABULARY), "max_len": 2000}
    store(data.folder(tmp_path, LISTOPS, "synthetic"), splits, **facts)
    return tmp_path


def test_the_doctor_answers_a_sceptic(synthetic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--doctor", SYNTHETIC, f"data_dir={synthetic}"]) == 0
    shown, err = capsys.readouterr()
    test = data.load(synthetic, LISTOPS, "synthetic").test
    shares = [f"{(test.labels == label).mean():.1%}" for label in range(10)]
    assert [
        line for line in shown.splitlines() if [cell.strip() for cell in line.split("|")][1:-1] == ["test", *shares]
    ]
    found = rows(shown)
    assert found["14"][0] == "`[SM`"
    assert found["15"][3] == f"{(test.tokens == 15).mean():.2%}"
    assert found["test labels that another evaluator disagrees with"] == ["0 of 256"]
    assert found["examples by nesting depth of operators, test"] == ["1: 256"]
    assert "All 9 arrays have the sha256 that the manifest records." in shown
    picture = data.folder(synthetic, LISTOPS, "synthetic") / "doctor" / "lengths.png"
    assert shown.splitlines()[-1] == f"![Lengths of the documents of each split]({picture})"
    assert imread(picture).shape[2] == 4
    assert [file.name for file in picture.parent.iterdir()] == ["lengths.png"]
    assert err == ""


def test_the_doctor_knows_the_root_operator_and_other_values() -> None:
    # MIN is followed by 4 twice of three times in train, MAX by 7; test has MIN with 4 and 5, MAX with 7.
    train = split([bytes([11, 1, 15])] * 3 + [bytes([12, 1, 15])], [4, 5, 4, 7])
    test = split([bytes([11, 1, 15])] * 2 + [bytes([12, 1, 15])], [4, 5, 7])
    answers = dict(LISTOPS.doctor(train, test, test))
    assert answers["accuracy on test of the root operator alone, fitted on train"] == "66.7%"
    assert answers["test labels that another evaluator disagrees with"] == "3 of 3"


def test_repeated_documents_are_counted_within_and_across_splits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = {
        "train": split([b"\1\2", b"\1\2", b"\3", b"\1"], [0, 0, 1, 0]),
        "val": split([b"\3", b"\3", b"\2\1"], [0, 1, 0]),
        "test": split([b"\4"], [0]),
    }
    _, found = examine(tmp_path, capsys, splits)
    assert found["documents that repeat an earlier one"] == ["1 in train, 1 in val, 0 in test"]
    assert found["documents that another split has too"] == [
        "2 of val in train (66.7%), 0 of test in train (0.0%), 0 of test in val (0.0%)"
    ]
    assert found["examples that occur with more than one label"] == ["1"]


def test_pairs_are_looked_at_as_pairs_and_as_documents(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [b"some text", b"another", b"a", b"in no pair"]
    splits = {
        "train": split(texts, [0, 1, 0], [(0, 1), (1, 0), (2, 2)]),
        "val": split(texts[:2], [1], [(1, 0)]),
        "test": split([b"else", *texts[1:]], [0, 1], [(0, 1), (2, 3)]),
    }
    shown, found = examine(tmp_path, capsys, splits, vocabulary=BYTES, classes=2, max_len=10)
    assert "| train | 3        | 4         | 27     | 6.8         |" in shown
    assert found["documents that repeat an earlier one"] == ["0 in train, 0 in val, 0 in test"]
    assert found["pairs, in either order, that repeat an earlier one"] == ["1 in train, 0 in val, 0 in test"]
    assert found["pairs, in either order, that another split has too"] == [
        "1 of val in train (100.0%), 0 of test in train (0.0%), 0 of test in val (0.0%)"
    ]
    assert found["examples that occur with more than one label"] == ["1"]
    assert found["documents in no pair"] == ["1 in train, 0 in val, 0 in test"]
    assert found["pairs of equal documents"] == ["1 in train, 0 in val, 0 in test"]
    assert found["pairs with a document of a single token"] == ["1 in train, 0 in val, 1 in test"]
    assert "- 0: `some text` and `another`\n- 1: `another` and `some text`\n" in shown
    assert "All 12 arrays" in shown


def test_of_many_ids_only_the_most_frequent_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = b"".join(bytes([65 + i]) * (20 - i) for i in range(12)) + "\u00e9".encode()
    shown, found = examine(
        tmp_path, capsys, dict.fromkeys(data.SPLITS, split([text], [1])), vocabulary=BYTES, classes=2, max_len=len(text)
    )
    assert found["ids in use"] == ["", *["14 of 256"] * 3]
    assert found["128..255"] == ["not ASCII", *[f"{2 / len(text):.2%}"] * 3]
    assert found["0"] == ["`0x00`", *["0.00%"] * 3]
    assert [name for name in found if name.isdecimal() and int(name) >= 65] == [str(65 + i) for i in range(9, -1, -1)]
    assert found["65"][0] == "`A`"
    assert "- 0: none\n- 1: `AAAA" in shown
    assert found["train"][-1] in ("100.0%", "0.0%")
    assert f"of {len(text)} tokens" in shown


@pytest.mark.parametrize(
    ("text", "code"),
    [("a", "`a`"), ("`", "`` ` ``"), ("``x", "``` ``x ```"), ("\n", "`\\n`"), (" ", "`' '`"), ("a|b", "`a|b`")],
)
def test_any_text_is_code_on_one_line(text: str, code: str) -> None:
    assert doctor._code(text) == code


def test_a_bar_in_a_cell_ends_no_cell(capsys: pytest.CaptureFixture[str]) -> None:
    doctor._section("Names", [["id", "name"], ["124", "`|`"]])
    assert capsys.readouterr().out.splitlines()[-1] == r"| 124 | `\|` |"


def images(side: int, values: Sequence[int], labels: Sequence[int]) -> Split:
    return split([bytes([value]) * side**2 for value in values], labels)


@pytest.mark.parametrize("classes", [2, 10])
def test_the_page_of_images_has_a_row_for_each_label(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], classes: int
) -> None:
    values = [10 + 20 * label + image for image in range(12) for label in range(classes)]
    splits = dict.fromkeys(data.SPLITS, images(4, values, list(range(classes)) * 12))
    facts = {"vocabulary": [str(i) for i in range(256)], "classes": classes, "max_len": 16, "kind": "pixels"}
    shown, found = examine(tmp_path, capsys, splits, **facts)
    assert found["mean"][0] == f"{np.mean(values):.2f}"
    assert found["deviation"][0] == f"{np.std(values):.2f}"
    assert found["images that repeat an earlier one"] == ["0 in train, 0 in val, 0 in test"]
    assert found["accuracy on test of the mean pixel alone, fitted on train"] == ["100.0%"]
    assert "| train | " in shown
    picture = data.folder(tmp_path, Toy(), "made") / "doctor" / "samples.png"
    assert shown.splitlines()[-1] == f"![A row of training images for each label]({picture})"
    page = np.round(255 * imread(picture)[..., 0]).astype(int)
    tops = []
    for label in range(classes):
        chosen = 10 + 20 * label + np.linspace(0, 11, 10).astype(int)
        places = [np.argwhere(page == value) for value in chosen]
        squares = [place for place in places if len(place) > 2_000]
        assert len(squares) == 10
        # The edges of letters have the same greys, but less of them.
        middles = np.array([np.median(place, axis=0) for place in squares])
        assert np.ptp(middles[:, 0]) <= 2
        assert (np.diff(middles[:, 1]) > 90).all()
        tops.append(middles[0, 0])
    assert (np.diff(tops) > 90).all()


def test_a_label_without_images_leaves_its_row_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = dict.fromkeys(data.SPLITS, images(3, [7, 8], [2, 2]))
    facts = {"vocabulary": [str(i) for i in range(256)], "classes": 3, "max_len": 9, "kind": "pixels"}
    shown, _ = examine(tmp_path, capsys, splits, **facts)
    assert shown.endswith("samples.png)\n")


def test_images_that_are_no_squares_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = dict.fromkeys(data.SPLITS, split([b"12345"], [0]))
    with pytest.raises(ValueError, match=r"image 0 has 5 pixels, which make no square"):
        examine(tmp_path, capsys, splits, classes=1, max_len=5, kind="pixels", vocabulary=BYTES)


def test_long_and_short_documents_share_a_logarithmic_axis(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = {name: make_split([1, 2, 30, 400, 5000], seed) for seed, name in enumerate(data.SPLITS)}
    shown, found = examine(tmp_path, capsys, splits, max_len=5000)
    assert found["split"][-1] == "of 5,000 tokens"
    assert shown.endswith("lengths.png)\n")


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 200))
@settings(max_examples=60, deadline=None)
def test_what_is_seen_does_not_depend_on_how_much_is_read_at_once(lengths: list[int], piece: int) -> None:
    made = make_split(lengths)
    documents = [made.tokens[a:b].tobytes() for a, b in zip(made.offsets[:-1], made.offsets[1:], strict=True)]
    read: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrays, "PIECE_BYTES", piece)
        patch.setattr(doctor, "COUNTED", max(piece // 3, 1))
        seen = doctor.look(made, read.append)
    assert seen.counts.tolist() == np.bincount(made.tokens, minlength=256).tolist()
    assert seen.sums.tolist() == [sum(document) for document in documents]
    assert len(seen.digests) == len(documents)
    assert [a == b for a in seen.digests for b in seen.digests] == [a == b for a in documents for b in documents]
    assert sum(read) == len(made.tokens)


def test_of_mapped_tokens_no_more_than_pieces_are_in_memory(tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.zeros(160 << 20, dtype=np.uint8))
    code = f"""
import resource, numpy as np
from lra.data import Split
from lra.doctor import look
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
tokens = np.load({str(tmp_path / "tokens.npy")!r}, mmap_mode="r").view(np.ndarray)
split = Split(tokens, np.arange(10241) << 14, np.zeros(10240, np.uint8))
before = peak()
look(split)
print((peak() - before) >> 10)"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment(), capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 120


@pytest.mark.parametrize("name", ["test.labels", "train.tokens"])
def test_an_array_of_other_content_is_named_after_the_answers(
    synthetic: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    file = synthetic / "listops-synthetic" / "1.0.0" / f"{name}.npy"
    content = bytearray(file.read_bytes())
    content[-1] = 15 if content[-1] != 15 and "tokens" in name else (content[-1] + 1) % 10
    file.write_bytes(content)
    assert prepare.main([SYNTHETIC, f"data_dir={synthetic}", "--doctor"]) == 1
    out, err = capsys.readouterr()
    assert "## Questions" in out
    assert err == f"error: the content of {name} is not what the manifest records\n"


def test_a_false_identity_is_found(synthetic: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = synthetic / "listops-synthetic" / "1.0.0" / "manifest.json"
    file.write_text(json.dumps(sealed(json.loads(file.read_text()) | {"sha256": "0" * 64}, data.SEAL)))
    assert prepare.main(["--doctor", SYNTHETIC, f"data_dir={synthetic}"]) == 1
    assert capsys.readouterr().err == "error: the sha256 of the manifest is not the hash of its arrays' hashes\n"


def test_the_doctor_of_nothing_says_how_to_prepare_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare.main(["--doctor", SYNTHETIC, f"data_dir={tmp_path}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"run make data task=listops task.source=synthetic data_dir={tmp_path}" in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000))


def test_a_disk_that_takes_no_picture_is_one_line_after_the_text(synthetic: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lra.prepare", "--doctor", SYNTHETIC, f"data_dir={synthetic}"],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, preexec_fn=limit_file_size,
    )  # fmt: skip
    assert done.returncode == 1
    assert "All 9 arrays have the sha256" in done.stdout
    assert "lengths.png" not in done.stdout
    assert done.stderr.startswith(f"error: data_dir={synthetic} cannot be used: ")
    assert "lengths.png" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list((synthetic / "listops-synthetic" / "1.0.0" / "doctor").iterdir()) == []


def test_a_folder_that_takes_no_picture_is_one_line_after_the_text(
    synthetic: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (synthetic / "listops-synthetic" / "1.0.0" / "doctor").write_text("a file")
    assert prepare.main(["--doctor", SYNTHETIC, f"data_dir={synthetic}"]) == 1
    out, err = capsys.readouterr()
    assert "All 9 arrays have the sha256" in out
    assert err.startswith(f"error: data_dir={synthetic} cannot be used: ")
    assert len(err.splitlines()) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_a_bar_beside_the_markdown(
    synthetic: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor.doctor(LISTOPS, "synthetic", synthetic)
    plain = capsys.readouterr()
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    doctor.doctor(LISTOPS, "synthetic", synthetic)
    assert "reading" in terminal.getvalue()
    assert capsys.readouterr().out == plain.out
