"""Our own measured results: `runs/published/ours.csv`, a row per run, and what each run predicted beside it.

`make collect` writes them. A row says what the run's result.json said; `ours/<protocol>-<task>-<attn>-seed<k>.npz` has
its predictions and the labels, and is held to the row by its sha256.
"""

from __future__ import annotations

import csv
import datetime
import io
import re
import reprlib
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lra.csv_rows import read_rows
from lra.files import write_atomically, write_text
from lra.outcomes import STATUSES
from lra.published import OURS, SOURCES, protocol_order
from lra.seal import faulty


class Row(NamedTuple):
    """One run. `accuracy` is a fraction of the test split's `n` items, of which `correct` were right; these three and
    `predictions_sha256` are empty for a run that did not finish. best_step: of the best validation, empty before one.

    steps: made, of those that the recipe has. declared: what the published set-up changes in the plain recipe, as words
    with commas. tokens_per_s: in training steps. train_seconds: inside training steps, of `seconds` in all.
    result_sha256: the seal of result.json. date: the UTC day of the result.
    """

    protocol: str
    task: str
    source: str
    attn: str
    seed: int
    status: str
    accuracy: float | None
    correct: int | None
    n: int | None
    best_step: int | None
    steps: int
    declared: str
    params: int
    tokens_per_s: float | None
    peak_memory_mb: float | None
    train_seconds: float | None
    seconds: float | None
    device: str
    processes: int
    dtype: str
    kernel: str
    versions: str
    data_sha256: str
    config_sha256: str
    kernel_sha256: str
    git_commit: str
    result_sha256: str
    predictions_sha256: str
    date: str

    @property
    def cell(self) -> tuple[str, str, str, int]:
        """What two rows of a table never have in common."""
        return self.protocol, self.task, self.attn, self.seed

    @property
    def name(self) -> str:
        """The run's directory below the folder of runs, such as `mlpen/listops/mra2/seed0`."""
        return f"{self.protocol}/{self.task}/{self.attn}/seed{self.seed}"


COLUMNS = Row._fields
# Empty where a run did not finish, and never where it did.
FINISHED_ONLY = ("accuracy", "correct", "n", "predictions_sha256")
WHOLE = ("seed", "correct", "n", "best_step", "steps", "params", "processes")
DECIMALS = {"accuracy": 6, "tokens_per_s": 1, "peak_memory_mb": 1, "train_seconds": 1, "seconds": 1}
# The hashes that every run has; of the others one may be empty.
ALWAYS = ("data_sha256", "config_sha256", "result_sha256")
# What a word of a path may be: the names of rows are those of files.
NAME = re.compile(r"[a-z0-9_]+")


def read(folder: Path) -> list[Row]:
    """The rows of `folder`/ours.csv; a one-line ValueError that names file, line, value and rule where one is broken.

    They come in the order of `place`, each cell once. What they say of predictions is checked by `predictions`.
    """
    rows: list[Row] = []

    def next_row(cells: list[str]) -> Row:
        row = parsed(cells)
        if rows and not place(rows[-1]) < place(row):
            raise ValueError(f"{row.name} must come once, and {rows[-1].name} before it")
        rows.append(row)
        return row

    try:
        return read_rows(folder / OURS, COLUMNS, next_row)
    except FileNotFoundError:
        raise ValueError(f"{folder / OURS} is missing; make collect writes it") from None


def write(folder: Path, rows: Iterable[Row]) -> None:
    """Write `folder`/ours.csv in one step; the same rows give the same bytes."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(spelled(row) for row in sorted(rows, key=place))
    write_text(folder / OURS, text.getvalue())


def place(row: Row) -> tuple[Any, ...]:
    """Where a row stands: protocols and tasks in the order of every table, softmax first, seeds last."""
    return protocol_order(row.protocol), list(SOURCES).index(row.task), row.attn != "softmax", row.attn, row.seed


def spelled(row: Row) -> list[str]:
    """The cells of a row."""
    return [
        "" if value is None else f"{value:.{DECIMALS[name]}f}" if name in DECIMALS else str(value)
        for name, value in row._asdict().items()
    ]


def parsed(cells: Sequence[str]) -> Row:
    """The row that `cells` spell; a ValueError that names the value and the rule that it breaks."""
    if len(cells) != len(COLUMNS):
        raise ValueError(f"{len(cells)} cells under {len(COLUMNS)} columns")
    said = dict(zip(COLUMNS, cells, strict=True))
    row = Row(**{name: _value(name, text) for name, text in said.items()})
    demand(row)
    for name, text, again in zip(COLUMNS, cells, spelled(row), strict=True):
        if text != again:
            raise ValueError(f"{name} {reprlib.repr(text)} is not written as {again!r}")
    return row


def _value(name: str, text: str) -> Any:
    if not text.isprintable():
        raise ValueError(f"{name} {reprlib.repr(text)} is not one line that can be printed")
    if name not in WHOLE and name not in DECIMALS:
        return text
    if not text:
        return None
    if not re.fullmatch(r"\d{1,15}" if name in WHOLE else r"\d{1,15}\.\d+", text, re.ASCII):
        rule = "a whole number" if name in WHOLE else f"a number with {DECIMALS[name]} decimals"
        raise ValueError(f"{name} {reprlib.repr(text)} is not {rule}")
    return int(text) if name in WHOLE else float(text)


def demand(row: Row) -> None:
    """ValueError naming the value and the rule where a row says what no run can."""
    said: Mapping[str, Any] = row._asdict()
    for name in ("protocol", "attn"):
        if not NAME.fullmatch(said[name]):
            raise ValueError(f"{name} {reprlib.repr(said[name])} is not a name of small letters, digits and _")
    if row.task not in SOURCES:
        raise ValueError(f"task {reprlib.repr(row.task)} is not one of {', '.join(SOURCES)}")
    if row.source not in SOURCES[row.task]:
        known = ", ".join(SOURCES[row.task])
        raise ValueError(f"source {reprlib.repr(row.source)} is not a real one of {row.task}: {known}")
    if row.status not in STATUSES:
        raise ValueError(f"status {reprlib.repr(row.status)} is not one of {', '.join(STATUSES)}")
    for name in ("seed", "steps", "params", "processes"):
        if said[name] is None:
            raise ValueError(f"{name} is empty")
    for name in FINISHED_ONLY:
        if (said[name] in (None, "")) == (row.status == "finished"):
            rule = "empty, and the run is finished" if row.status == "finished" else f"of a run that is {row.status}"
            raise ValueError(f"{name} {reprlib.repr(said[name])} is {rule}" if said[name] else f"{name} is {rule}")
    for name in COLUMNS:
        demanded = name.endswith("_sha256") and (name in ALWAYS or said[name])
        if demanded and not re.fullmatch("[0-9a-f]{64}", said[name]):
            raise ValueError(f"{name} {reprlib.repr(said[name])} is not a sha256 in hex")
    if row.n is not None and row.correct is not None and row.accuracy is not None:
        if not 0 <= row.correct <= row.n or not row.n:
            raise ValueError(f"correct {row.correct} is not between 0 and n {row.n}")
        if abs(row.accuracy - row.correct / row.n) > 5.1e-7:
            raise ValueError(f"accuracy {row.accuracy:.6f} is not correct / n = {row.correct / row.n:.6f}")
    try:
        datetime.date.fromisoformat(row.date)
    except ValueError:
        raise ValueError(f"date {reprlib.repr(row.date)} is not a day of the form YYYY-MM-DD") from None


class Predictions(NamedTuple):
    """What a run said of each example of its test split, and what it is, in the split's order."""

    predictions: np.ndarray  # (E,) uint8
    labels: np.ndarray  # (E,) uint8


def file_of(folder: Path, row: Row) -> Path:
    """Where the predictions of a row stand."""
    return folder / "ours" / f"{row.protocol}-{row.task}-{row.attn}-seed{row.seed}.npz"


def predictions(folder: Path, row: Row) -> Predictions:
    """The predictions of a finished row of `folder`/ours.csv; a one-line ValueError where they are not the row's."""
    if not row.predictions_sha256:
        raise ValueError(f"{row.name} is {row.status} and has no predictions")
    path = file_of(folder, row)
    if fault := faulty(path, row.predictions_sha256):
        raise ValueError(f"{path} {fault}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = Predictions(*(arrays[name] for name in Predictions._fields))
    # numpy and zipfile raise nearly anything over foreign bytes.
    except Exception as error:
        raise ValueError(f"{path} is not the predictions of a run") from error
    for array in found:
        if array.dtype != np.uint8 or array.shape != (row.n,):
            raise ValueError(f"{path} holds {array.dtype} {array.shape}, expected uint8 ({row.n},)")
    correct = int((found.predictions == found.labels).sum())
    if correct != row.correct:
        raise ValueError(f"{path} has {correct} right, its row says {row.correct}")
    return found


def write_predictions(folder: Path, row: Row, found: Predictions) -> None:
    """Write the file of a row's predictions in one step."""
    write_atomically(file_of(folder, row), lambda file: file.write(packed(found)))


def packed(found: Predictions) -> bytes:
    """The bytes of a file of predictions: the same for the same content."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        for name, array in found._asdict().items():
            header = io.BytesIO()
            np.lib.format.write_array(header, np.ascontiguousarray(array, np.uint8), version=(1, 0))
            # With a time and a system of its own, an entry would differ from one machine to the next.
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.create_system, entry.compress_type = 3, zipfile.ZIP_DEFLATED
            archive.writestr(entry, header.getvalue(), compresslevel=9)
    return whole.getvalue()
