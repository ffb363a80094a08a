"""`make data-doctor`: what a sceptic asks first about a prepared data set, as Markdown and as pictures."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lra import data
from lra.arrays import pieces
from lra.bar import bar
from lra.data import Split
from lra.pictures import draw_lengths, draw_samples
from lra.tasks.base import Task

# Vocabularies up to this size are printed whole, of larger ones the most frequent ids.
WHOLE_VOCABULARY, MOST_FREQUENT = 32, 10
BYTES = 256
# Ids counted at once: few enough that their copies as whole numbers stay in the processor's cache.
COUNTED = 1 << 18
BINS = 20
SHOWN = 100


class Mismatch(Exception):
    """Arrays do not have the content that their manifest records."""


class Seen(NamedTuple):
    """What one pass over the tokens of a split finds."""

    counts: np.ndarray  # (256,) int64: how often each id stands there
    digests: list[bytes]  # of each document's tokens
    sums: np.ndarray  # (M,) int64: the sum of each document's ids


def doctor(facts: Task, source: str, data_dir: str | Path) -> None:
    """Print what a sceptic asks first about a prepared data set, check every array against its manifest, and draw.

    Raises Mismatch naming the arrays whose content is not the recorded one, OSError where pictures cannot be written;
    both after everything has been printed.
    """
    loaded = data.load(data_dir, facts, source)
    folder = data.folder(data_dir, facts, source)
    manifest, splits = loaded.manifest, {name: getattr(loaded, name) for name in data.SPLITS}
    total = sum(split.tokens.nbytes + _bytes(split) for split in splits.values())
    watched = sys.stderr.isatty()
    with bar(sys.stderr, "reading", total, in_bytes=True, passing=True) if watched else nullcontext(_ignore) as advance:
        seen = {name: look(split, advance) for name, split in splits.items()}
        found = data.content_hashes(loaded, advance)
        what = "images" if _pixels(manifest) else "documents"
        answers = [*_floors(manifest, splits, seen), *duplicates(splits, seen, what), *facts.doctor(*loaded[1:])]

    print(f"# {facts.name} ({facts.config(source)}) {facts.version}\n")
    print(f"- folder: {folder}\n- sha256: {manifest['sha256']}")
    print(f"- provenance: {json.dumps(manifest.get('provenance'))}")
    pixels = _pixels(manifest)
    _section("Sizes", _sizes(manifest, splits))
    _section("Labels", _labels(manifest, splits))
    _section("Pixels" if pixels else "Tokens", _ids(manifest, seen))
    if not pixels:
        _examples(manifest, loaded.train)
    _section("Questions", [["question", "answer"], *map(list, answers)])
    _verify(manifest, found)

    print("\n## Pictures\n", flush=True)
    if pixels:
        drawn = draw_samples(folder / "doctor" / "samples.png", loaded.train, manifest["classes"])
        print(f"![A row of training images for each label]({drawn})")
    else:
        drawn = draw_lengths(folder / "doctor" / "lengths.png", splits, manifest["max_len"])
        print(f"![Lengths of the documents of each split]({drawn})")


def _pixels(manifest: Mapping[str, Any]) -> bool:
    """Whether the examples are images; manifests that do not say are of tokens."""
    return manifest.get("kind", "tokens") == "pixels"


def _ignore(count: int) -> None:
    """The progress of what nobody watches."""


def _bytes(split: Split) -> int:
    return sum(array.nbytes for array in split if array is not None)


def look(split: Split, advance: Callable[[int], None] = _ignore) -> Seen:
    """Read the tokens of a split once, front to back; of a mapped array no more than a piece stays in memory."""
    counts = np.zeros(BYTES, dtype=np.int64)
    digests: list[bytes] = []
    sums: list[int] = []
    end = first = 0
    rest = split.tokens[:0]
    for piece in pieces(split.tokens):
        for start in range(0, len(piece), COUNTED):
            counts += np.bincount(piece[start : start + COUNTED], minlength=BYTES)
        block, begin, end = np.concatenate([rest, piece]), end - len(rest), end + len(piece)
        # Documents first, first + 1, ..., last - 1 end within the block.
        last = int(np.searchsorted(split.offsets, end, side="right")) - 1
        bounds = (split.offsets[first : last + 1] - begin).tolist()
        documents = [block[a:b] for a, b in pairwise(bounds)]
        digests += [hashlib.sha256(document.data).digest() for document in documents]
        sums += [int(document.sum()) for document in documents]
        first, rest = last, block[bounds[-1] :].copy()
        advance(len(piece))
    return Seen(counts, digests, np.array(sums))


def _sizes(manifest: Mapping[str, Any], splits: Mapping[str, Split]) -> list[list[str]]:
    """Of each split how many examples and tokens, and how long they are."""
    if _pixels(manifest):
        counts = {name: (len(split.labels), len(split.tokens)) for name, split in splits.items()}
        rows = [[name, f"{images:,}", f"{all_:,}", f"{all_ / images:,.0f}"] for name, (images, all_) in counts.items()]
        return [["split", "images", "pixels", "pixels of an image"], *rows]
    pairs = splits["train"].pairs is not None
    documents = ["documents"] if pairs else []
    quantiles = ["shortest", *(f"{q}%" for q in data.QUANTILES[1:-1]), "longest"]
    head = ["split", "examples", *documents, "tokens", "mean length", *quantiles]
    longest = manifest["max_len"]
    lengths = {name: np.diff(split.offsets) for name, split in splits.items()}
    cut = any((each == longest).any() for each in lengths.values())
    rows = [[*head, *([f"of {longest:,} tokens"] if cut else [])]]
    for name, split in splits.items():
        rows.append([name, f"{len(split.labels):,}"])
        rows[-1] += [f"{len(split.offsets) - 1:,}"] if pairs else []
        rows[-1] += [f"{len(split.tokens):,}", f"{lengths[name].mean():,.1f}"]
        rows[-1] += [f"{length:,}" for length in data.length_quantiles(split).values()]
        rows[-1] += [f"{(lengths[name] == longest).mean():.1%}"] if cut else []
    return rows


def _labels(manifest: Mapping[str, Any], splits: Mapping[str, Split]) -> list[list[str]]:
    rows = [["label", *map(str, range(manifest["classes"]))]]
    for name, split in splits.items():
        rows.append([name, *(f"{share:.1%}" for share in _shares(split, manifest["classes"]))])
    return rows


def _shares(split: Split, classes: int) -> np.ndarray:
    return np.bincount(split.labels, minlength=classes) / len(split.labels)


def _ids(manifest: Mapping[str, Any], seen: Mapping[str, Seen]) -> list[list[str]]:
    """What stands in the documents: each id of a small vocabulary; of a large one, facts and the most frequent ids."""
    names = manifest["vocabulary"]
    shares = {name: its.counts[: len(names)] / its.counts.sum() for name, its in seen.items()}
    shown: Sequence[int] = range(len(names))
    rows: list[list[str]] = []
    if len(names) > WHOLE_VOCABULARY:
        used = np.count_nonzero(shares["train"])
        shown = np.argsort(-shares["train"], kind="stable")[: min(MOST_FREQUENT, used)].tolist()
        rows.append(["ids in use", "", *(f"{np.count_nonzero(share)} of {len(names)}" for share in shares.values())])
        if 0 not in shown:
            rows.append(["0", _name(names, 0), *(f"{share[0]:.2%}" for share in shares.values())])
        if _pixels(manifest):
            values = np.arange(len(names))
            means = [float(share @ values) for share in shares.values()]
            squares = [float(share @ values**2) for share in shares.values()]
            spreads = [(square - mean**2) ** 0.5 for square, mean in zip(squares, means, strict=True)]
            rows += [["mean", "", *(f"{x:.2f}" for x in means)], ["deviation", "", *(f"{x:.2f}" for x in spreads)]]
        elif len(names) == BYTES:
            rows.append(["128..255", "not ASCII", *(f"{share[128:].sum():.2%}" for share in shares.values())])
    rows += [[str(i), _name(names, i), *(f"{share[i]:.2%}" for share in shares.values())] for i in shown]
    if not any(row[1] for row in rows):
        return [["id", *shares], *([first, *rest] for first, _, *rest in rows)]
    return [["id", "name", *shares], *rows]


def _name(names: Sequence[str], token: int) -> str:
    """The name of a token where it says more than its id."""
    return "" if names[token] == str(token) else _code(names[token])


def _code(text: str) -> str:
    """A text as code in Markdown, whatever it contains, on one line."""
    text = repr(text) if not text.strip(" ") else text if text.isprintable() else repr(text)[1:-1]
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    gap = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{gap}{text}{gap}{fence}"


def _examples(manifest: Mapping[str, Any], split: Split) -> None:
    """Print how the first training example of each label begins."""
    print("\n## How the first training example of each label begins\n")
    for label in range(manifest["classes"]):
        places = np.flatnonzero(split.labels == label)[:1]
        documents = places if split.pairs is None else split.pairs[places].ravel()
        texts = [_code(_spell(manifest["vocabulary"], split, document)) for document in documents.tolist()]
        print(f"- {label}: {' and '.join(texts) or 'none'}")


def _spell(names: Sequence[str], split: Split, document: int) -> str:
    """The beginning of a document: bytes as text, others by their names."""
    start, end = split.offsets[document : document + 2].tolist()
    tokens = split.tokens[start : min(end, start + SHOWN)]
    whole = tokens.tobytes().decode("utf-8", errors="replace") if len(names) == BYTES else ""
    text = repr(whole)[1:-1] if whole else " ".join(names[token] for token in tokens)
    return text if end - start <= SHOWN and len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def _floors(
    manifest: Mapping[str, Any], splits: Mapping[str, Split], seen: Mapping[str, Seen]
) -> Iterator[tuple[str, str]]:
    """What can be had without reading."""
    classes, train, test = manifest["classes"], splits["train"], splits["test"]
    majority = int(_shares(train, classes).argmax())
    share = _shares(test, classes)[majority]
    yield "accuracy on test of train's most frequent label", f"{share:.1%} (label {majority})"
    if _pixels(manifest):
        pixels = {name: seen[name].sums / np.diff(splits[name].offsets) for name in ("train", "test")}
        yield (
            "accuracy on test of the mean pixel alone, fitted on train",
            _of_one_number(classes, train, test, pixels["train"], pixels["test"]),
        )
        return
    lengths = []
    for split in (train, test):
        each = np.diff(split.offsets)
        lengths.append(each if split.pairs is None else each[split.pairs].sum(axis=1))
    what = "length" if train.pairs is None else "two lengths' sum"
    yield f"accuracy on test of the {what} alone, fitted on train", _of_one_number(classes, train, test, *lengths)


def _of_one_number(classes: int, train: Split, test: Split, known: np.ndarray, asked: np.ndarray) -> str:
    """Accuracy on test of the label that is most frequent in train among examples with nearly the same number."""
    edges = np.unique(np.quantile(known, np.arange(1, BINS) / BINS))
    seen = np.zeros((len(edges) + 1, classes))
    np.add.at(seen, (np.searchsorted(edges, known), train.labels), 1)
    guessed = seen.argmax(axis=1)[np.searchsorted(edges, asked)]
    return f"{(guessed == test.labels).mean():.1%}"


def duplicates(splits: Mapping[str, Split], seen: Mapping[str, Seen], what: str) -> list[tuple[str, str]]:
    """How many documents, and pairs of documents, occur twice, within each split and across two of them."""
    documents = {name: its.digests for name, its in seen.items()}
    if splits["train"].pairs is None:
        return [*_repeated(what, documents), _contradictions(splits, documents)]
    examples: dict[str, list[bytes]] = {}
    alone, equal, short = {}, {}, {}
    for name, split in splits.items():
        assert split.pairs is not None, "all splits have pairs or none has"
        both = [(documents[name][a], documents[name][b]) for a, b in split.pairs.tolist()]
        examples[name] = [b"".join(sorted(pair)) for pair in both]
        alone[name] = len(documents[name]) - len(np.unique(split.pairs))
        equal[name] = sum(a == b for a, b in both)
        short[name] = int((np.diff(split.offsets)[split.pairs].min(axis=1) == 1).sum())
    return [
        *_repeated(what, documents),
        *_repeated("pairs, in either order,", examples),
        _contradictions(splits, examples),
        ("documents in no pair", _counted(alone)),
        ("pairs of equal documents", _counted(equal)),
        ("pairs with a document of a single token", _counted(short)),
    ]


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} in {name}" for name, count in counts.items())


def _repeated(what: str, digests: Mapping[str, Sequence[bytes]]) -> Iterator[tuple[str, str]]:
    counts = {name: Counter(each) for name, each in digests.items()}
    yield f"{what} that repeat an earlier one", _counted({name: c.total() - len(c) for name, c in counts.items()})
    shared = []
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        both = sum(count for digest, count in counts[b].items() if digest in counts[a])
        shared.append(f"{both:,} of {b} in {a} ({both / counts[b].total():.1%})")
    yield f"{what} that another split has too", ", ".join(shared)


def _contradictions(splits: Mapping[str, Split], digests: Mapping[str, Sequence[bytes]]) -> tuple[str, str]:
    labels: dict[bytes, set[int]] = defaultdict(set)
    for name, split in splits.items():
        for digest, label in zip(digests[name], split.labels.tolist(), strict=True):
            labels[digest].add(label)
    return "examples that occur with more than one label", f"{sum(len(each) > 1 for each in labels.values()):,}"


def _verify(manifest: Mapping[str, Any], found: Mapping[str, str]) -> None:
    recorded = data.recorded_hashes(manifest)
    different = [array for array in recorded if found[array] != recorded[array]]
    if different:
        raise Mismatch(f"the content of {', '.join(different)} is not what the manifest records")
    if data.identity_sha256(manifest["splits"]) != manifest["sha256"]:
        raise Mismatch("the sha256 of the manifest is not the hash of its arrays' hashes")
    print(f"\nAll {len(recorded)} arrays have the sha256 that the manifest records.", flush=True)


def _section(title: str, rows: Sequence[Sequence[str]]) -> None:
    """Print a heading and a Markdown table, the first row its head, whose columns line up as plain text."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    print(f"\n## {title}\n")
    for row in (cells[0], ["-" * width for width in widths], *cells[1:]):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print(end="", flush=True)
