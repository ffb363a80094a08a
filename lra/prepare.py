"""Prepare the data of a task once: TFDS builder, then arrays and a manifest that training maps into memory."""

from __future__ import annotations

if __name__ == "__main__":
    # Before everything else is imported, so that Ctrl-C has its one line then too.
    from lra.command import answer_signals

    answer_signals()

import argparse
import fcntl
import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from lra import data
from lra.bar import bar
from lra.command import Parser
from lra.doctor import Mismatch, doctor
from lra.files import sync_folder
from lra.seal import sealed
from lra.tasks import TASKS, task
from lra.tasks.base import Place, Reading, Task, builder, pair_builder, parts
from lra.words import LONG, WordError, line_of, one_line, parse

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

DEFAULTS = {"task": "listops", "task.source": "", "data_dir": "runs/.data"}
TFDS_SPLITS = {"train": "train", "val": "validation", "test": "test"}
RECORDS_PER_READ = 4_096


class Stopped(BaseException):
    """A signal asked the preparation to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def prepare(facts: Task, source: str, data_dir: str | Path) -> Path:
    """Write the data set of a task's source below `data_dir`, unless it is there, and return its folder.

    Raises ValueError where the source or what is in the folder is not as it should be, OSError where the disk fails.
    """
    data_dir = Path(data_dir)
    path = data.folder(data_dir, facts, source)
    if _is_there(facts, source, data_dir):
        return path
    facts.require(source, data_dir / "manual")
    data_dir.mkdir(parents=True, exist_ok=True)
    with _alone(data_dir / f".{facts.name}-{facts.config(source)}.lock", _called(facts, source)):
        # Another preparation may have finished while this one waited.
        if not _is_there(facts, source, data_dir):
            _build(facts, source, data_dir, path)
    return path


def _called(facts: Task, source: str) -> str:
    return f"{facts.name} ({facts.config(source)})"


def _is_there(facts: Task, source: str, data_dir: Path) -> bool:
    """Say so where the data set is prepared; a broken one is a ValueError."""
    try:
        manifest = data.load(data_dir, facts, source).manifest
    except data.DataMissing:
        return False
    path = data.folder(data_dir, facts, source)
    print(f"{_called(facts, source)} is prepared in {path}: {_summary(manifest)}")
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


def _build(facts: Task, source: str, data_dir: Path, path: Path) -> None:
    start = time.monotonic()
    called = f"{facts.name}-{facts.config(source)}-{facts.version}"
    partial, scratch = data_dir / f".{called}.partial", data_dir / f".{called}.scratch"
    names = (f"lra_{facts.name}", f"lra_{facts.name}_documents")
    records = [data_dir / "tfds" / name / facts.config(source) for name in names]
    # What a killed preparation left, and records that may be of another source file than the one read now.
    _remove(partial, scratch, *records)
    try:
        scratch.mkdir()
        reading = facts.read(source, Place(data_dir / "manual", scratch, _progress))
        manifest = _write(facts, source, reading, data_dir / "tfds", partial)
        path.parent.mkdir(exist_ok=True)
        partial.rename(path)
        sync_folder(path.parent)
    except BaseException:
        # What came when the data were in place already takes nothing away.
        if partial.exists() or not path.exists():
            _remove(partial, *records)
        raise
    finally:
        _remove(scratch)
    print(f"{_called(facts, source)} prepared in {path}, {time.monotonic() - start:.1f} s: {_summary(manifest)}")


def _remove(*folders: Path) -> None:
    for folder in folders:
        if folder.exists():
            shutil.rmtree(folder)


def _records(built: tfds.core.DatasetBuilder) -> None:
    """Let TFDS write the records of a builder."""
    import tensorflow_datasets as tfds

    tfds.disable_progress_bar()
    config = tfds.download.DownloadConfig(try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP)
    try:
        # TFDS announces a download, of unknown size, on stdout.
        with redirect_stdout(io.StringIO()):
            built.download_and_prepare(download_config=config)
    except RuntimeError as error:
        # How array_record reports a disk that is full or fails.
        raise OSError(" ".join(str(error).split())) from error


def _write(facts: Task, source: str, reading: Reading, records: Path, folder: Path) -> dict[str, Any]:
    """Write a reading as records of TFDS, and these as arrays and a manifest in `folder`, on disk when this returns."""
    with _progress("making examples", sum(reading.counts.values())) as advance:
        documents = builder(facts, source, reading, records, advance)
        _records(documents)
    pairs = None
    if reading.pairs is not None:
        pairs = pair_builder(facts, source, reading, records)
        _records(pairs)
    folder.mkdir()
    splits = {}
    with _progress("writing arrays", sum(reading.counts.values())) as advance:
        for name, tfds_name in TFDS_SPLITS.items():
            held = parts(facts, tfds_name, reading.counts[tfds_name])
            _write_documents(documents, held, folder, name, advance)
            if pairs is not None and reading.pairs is not None:
                _write_pairs(pairs, tfds_name, len(reading.pairs[tfds_name].labels), folder, name)
            splits[name] = _facts(_written(folder, name), facts.classes)
    told = {
        "schema": data.SCHEMA,
        "task": facts.name,
        "source": source,
        "options": facts.options,
        "version": facts.version,
        "kind": facts.kind,
        "vocabulary": list(facts.vocabulary),
        "classes": facts.classes,
        "max_len": facts.max_len,
        "provenance": reading.provenance,
        "splits": splits,
        "sha256": data.identity_sha256(splits),
    }
    manifest = sealed(told, data.SEAL)
    with (folder / "manifest.json").open("w", encoding="utf-8") as file:
        json.dump(manifest, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
    return manifest


def _write_documents(
    built: tfds.core.DatasetBuilder, held: Mapping[str, int], folder: Path, name: str, advance: Callable[[int], None]
) -> None:
    """The documents of one split, in order, a few megabytes at a time."""
    lengths: list[int] = []
    labels: list[int] = []
    with _Growing(folder / f"{name}.tokens.npy", data.DTYPES["tokens"]) as tokens:
        for part, count in held.items():
            for block in _blocks(built, part, count):
                tokens.append(np.concatenate([record["tokens"] for record in block]))
                lengths += [len(record["tokens"]) for record in block]
                labels += [record["label"] for record in block if "label" in record]
                advance(len(block))
    offsets = np.cumsum([0, *lengths], dtype=data.DTYPES["offsets"])
    _save(folder / f"{name}.offsets.npy", offsets)
    if labels:
        _save(folder / f"{name}.labels.npy", np.array(labels, dtype=data.DTYPES["labels"]))


def _write_pairs(built: tfds.core.DatasetBuilder, part: str, count: int, folder: Path, name: str) -> None:
    """The examples of one split of pairs, in order."""
    records = [record for block in _blocks(built, part, count) for record in block]
    _save(folder / f"{name}.pairs.npy", np.array([record["pair"] for record in records], dtype=data.DTYPES["pairs"]))
    _save(folder / f"{name}.labels.npy", np.array([record["label"] for record in records], dtype=data.DTYPES["labels"]))


def _blocks(built: tfds.core.DatasetBuilder, part: str, count: int) -> Iterator[list[dict[str, Any]]]:
    """The records of a TFDS split, in order."""
    records = built.as_data_source(split=part)
    for start in range(0, count, RECORDS_PER_READ):
        yield records.__getitems__(range(start, min(start + RECORDS_PER_READ, count)))


class _Growing:
    """A .npy file of one axis that is written piece by piece."""

    def __init__(self, file: Path, dtype: np.dtype[Any]) -> None:
        self.file, self.dtype, self.length = file.open("wb"), dtype, 0

    def __enter__(self) -> _Growing:
        self._header()
        return self

    def append(self, array: np.ndarray) -> None:
        self.file.write(np.ascontiguousarray(array, dtype=self.dtype).data)
        self.length += len(array)

    def __exit__(self, *error: object) -> None:
        self.file.seek(0)
        self._header()
        _sync(self.file)
        self.file.close()

    def _header(self) -> None:
        """numpy leaves room for the first axis to grow, so that the header has one size."""
        facts = {"descr": self.dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, facts)


def _save(file: Path, array: np.ndarray) -> None:
    with file.open("wb") as out:
        np.lib.format.write_array_header_1_0(out, np.lib.format.header_data_from_array_1_0(array))
        # By way of Python: numpy's own way tells of a full disk without saying so.
        out.write(np.ascontiguousarray(array).data)
        _sync(out)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _written(folder: Path, name: str) -> data.Split:
    """The arrays of one split as they are on disk, mapped into memory."""
    files = {key: folder / f"{name}.{key}.npy" for key in data.DTYPES}
    return data.Split(**{key: np.load(file, mmap_mode="r") for key, file in files.items() if file.exists()})


def _facts(split: data.Split, classes: int) -> dict[str, Any]:
    """What the manifest keeps of a split."""
    return {
        "examples": len(split.labels),
        "documents": len(split.offsets) - 1,
        "tokens": len(split.tokens),
        "sha256": {key: data.content_sha256(array) for key, array in split._asdict().items() if array is not None},
        "class_counts": np.bincount(split.labels, minlength=classes).tolist(),
        "length_quantiles": data.length_quantiles(split),
    }


@contextmanager
def _progress(doing: str, total: int | None, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show how much of `total` is done, examples or bytes: a bar on a terminal, one plain line elsewhere."""
    if not sys.stdout.isatty():
        size = f"{total or 0:,}" if not in_bytes else f"{(total or 0) / 1e6:,.0f} MB"
        print(doing if total is None else f"{doing}: {size}", flush=True)
        yield lambda count: None
        return
    with bar(sys.stdout, doing, total, in_bytes) as advance:
        yield advance


def _count(manifest: dict[str, Any], name: str) -> str:
    """How many examples a split has, and how many the published one where these are not all."""
    count = manifest["splits"][name]["examples"]
    published = manifest.get("provenance", {}).get("published", {}).get(TFDS_SPLITS[name], count)
    return f"{count:,} {name}" + (f" ({published:,} published)" if published != count else "")


def _summary(manifest: dict[str, Any]) -> str:
    splits = manifest["splits"]
    counts = ", ".join(_count(manifest, name) for name in data.SPLITS)
    tokens = sum(splits[name]["tokens"] for name in data.SPLITS)
    truncated = manifest.get("provenance", {}).get("truncated", 0)
    cut = f", {truncated:,} cut to {manifest['max_len']:,} tokens" if truncated else ""
    return f"{counts}, {tokens:,} tokens{cut}, sha256 {manifest['sha256'][:12]}"


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
    tasks = "\n".join(f"  {name}: {', '.join(kind.sources)}{_options(kind)}" for name, kind in TASKS.items())
    defaults = " ".join(f"{key}={value or TASKS[DEFAULTS['task']].sources[0]}" for key, value in DEFAULTS.items())
    parser = Parser(
        prog="python -m lra.prepare",
        description="Prepare the data of a task, unless it is prepared already.",
        epilog=f"tasks and their sources, the default first, with their options:\n{tasks}\n\n"
        "exit codes: 0 done; 1 the disk failed, or --doctor found other content than recorded;\n"
        "2 the words or the source files are wrong; 130 and 143 interrupted or terminated,\n"
        "with nothing half-written",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="key=value", help=f"what to prepare; defaults: {defaults}")
    parser.add_argument(
        "--doctor", action="store_true", help="tell what is in prepared data, draw it, verify its hashes"
    )
    return parser


def _options(kind: type[Task]) -> str:
    return "".join(f"; task.{key}={value}" for key, value in kind.defaults().items())


def _task(words: Sequence[str]) -> tuple[Task, str, str]:
    """The task, source and data_dir that the words of the command line name."""
    options = {f"task.{key}": "" for kind in TASKS.values() for key in kind.defaults()}
    given = parse(words, DEFAULTS | options)
    if not given["data_dir"]:
        raise WordError("data_dir= names no folder")
    chosen = {key.removeprefix("task."): value for key, value in given.items() if key.startswith("task.") and value}
    facts = task({"name": given["task"], **chosen})
    return facts, given["task.source"] or facts.sources[0], given["data_dir"]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = _parser().parse_intermixed_args(argv)
    try:
        with _stoppable():
            facts, source, data_dir = _task(arguments.words)
            (doctor if arguments.doctor else prepare)(facts, source, data_dir)
    except ValueError as error:
        print(f"error: {line_of(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: data_dir={one_line(f'{data_dir} cannot be used: {error}', LONG)}", file=sys.stderr)
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
