"""ListOps: the value of a nested expression of MIN, MAX, MED and SM over digits, one of ten classes.

Nangia and Bowman, "ListOps: A Diagnostic Dataset for Latent Tree Learning", 2018. https://arxiv.org/abs/1804.06028
Tay et al., "Long Range Arena: A Benchmark for Efficient Transformers", 2020. https://arxiv.org/abs/2011.04006

The distribution is the benchmark's. A node at depth d (the root has depth 1) is an operator with probability 1/4 where
d < 10, and a digit otherwise. An operator is uniform over the four and has 2 to 10 arguments, uniformly. An expression
is kept if it is longer than 500 and shorter than 2,000 tokens. MED is the median rounded down, SM the sum modulo 10.
Tokens are operators with their opening bracket, digits and closing brackets; the round parentheses of the published
files are dropped.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lra.tasks.archive import find_release, intact, lines, members, shown
from lra.tasks.base import Documents, Examples, Place, Progress, Reading, Task, documents, silent
from lra.tasks.draws import Draws

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
VOCABULARY = ("<pad>", *"0123456789", *OPERATORS, "]")
DIGIT_0 = VOCABULARY.index("0")
MIN, MAX, MED, SM = (VOCABULARY.index(name) for name in OPERATORS)
CLOSE = VOCABULARY.index("]")

TREES_PER_CHUNK = 1_024
MAX_DEPTH = 10
SHORTEST, LONGEST = 501, 1999
COUNTS = {"train": 96_000, "validation": 2_000, "test": 2_000}
SYNTHETIC_COUNTS = {"train": 1_024, "validation": 256, "test": 256}
# 2,000 examples stray from the distribution by a point or two. This is the first seed whose val and test are both
# within one standard error of it in the baselines that results are held against: 36.2% right for the root operator
# alone and 17.1% for the label 0 alone.
SEED = 3

RELEASED_FOLDER = "listops-1000"
RELEASED_FILES = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}


class ListOps(Task):
    """The task and its sources: our own generator, the published files, and tiny expressions for tests."""

    name = "listops"
    version = "1.0.0"
    vocabulary = VOCABULARY
    classes = 10
    max_len = 2000
    sources = ("generated", "release", "synthetic")

    def require(self, source: str, manual: Path) -> None:
        if source == "release":
            find_release(manual, RELEASED_FOLDER, "task.source=generated")

    def read(self, source: str, place: Place) -> Reading:
        if source == "release":
            found = find_release(place.manual, RELEASED_FOLDER, "task.source=generated")
            return read_release(found, self.max_len, place.progress)
        make, counts = (generate, COUNTS) if source == "generated" else (synthesize, SYNTHETIC_COUNTS)
        return Reading(counts, {split: make(SEED, split, count) for split, count in counts.items()}, {"seed": SEED})

    def doctor(self, train: Examples, val: Examples, test: Examples) -> list[tuple[str, str]]:
        right = 0
        for operator in range(MIN, SM + 1):
            seen, asked = (split.labels[split.tokens[split.offsets[:-1]] == operator] for split in (train, test))
            right += int((asked == np.bincount(seen, minlength=1).argmax()).sum())
        bounds = zip(test.offsets[:-1], test.offsets[1:], strict=True)
        values = [evaluate(test.tokens[start:end]) for start, end in bounds]
        wrong = sum(value != label for value, label in zip(values, test.labels.tolist(), strict=True))
        operators = (test.tokens >= MIN) & (test.tokens <= SM)
        nesting = np.cumsum(operators.astype(np.int64) - (test.tokens == CLOSE))
        depths, count = np.unique(np.maximum.reduceat(nesting, test.offsets[:-1]), return_counts=True)
        by_depth = ", ".join(f"{depth}: {n:,}" for depth, n in zip(depths, count, strict=True))
        return [
            ("accuracy on test of the root operator alone, fitted on train", f"{right / len(test.labels):.1%}"),
            ("test labels that another evaluator disagrees with", f"{wrong:,} of {len(test.labels):,}"),
            ("operators per token, test", f"{operators.mean():.4f}"),
            ("examples by nesting depth of operators, test", by_depth),
        ]


def evaluate(tokens: np.ndarray) -> int | None:
    """The value of one expression, read from left to right with a stack; None where it is not one whole expression."""
    stack: list[list[int]] = [[]]
    for token in tokens.tolist():
        if token == CLOSE:
            if len(stack) < 2 or len(stack[-1]) < 2:
                return None
            operator, *values = stack.pop()
            values.sort()
            middle = values[(len(values) - 1) // 2] + values[len(values) // 2]
            stack[-1].append({MIN: values[0], MAX: values[-1], MED: middle // 2, SM: sum(values) % 10}[operator])
        elif token >= MIN:
            stack.append([token])
        else:
            stack[-1].append(token - DIGIT_0)
    return stack[0][0] if len(stack) == 1 and len(stack[0]) == 1 else None


# The generator. All expressions of a chunk are made together, a depth at a time.


class Level(NamedTuple):
    """The operators of one depth, tree after tree, and their arguments, operator after operator."""

    tree: np.ndarray  # (operators,) the tree of each
    args: np.ndarray  # (operators,) how many arguments each has
    nested: np.ndarray  # (arguments,) bool: the argument is an operator of the next level

    @property
    def first(self) -> np.ndarray:
        """(operators,) the place of each operator's first argument."""
        return np.cumsum(self.args) - self.args


def generate(seed: int, split: str, count: int) -> Iterator[Documents]:
    """The first `count` expressions of a split, in blocks: the accepted ones of chunk 0, 1, 2 and so on."""
    chunk = 0
    while count > 0:
        tokens, offsets, labels = expressions(seed, split, chunk)
        kept = min(count, len(offsets) - 1)
        yield Documents(tokens[: offsets[kept]], offsets[: kept + 1], labels[:kept])
        count -= kept
        chunk += 1


def expressions(seed: int, split: str, chunk: int) -> Documents:
    """Grow a chunk of trees whose roots are operators, keep those of accepted length, spell and evaluate them."""
    draws = Draws(seed, list(COUNTS).index(split), chunk)
    levels = _accepted(_grow(draws))
    starts, sizes, argument_starts, offsets = _lay_out(levels)
    tokens = DIGIT_0 + draws.below(10, int(offsets[-1]))
    for start, size in zip(starts, sizes, strict=True):
        tokens[start] = MIN + draws.below(len(OPERATORS), len(start))
        tokens[start + size - 1] = CLOSE
    values = np.empty(0, dtype=np.uint8)
    for level, start, argument_start in zip(reversed(levels), reversed(starts), reversed(argument_starts), strict=True):
        arguments = tokens[argument_start] - np.uint8(DIGIT_0)
        arguments[level.nested] = values
        values = _apply(tokens[start], arguments, level)
    return Documents(tokens, offsets, values)


def _grow(draws: Draws) -> list[Level]:
    levels = []
    tree = np.arange(TREES_PER_CHUNK)
    for depth in range(1, MAX_DEPTH):
        args = 2 + draws.below(9, len(tree)).astype(np.int64)
        total = int(args.sum())
        nested = draws.below(4, total) == 0 if depth + 1 < MAX_DEPTH else np.zeros(total, dtype=bool)
        levels.append(Level(tree, args, nested))
        tree = np.repeat(tree, args)[nested]
    return levels


def _accepted(levels: list[Level]) -> list[Level]:
    """The same without the trees that are too short or too long."""
    # An operator adds two tokens and its arguments, and stands itself in the place of one argument: the root of none.
    length = np.ones(TREES_PER_CHUNK)
    for level in levels:
        length += np.bincount(level.tree, level.args + 1, TREES_PER_CHUNK)
    keep = (length >= SHORTEST) & (length <= LONGEST)
    kept = [keep[level.tree] for level in levels]
    return [Level(x.tree[k], x.args[k], x.nested[np.repeat(k, x.args)]) for x, k in zip(levels, kept, strict=True)]


def _lay_out(levels: list[Level]) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray], np.ndarray]:
    """Where things stand in the flat array of tokens.

    Returns per level the place of each operator, its size in tokens with all below it, and the place of each argument;
    and the offsets of the trees.
    """
    sizes: list[np.ndarray] = []
    argument_sizes: list[np.ndarray] = []
    below = np.empty(0, dtype=np.int64)
    for level in reversed(levels):
        size = np.ones(len(level.nested), dtype=np.int64)
        size[level.nested] = below
        below = 2 + _by_operator(np.add, size, level)
        sizes.insert(0, below)
        argument_sizes.insert(0, size)
    offsets = np.concatenate([[0], np.cumsum(sizes[0])])
    starts, argument_starts = [], []
    start = offsets[:-1]
    for level, size in zip(levels, argument_sizes, strict=True):
        before = np.cumsum(size) - size
        argument_start = before + np.repeat(start + 1 - before[level.first], level.args)
        starts.append(start)
        argument_starts.append(argument_start)
        start = argument_start[level.nested]
    return starts, sizes, argument_starts, offsets


def _by_operator(reduction: np.ufunc, arguments: np.ndarray, level: Level) -> np.ndarray:
    """(operators,) the arguments of each operator reduced to one number; every operator has arguments."""
    return reduction.reduceat(arguments, level.first) if len(level.args) else arguments[:0]


def _apply(operators: np.ndarray, arguments: np.ndarray, level: Level) -> np.ndarray:
    """(operators,) uint8: the value of each operator of a level."""
    values = np.empty(len(operators), dtype=np.uint8)
    for operator, reduction in ((MIN, np.minimum), (MAX, np.maximum), (SM, np.add)):
        chosen = operators == operator
        values[chosen] = _by_operator(reduction, arguments, level)[chosen]
    values[operators == SM] %= 10
    median = operators == MED
    args, place = level.args[median, None], np.arange(10)
    # Rows of ten, sorted, with 255 after the arguments of an operator that has fewer.
    rows = np.where(place < args, arguments.take(level.first[median, None] + place, mode="clip"), np.uint8(255))
    rows.sort(axis=1)
    low, high = (np.take_along_axis(rows, middle, axis=1) for middle in ((args - 1) // 2, args // 2))
    values[median] = ((low + high) // 2)[:, 0]
    return values


# The other sources.


def synthesize(seed: int, split: str, count: int) -> Iterator[Documents]:
    """Expressions of 8 to 64 tokens with one MIN, MAX or MED, learnable at a glance: most arguments are the label.

    The labels are uniform; the other arguments are as the operator allows: none below a MIN, none above a MAX.
    """
    draws = Draws(seed, list(COUNTS).index(split), 0)
    args = 6 + draws.below(57, count)
    labels = draws.below(10, count)
    operators = MIN + draws.below(3, count)
    texts = []
    for arg, label, operator in zip(args.tolist(), labels.tolist(), operators.tolist(), strict=True):
        digits = draws.below(10, arg)
        if operator != MED:
            digits = np.maximum(digits, label) if operator == MIN else np.minimum(digits, label)
        # In the order of random words, the first more than half of the arguments become the label.
        digits[np.argsort(draws.stream.random_raw(arg), kind="stable")[: arg // 2 + 1]] = label
        texts.append(bytes([operator, *(DIGIT_0 + digits), CLOSE]))
    yield documents(texts, labels)


def read_release(place: Path, max_len: int, progress: Progress = silent) -> Reading:
    """All examples of the published files, from the archive in one pass without unpacking it, or from the folder."""
    wanted = {f"{RELEASED_FOLDER}/{file}": split for split, file in RELEASED_FILES.items()}
    found: dict[str, list[Documents]] = {}
    digests: dict[str, str] = {}
    truncated = 0
    with intact(place):
        for name, content in members(place, lambda name: "/".join(name.split("/")[-2:]) in wanted, progress):
            split = wanted["/".join(name.split("/")[-2:])]
            if split in found:
                raise ValueError(f"{place}: {name} is there twice")
            source = f"{place}: {name}"
            parsed = _Released(lines(content, source), source, max_len)
            found[split] = list(parsed)
            digests[RELEASED_FILES[split]] = parsed.digest.hexdigest()
            truncated += parsed.truncated
            if len(found) == len(wanted):
                break
    for name, split in wanted.items():
        if split not in found:
            raise ValueError(f"{place} holds no {name}")
    counts = {split: sum(len(block.offsets) - 1 for block in found[split]) for split in RELEASED_FILES}
    provenance = {"place": place.name, "sha256": digests, "truncated": truncated, "published": COUNTS}
    return Reading(counts, {split: found[split] for split in RELEASED_FILES}, provenance)


class _Released:
    """The examples of one released file, in blocks; counts what it cuts and hashes what it reads."""

    # Round parentheses only say how the tree was built; brackets say all that matters.
    dropped = b"\xff"
    ids = {name.encode(): VOCABULARY.index(name) for name in VOCABULARY[1:]} | dict.fromkeys((b"(", b")"), dropped[0])
    header = b"Source\tTarget"
    block = 1_024

    def __init__(self, lines: Iterable[bytes], source: str, max_len: int) -> None:
        self.lines, self.source, self.max_len = lines, source, max_len
        self.digest = hashlib.sha256()
        self.truncated = 0

    def __iter__(self) -> Iterator[Documents]:
        texts: list[bytes] = []
        labels: list[int] = []
        number = 0
        for number, line in enumerate(self.lines, start=1):
            self.digest.update(line)
            line = line.rstrip(b"\r\n")
            if number == 1:
                if line != self.header:
                    raise self._wrong(1, f"header {shown(line)}, expected {shown(self.header)}")
                continue
            document, label = self._example(number, line)
            texts.append(document)
            labels.append(label)
            if len(texts) == self.block:
                yield documents(texts, labels)
                texts, labels = [], []
        if number < 2:
            raise ValueError(f"{self.source} is empty" if number == 0 else f"{self.source} holds no examples")
        if texts:
            yield documents(texts, labels)

    def _example(self, number: int, line: bytes) -> tuple[bytes, int]:
        columns = line.split(b"\t")
        if len(columns) != 2:
            raise self._wrong(number, f"{len(columns)} columns in {shown(line)}, expected 2")
        try:
            document = bytes(map(self.ids.__getitem__, columns[0].split())).translate(None, self.dropped)
        except KeyError as unknown:
            raise self._wrong(number, f"unknown token {shown(unknown.args[0])}") from None
        if not document:
            raise self._wrong(number, "no expression")
        if len(columns[1]) != 1 or not columns[1].isdigit():
            raise self._wrong(number, f"target {shown(columns[1])}, expected 0..9")
        self.truncated += len(document) > self.max_len
        return document[: self.max_len], int(columns[1])

    def _wrong(self, number: int, finding: str) -> ValueError:
        return ValueError(f"{self.source}, line {number}: {finding}")
