"""Prepare the data of a task once: TFDS builder, then arrays and a manifest that training maps into memory."""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from lra import data
from lra.files import sync_folder
from lra.tasks import TASKS
from lra.tasks.base import Reading, Task, builder
from lra.words import WordError, choose, parse

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DEFAULTS = {"task": "listops", "task.source": "", "data_dir": "runs/.data"}
TFDS_SPLITS = {"train": "train", "val": "validation", "test": "test"}
QUANTILES = (0, 5, 25, 50, 75, 95, 100)
RECORDS_PER_READ = 4_096


class Stopped(BaseException):
    """A signal asked the preparation to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Mismatch(Exception):
    """Arrays do not have the content that their manifest records."""


def prepare(task: str, source: str, data_dir: str | Path) -> Path:
    """Write the data set of a task's source below `data_dir`, unless it is there, and return its folder.

    Raises ValueError where the source or what is in the folder is not as it should be, OSError where the disk fails.
    """
    facts, data_dir = TASKS[task], Path(data_dir)
    path = data.folder(data_dir, task, source, facts.version)
    if _is_there(facts, source, data_dir):
        return path
    facts.require(source, data_dir / "manual")
    data_dir.mkdir(parents=True, exist_ok=True)
    with _alone(data_dir / f".{task}-{source}.lock", f"{task} ({source})"):
        # Another preparation may have finished while this one waited.
        if not _is_there(facts, source, data_dir):
            _build(facts, source, data_dir, path)
    return path


def _is_there(task: Task, source: str, data_dir: Path) -> bool:
    """Say so where the data set is prepared; a broken one is a ValueError."""
    try:
        manifest = data.load(data_dir, task.name, source, task.version).manifest
    except data.DataMissing:
        return False
    path = data.folder(data_dir, task.name, source, task.version)
    print(f"{task.name} ({source}) is prepared in {path}: {_summary(manifest)}")
    return True


@contextmanager
def _alone(file: Path, what: str) -> Iterator[None]:
    """Hold the lock on `file`; the system releases it however this process ends."""
    with file.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{what} is being prepared by another process: waiting for it", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _build(task: Task, source: str, data_dir: Path, path: Path) -> None:
    start = time.monotonic()
    partial = data_dir / f".{task.name}-{source}-{task.version}.partial"
    records = data_dir / "tfds" / f"lra_{task.name}" / source
    # What a killed preparation left, and records that may be of another source file than the one read now.
    _remove(partial, records)
    try:
        with _progress(f"preparing {task.name} ({source}): opening the source", None):
            reading = task.read(source, data_dir / "manual")
        built = _records(task, source, reading, data_dir / "tfds")
        manifest = _write(task, source, reading, built, partial)
        path.parent.mkdir(exist_ok=True)
        partial.rename(path)
        sync_folder(path.parent)
    except BaseException:
        _remove(partial, records)
        raise
    print(f"{task.name} ({source}) prepared in {path}, {time.monotonic() - start:.1f} s: {_summary(manifest)}")


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def _records(task: Task, source: str, reading: Reading, folder: Path) -> tfds.core.DatasetBuilder:
    """Build the TFDS records of a source."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP)
    with _progress("making examples", sum(reading.counts.values())) as advance:
        built = builder(task, source, reading, folder, advance)
        try:
            # TFDS announces a download, of unknown size, on stdout.
            with redirect_stdout(io.StringIO()):
                built.download_and_prepare(download_config=config)
        except RuntimeError as error:
            # How array_record reports a disk that is full or fails.
            raise OSError(" ".join(str(error).split())) from error
    return built


def _write(task: Task, source: str, reading: Reading, built: tfds.core.DatasetBuilder, folder: Path) -> dict[str, Any]:
    """Turn records into arrays and a manifest in `folder`, on disk when this returns; the manifest."""
    folder.mkdir()
    splits = {}
    with _progress("writing arrays", sum(reading.counts.values())) as advance:
        for name, tfds_name in TFDS_SPLITS.items():
            split = _arrays(built.as_data_source(split=tfds_name), reading.counts[tfds_name], advance)
            for key, array in split._asdict().items():
                if array is not None:
                    with (folder / f"{name}.{key}.npy").open("wb") as file:
                        np.save(file, array)
                        file.flush()
                        os.fsync(file.fileno())
            splits[name] = _facts(split, task.classes)
    manifest = {
        "schema": data.SCHEMA,
        "task": task.name,
        "source": source,
        "version": task.version,
        "vocabulary": list(task.vocabulary),
        "classes": task.classes,
        "max_len": task.max_len,
        "provenance": reading.provenance,
        "splits": splits,
        "sha256": data.identity_sha256(splits),
    }
    with (folder / "manifest.json").open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
    return manifest


def _arrays(records: Any, count: int, advance: Callable[[int], None]) -> data.Split:
    """All records of one split, in order."""
    documents: list[np.ndarray] = []
    labels: list[int] = []
    for start in range(0, count, RECORDS_PER_READ):
        block = records.__getitems__(range(start, min(start + RECORDS_PER_READ, count)))
        documents += [record["tokens"] for record in block]
        labels += [record["label"] for record in block]
        advance(len(block))
    offsets = np.cumsum([0, *map(len, documents)], dtype=data.DTYPES["offsets"])
    return data.Split(np.concatenate(documents), offsets, np.array(labels, dtype=data.DTYPES["labels"]))


def _facts(split: data.Split, classes: int) -> dict[str, Any]:
    """What the manifest keeps of a split."""
    return {
        "examples": len(split.labels),
        "documents": len(split.offsets) - 1,
        "tokens": len(split.tokens),
        "sha256": {key: data.content_sha256(array) for key, array in split._asdict().items() if array is not None},
        "class_counts": np.bincount(split.labels, minlength=classes).tolist(),
        "length_quantiles": dict(zip(map(str, QUANTILES), _quantiles(split), strict=True)),
    }


def _quantiles(split: data.Split) -> list[int]:
    """Document lengths at QUANTILES, as lengths that occur."""
    return np.percentile(np.diff(split.offsets), QUANTILES, method="lower").tolist()


@contextmanager
def _progress(doing: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show how many of `total` examples are done: a bar on a terminal, one plain line elsewhere."""
    if not sys.stdout.isatty():
        print(doing if total is None else f"{doing}: {total:,}", flush=True)
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(file=sys.stdout), redirect_stdout=False) as bar:
        row = bar.add_task(doing, total=total)
        yield lambda count: bar.advance(row, count)


def _summary(manifest: dict[str, Any]) -> str:
    splits = manifest["splits"]
    counts = ", ".join(f"{splits[name]['examples']:,} {name}" for name in data.SPLITS)
    tokens = sum(splits[name]["tokens"] for name in data.SPLITS)
    truncated = manifest.get("provenance", {}).get("truncated", 0)
    cut = f", {truncated:,} cut to {manifest['max_len']:,} tokens" if truncated else ""
    return f"{counts}, {tokens:,} tokens{cut}, sha256 {manifest['sha256'][:12]}"


def doctor(task: str, source: str, data_dir: str | Path) -> None:
    """Print what a sceptic asks first about a prepared data set, and check every array against its manifest.

    Raises Mismatch naming the arrays whose content is not the recorded one.
    """
    facts = TASKS[task]
    loaded = data.load(data_dir, task, source, facts.version)
    manifest, splits = loaded.manifest, {name: getattr(loaded, name) for name in data.SPLITS}
    print(f"# {task} ({source}) {facts.version} in {data.folder(data_dir, task, source, facts.version)}\n")
    print(f"Identity: sha256 {manifest['sha256']}\nProvenance: {json.dumps(manifest.get('provenance'))}\n")

    lengths = [
        [name, f"{len(split.labels):,}", f"{len(split.tokens):,}", f"{np.diff(split.offsets).mean():.1f}"]
        + [f"{length:,}" for length in _quantiles(split)]
        + [f"{(split.tokens == 0).mean():.1%}"]
        for name, split in splits.items()
    ]
    shortest_to_longest = [f"{q}%" for q in QUANTILES]
    _table(["split", "examples", "tokens", "mean length", *shortest_to_longest, "zero tokens"], lengths)

    shares = {
        name: np.bincount(split.labels, minlength=facts.classes) / len(split.labels) for name, split in splits.items()
    }
    _table(["label", *map(str, range(facts.classes))], [[name, *(f"{x:.1%}" for x in shares[name])] for name in splits])

    vocabulary = manifest["vocabulary"]
    used = [np.bincount(split.tokens, minlength=len(vocabulary)) / len(split.tokens) for split in splits.values()]
    rows = [[str(i), f"`{token}`", *(f"{share[i]:.2%}" for share in used)] for i, token in enumerate(vocabulary)]
    _table(["id", "token", *splits], rows)

    majority = shares["train"].argmax()
    answers = [
        ("accuracy on test of train's most frequent label", f"{shares['test'][majority]:.1%} (label {majority})")
    ]
    answers += _duplicates(splits)
    answers += facts.doctor(loaded.train, loaded.val, loaded.test)
    _table(["question", "answer"], answers)
    _verify(manifest, splits)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table whose columns line up as plain text."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    for row in (header, rule, *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")
    print()


def _duplicates(splits: dict[str, data.Split]) -> list[tuple[str, str]]:
    """How many documents occur twice, within each split and across two of them."""
    seen = {}
    for name, split in splits.items():
        bounds = zip(split.offsets[:-1], split.offsets[1:], strict=True)
        seen[name] = Counter(hashlib.sha256(split.tokens[start:end].data).digest() for start, end in bounds)
    answers = [(f"duplicates within {name}", f"{counts.total() - len(counts):,}") for name, counts in seen.items()]
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = sum(count for document, count in seen[b].items() if document in seen[a])
        answers.append((f"documents of {b} that are in {a}", f"{shared:,}"))
    return answers


def _verify(manifest: dict[str, Any], splits: dict[str, data.Split]) -> None:
    recorded = {f"{name}.{key}": value for name in splits for key, value in manifest["splits"][name]["sha256"].items()}
    found = {
        f"{name}.{key}": data.content_sha256(array)
        for name, split in splits.items()
        for key, array in split._asdict().items()
        if array is not None
    }
    different = [array for array in recorded if found[array] != recorded[array]]
    if different:
        raise Mismatch(f"the content of {', '.join(different)} is not what the manifest records")
    if data.identity_sha256(manifest["splits"]) != manifest["sha256"]:
        raise Mismatch("the sha256 of the manifest is not the hash of its arrays' hashes")
    print(f"All {len(recorded)} arrays have the sha256 that the manifest records.")


@contextmanager
def _stoppable() -> Iterator[None]:
    """Let SIGINT and SIGTERM raise Stopped, once: what follows it is not interrupted again."""
    caught = (signal.SIGINT, signal.SIGTERM)

    def stop(number: int, frame: FrameType | None) -> None:
        for each in caught:
            signal.signal(each, signal.SIG_IGN)
        raise Stopped(number)

    before = {number: signal.signal(number, stop) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    sources = "\n".join(f"  {name}: {', '.join(task.sources)}" for name, task in TASKS.items())
    defaults = " ".join(f"{key}={value or TASKS[DEFAULTS['task']].sources[0]}" for key, value in DEFAULTS.items())
    parser = argparse.ArgumentParser(
        prog="python -m lra.prepare",
        description="Prepare the data of a task, unless it is prepared already.",
        epilog=f"tasks and their sources, the default first:\n{sources}\n\n"
        "exit codes: 0 done; 1 the disk failed, or --doctor found other content than recorded;\n"
        "2 the words or the source files are wrong; 130 and 143 interrupted or terminated,\n"
        "with nothing half-written",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help=f"what to prepare; defaults: {defaults}")
    parser.add_argument("--doctor", action="store_true", help="print statistics of prepared data and verify its hashes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        with _stoppable():
            words = parse(arguments.words, DEFAULTS)
            task = TASKS[choose("task", words["task"], list(TASKS))]
            source = choose("task.source", words["task.source"] or task.sources[0], task.sources)
            if not words["data_dir"]:
                raise WordError("data_dir= names no folder")
            (doctor if arguments.doctor else prepare)(task.name, source, words["data_dir"])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: data_dir={words['data_dir']} cannot be used: {error}", file=sys.stderr)
        return 1
    except Mismatch as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(f"stopped by {signal.Signals(stopped.number).name}: nothing half-written is left", file=sys.stderr)
        return 128 + stopped.number
    return 0


if __name__ == "__main__":
    sys.exit(main())
