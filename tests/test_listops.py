"""ListOps: the generator against the published distribution and another evaluator, and the released files."""

import hashlib
import io
import multiprocessing
import random
import statistics
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lra.data import content_sha256
from lra.tasks import listops
from lra.tasks.archive import RELEASE_ADDRESS
from lra.tasks.base import Documents, Place
from lra.tasks.listops import ListOps

NAMES = ("<pad>", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "[MIN", "[MAX", "[MED", "[SM", "]")
# Chi-square is below this with probability 0.999, by degrees of freedom.
CRITICAL = {3: 16.27, 5: 20.52, 8: 26.12, 9: 27.88}

# Measured on the benchmark's own generator, 20,000 expressions.
LABELS = (0.170, 0.087, 0.080, 0.083, 0.089, 0.088, 0.076, 0.072, 0.086, 0.171)
ARGS = (0.1093, 0.1098, 0.1102, 0.1109, 0.1112, 0.1120, 0.1119, 0.1120, 0.1127)
LENGTHS_AT_5_25_50_75_95 = (536, 700, 951, 1313, 1800)
LABEL_GIVEN_ROOT = {
    "[MIN": (0.564, 0.209, 0.107, 0.053, 0.031, 0.019, 0.009, 0.004, 0.003, 0.001),
    "[MAX": (0.001, 0.003, 0.004, 0.009, 0.019, 0.031, 0.053, 0.107, 0.209, 0.564),
    "[MED": (0.012, 0.038, 0.100, 0.171, 0.210, 0.208, 0.145, 0.074, 0.033, 0.008),
    "[SM": (0.1,) * 10,
}


def joined(blocks: Iterator[Documents]) -> list[tuple[bytes, int]]:
    """(tokens, label) of every document."""
    return [
        (tokens[start:end].tobytes(), int(label))
        for tokens, offsets, labels in blocks
        for (start, end), label in zip(pairwise(offsets), labels, strict=True)
    ]


@cache
def sample() -> list[tuple[bytes, int]]:
    return joined(listops.generate(0, "train", 4_000))


def spell(document: bytes) -> list[str]:
    return [NAMES[token] for token in document]


def solve(words: Sequence[str]) -> tuple[int, list[tuple[str, int]], int]:
    """Value, (operator, number of arguments) of each operator, and deepest nesting, reading from right to left."""
    pending: list[Any] = []
    operators = []
    depth = deepest = 0
    for word in reversed(words):
        if word == "]":
            depth += 1
            deepest = max(deepest, depth)
            pending.append(word)
        elif word.isdigit():
            pending.append(int(word))
        else:
            depth -= 1
            values = []
            while (value := pending.pop()) != "]":
                values.append(value)
            operators.append((word, len(values)))
            if word == "[MED":
                pending.append(int(statistics.median(values)))
            else:
                pending.append({"[MIN": min(values), "[MAX": max(values), "[SM": sum(values) % 10}[word])
    (value,) = pending
    assert depth == 0
    return value, operators, deepest


def chi_square(counts: Sequence[int], shares: Sequence[float]) -> float:
    expected = np.array(shares) / sum(shares) * sum(counts)
    return float(((np.array(counts) - expected) ** 2 / expected).sum())


def test_the_vocabulary_is_fixed() -> None:
    assert listops.VOCABULARY == NAMES
    assert ListOps.vocabulary == NAMES


def test_every_label_is_the_value_of_its_expression() -> None:
    for document, label in sample()[:1_500] + joined(listops.synthesize(0, "train", 500)):
        assert solve(spell(document))[0] == label


def test_the_doctors_evaluator_agrees() -> None:
    for document, label in sample()[:100]:
        assert listops.evaluate(np.frombuffer(document, dtype=np.uint8)) == label


@pytest.mark.parametrize("words", ["[MAX 1 2", "1 ]", "]", "[MAX ]", "1 2", "[MIN 1 [MAX ] ]", "[MIN 1 2 ] 3"])
def test_what_is_no_whole_expression_has_no_value(words: str) -> None:
    assert listops.evaluate(np.array([NAMES.index(word) for word in words.split()])) is None


def test_labels_are_distributed_as_published() -> None:
    counts = Counter(label for _, label in sample())
    assert chi_square([counts[label] for label in range(10)], LABELS) < CRITICAL[9]


def test_lengths_are_distributed_as_published() -> None:
    lengths = np.array([len(document) for document, _ in sample()])
    assert lengths.min() > 500
    assert lengths.max() < 2000
    bins = np.bincount(np.digitize(lengths, LENGTHS_AT_5_25_50_75_95), minlength=6)
    assert chi_square(bins.tolist(), (0.05, 0.20, 0.25, 0.25, 0.20, 0.05)) < CRITICAL[5]


def test_a_third_of_the_trees_is_kept() -> None:
    trees, kept = 8 * listops.TREES_PER_CHUNK, sum(len(listops.expressions(0, "train", i).labels) for i in range(8))
    # Of all trees 8.28% are kept, and every kept one is of the quarter whose root is an operator.
    share = 4 * 0.0828
    assert abs(kept - trees * share) < 3.3 * (trees * share * (1 - share)) ** 0.5


def test_operators_arguments_digits_and_depth_are_distributed_as_published() -> None:
    documents = [spell(document) for document, _ in sample()[:1_500]]
    operators: Counter[str] = Counter()
    arguments: Counter[int] = Counter()
    for words in documents:
        _, found, depth = solve(words)
        assert depth == 9
        operators.update(name for name, _ in found)
        arguments.update(number for _, number in found)
    assert chi_square([operators[name] for name in LABEL_GIVEN_ROOT], (0.25,) * 4) < CRITICAL[3]
    assert set(arguments) == set(range(2, 11))
    assert chi_square([arguments[number] for number in range(2, 11)], ARGS) < CRITICAL[8]
    counts = Counter(word for document in documents for word in document)
    assert chi_square([counts[str(digit)] for digit in range(10)], (0.1,) * 10) < CRITICAL[9]
    assert abs(operators.total() / counts.total() - 0.1423) < 0.001


def test_the_root_operator_says_as_much_about_the_label_as_published() -> None:
    roots = Counter(spell(document)[0] for document, _ in sample())
    assert chi_square([roots[name] for name in LABEL_GIVEN_ROOT], (0.25,) * 4) < CRITICAL[3]
    for root, shares in LABEL_GIVEN_ROOT.items():
        counts = Counter(label for document, label in sample() if spell(document[:1]) == [root])
        # Labels that are too rare for chi-square count as one.
        common = [label for label in range(10) if shares[label] * roots[root] >= 5]
        rare = [label for label in range(10) if label not in common]
        observed = [counts[label] for label in common] + [sum(counts[label] for label in rare)] * bool(rare)
        expected = [shares[label] for label in common] + [sum(shares[label] for label in rare)] * bool(rare)
        assert chi_square(observed, expected) < CRITICAL[9]


def test_no_expression_occurs_twice_within_or_across_splits() -> None:
    documents = [document for document, _ in sample()]
    for split in ("validation", "test"):
        documents += [document for document, _ in joined(listops.generate(0, split, 1_000))]
    assert len(set(documents)) == len(documents) == 6_000


def test_the_bytes_are_those_of_every_other_machine() -> None:
    digest = hashlib.sha256()
    for split in ("train", "validation", "test"):
        for block in listops.generate(listops.SEED, split, 64):
            digest.update("".join(content_sha256(array) for array in block).encode())
        for block in listops.synthesize(listops.SEED, split, 64):
            digest.update("".join(content_sha256(array) for array in block).encode())
    assert digest.hexdigest() == "ffa97f274738b70f554d928c9f8acae58a1f80897f951a57bbc6ce2035496c9b"


def test_a_shorter_split_is_the_beginning_of_a_longer_one() -> None:
    assert joined(listops.generate(0, "train", 700)) == sample()[:700]


def test_another_seed_or_split_has_other_expressions() -> None:
    firsts = {joined(listops.generate(seed, split, 1))[0] for seed in (0, 1, 2) for split in listops.COUNTS}
    assert len(firsts) == 9


def test_chunks_are_the_same_in_any_order_and_process() -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        later = {chunk: pool.submit(listops.expressions, 0, "train", chunk) for chunk in (3, 1, 2, 0)}
        blocks = [later[chunk].result() for chunk in range(4)]
    assert joined(iter(blocks))[:1_300] == sample()[:1_300]


def test_synthetic_expressions_are_short_balanced_and_hold_their_label_most_often() -> None:
    documents = joined(listops.synthesize(0, "train", 1_024))
    lengths = [len(document) for document, _ in documents]
    assert (min(lengths), max(lengths)) == (8, 64)
    counts = Counter(label for _, label in documents)
    assert chi_square([counts[label] for label in range(10)], (0.1,) * 10) < CRITICAL[9]
    for document, label in documents:
        assert Counter(spell(document)[1:-1]).most_common(1) == [(str(label), spell(document).count(str(label)))]


# The released files, in archives and folders made here.


def grow(draw: random.Random, depth: int) -> Any:
    if depth > 1 and draw.random() < 0.75:
        return draw.randrange(10)
    return [draw.choice(NAMES[11:15]), *(grow(draw, depth + 1) for _ in range(draw.randint(2, 5)))]


def flat(tree: Any) -> list[str]:
    return [str(tree)] if isinstance(tree, int) else [tree[0], *(word for arg in tree[1:] for word in flat(arg)), "]"]


def published(tree: Any) -> str:
    """A tree as the benchmark writes it: binary, in round parentheses."""
    if isinstance(tree, int):
        return str(tree)
    text = tree[0]
    for argument in tree[1:]:
        text = f"( {text} {published(argument)} )"
    return f"( {text} ] )"


def rows(seed: int, count: int) -> list[tuple[Any, int]]:
    draw = random.Random(seed)
    trees = [grow(draw, 1) for _ in range(count)]
    return [(tree, solve(flat(tree))[0]) for tree in trees]


def tsv(examples: Sequence[tuple[Any, int]]) -> bytes:
    return "\r\n".join(["Source\tTarget", *(f"{published(tree)}\t{label}" for tree, label in examples), ""]).encode()


SPLITS = {"train": rows(1, 1_100), "validation": rows(2, 30), "test": rows(3, 20)}
FILES = {"basic_train.tsv": "train", "basic_val.tsv": "validation", "basic_test.tsv": "test"}


GOOD = {name: tsv(SPLITS[split]) for name, split in FILES.items()}
SMALL = {name: tsv(SPLITS[split][:15]) for name, split in FILES.items()}


def archive(manual: Path, files: dict[str, bytes], folder: str = "lra_release/lra_release/listops-1000") -> Path:
    manual.mkdir(parents=True, exist_ok=True)
    with tarfile.open(manual / "lra_release.gz", "w:gz") as packed:
        others = {
            "lra_release/lra_release/tsv_data/basic_train.tsv": b"another task",
            f"{folder}/readme": b"none of ours",
        }
        for name, content in {**others, **{f"{folder}/{name}": content for name, content in files.items()}}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    return manual / "lra_release.gz"


def unpacked(manual: Path, files: dict[str, bytes], folder: str = "listops-1000") -> Path:
    (manual / folder).mkdir(parents=True)
    for name, content in files.items():
        (manual / folder / name).write_bytes(content)
    return manual / folder


@pytest.mark.parametrize("order", [("train", "validation", "test"), ("test", "validation", "train")])
def test_the_archive_is_read_in_any_order_of_its_members(tmp_path: Path, order: tuple[str, ...]) -> None:
    files = sorted(GOOD.items(), key=lambda item: order.index(FILES[item[0]]))
    archive(tmp_path, dict(files))
    reading = ListOps().read("release", Place(tmp_path, tmp_path))
    for split, examples in SPLITS.items():
        found = joined(iter(reading.blocks[split]))
        assert [(spell(document), label) for document, label in found] == [
            (flat(tree), label) for tree, label in examples
        ]
        assert reading.counts[split] == len(examples)
    assert list(reading.blocks) == ["train", "validation", "test"]
    assert reading.provenance["truncated"] == 0
    assert reading.provenance["sha256"] == {name: hashlib.sha256(content).hexdigest() for name, content in files}


@pytest.mark.parametrize("folder", ["lra_release/lra_release/listops-1000", "lra_release/listops-1000", "listops-1000"])
def test_the_unpacked_folder_reads_as_the_archive_does(tmp_path: Path, folder: str) -> None:
    archive(tmp_path / "packed", GOOD, folder)
    unpacked(tmp_path / "unpacked", GOOD, folder)
    packed, plain = (ListOps().read("release", Place(tmp_path / where, tmp_path)) for where in ("packed", "unpacked"))
    for split in SPLITS:
        assert joined(iter(packed.blocks[split])) == joined(iter(plain.blocks[split]))
    assert packed.provenance["sha256"] == plain.provenance["sha256"]


def test_plain_line_ends_are_read_too(tmp_path: Path) -> None:
    unpacked(tmp_path, {name: content.replace(b"\r\n", b"\n") for name, content in GOOD.items()})
    found = joined(iter(ListOps().read("release", Place(tmp_path, tmp_path)).blocks["test"]))
    assert [spell(document) for document, _ in found] == [flat(tree) for tree, _ in SPLITS["test"]]


def test_too_long_an_expression_is_cut_and_counted(tmp_path: Path) -> None:
    tree = ["[SM", *[1] * 2_500]
    unpacked(tmp_path, GOOD | {"basic_test.tsv": tsv([(tree, 0), (["[MAX", 1, 2], 2)])})
    reading = ListOps().read("release", Place(tmp_path, tmp_path))
    assert reading.provenance["truncated"] == 1
    documents = joined(iter(reading.blocks["test"]))
    assert [len(document) for document, _ in documents] == [2_000, 4]
    assert spell(documents[0][0]) == flat(tree)[:2_000]


BROKEN_FILES = {
    "empty": (b"", "basic_val.tsv is empty"),
    "only a header": (b"Source\tTarget\r\n", "basic_val.tsv holds no examples"),
    "no header": (
        b"( ( ( [MAX 1 ) 2 ) ] )\t2\r\n",
        "basic_val.tsv, line 1: header '( ( ( [MAX 1 ) 2 ) ] )\\t2', expected 'Source",
    ),
    "one column": (
        b"Source\tTarget\r\n( ( ( [MAX 1 ) 2 ) ] )\r\n",
        "line 2: 1 columns in '( ( ( [MAX 1 ) 2 ) ] )', expected 2",
    ),
    "three columns": (b"Source\tTarget\r\n1\t1\t1\r\n", "line 2: 3 columns in '1\\t1\\t1', expected 2"),
    "unknown token": (b"Source\tTarget\r\n[MAX 1 2 ]\t2\r\n[AVG 1 2 ]\t1\r\n", "line 3: unknown token '[AVG'"),
    "number": (b"Source\tTarget\r\n[MAX 12 3 ]\t2\r\n", "line 2: unknown token '12'"),
    "target of two digits": (b"Source\tTarget\r\n[SM 5 5 ]\t10\r\n", "line 2: target '10', expected 0..9"),
    "target of none": (b"Source\tTarget\r\n[SM 5 5 ]\t\r\n", "line 2: target '', expected 0..9"),
    "target no number": (b"Source\tTarget\r\n[SM 5 5 ]\tx\r\n", "line 2: target 'x', expected 0..9"),
    "no expression": (b"Source\tTarget\r\n( )\t1\r\n", "line 2: no expression"),
    "blank line": (b"Source\tTarget\r\n\r\n", "line 2: 1 columns in '', expected 2"),
    "binary": (bytes(range(256)) * 40, "line 1: header '"),
}


@pytest.mark.parametrize("name", BROKEN_FILES)
@pytest.mark.parametrize("put", [archive, unpacked])
def test_a_broken_file_is_one_line_with_file_line_and_value(tmp_path: Path, put: Any, name: str) -> None:
    content, finding = BROKEN_FILES[name]
    place = put(tmp_path, SMALL | {"basic_val.tsv": content})
    with pytest.raises(ValueError) as caught:
        ListOps().read("release", Place(tmp_path, tmp_path))
    message = str(caught.value)
    assert finding in message
    assert message.startswith(str(place))
    assert len(message.splitlines()) == 1
    assert len(message) < 300


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("put", [archive, unpacked])
def test_a_missing_file_is_named(tmp_path: Path, put: Any, name: str) -> None:
    put(tmp_path, {other: content for other, content in SMALL.items() if other != name})
    with pytest.raises(ValueError, match=rf"holds no (listops-1000/)?{name}$"):
        ListOps().read("release", Place(tmp_path, tmp_path))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_an_archive_cut_short_is_named(tmp_path: Path, share: float) -> None:
    packed = archive(tmp_path, GOOD)
    packed.write_bytes(packed.read_bytes()[: int(share * packed.stat().st_size)])
    with pytest.raises(ValueError, match=r"lra_release.gz is broken or cut short \(.+\)$"):
        ListOps().read("release", Place(tmp_path, tmp_path))


def test_a_missing_release_says_where_to_get_it_and_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError) as caught:
        ListOps().require("release", tmp_path)
    message = str(caught.value)
    for part in (str(tmp_path / "lra_release.gz"), RELEASE_ADDRESS, "task.source=generated needs no download"):
        assert part in message
    assert "\n" not in message
