"""What the scores of a test split say, as tables for people: by class, by pair of classes, by example."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lra.intervals import wilson
from lra.seal import demand_result, faulty
from lra.tracker import Table

# Rows of the table of single examples; of a larger split every so many-th one stands for the rest.
ROWS = 2_000


class Predictions(NamedTuple):
    """What a run said of each example of its test split, in the split's order."""

    logits: np.ndarray  # (E, classes) float32
    predictions: np.ndarray  # (E,) int64
    labels: np.ndarray  # (E,) uint8


def read(folder: Path) -> Predictions:
    """The predictions of the run in `folder`; a one-line ValueError where they are not those that its result names.

    Those of a result from before results named their files are held to the checksums of the archive alone.
    """
    file, record = folder / "predictions.npz", folder / "result.json"
    try:
        result = json.loads(record.read_text(encoding="utf-8"))
        demand_result(result)
        named = result.get("files", {}).get("predictions.npz")
    except FileNotFoundError:
        raise ValueError(f"{record} is missing") from None
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        said = str(error) if str(error).startswith("is damaged") else "is not a whole result"
        raise ValueError(f"{record} {said}") from error
    if fault := faulty(file, named) if named else "":
        raise ValueError(f"{file} {fault}")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = Predictions(*(arrays[key] for key in Predictions._fields))
    except FileNotFoundError:
        raise ValueError(f"{file} is missing") from None
    # numpy and zipfile raise nearly anything over foreign bytes.
    except Exception as error:
        raise ValueError(f"{file} is not the predictions of a run") from error
    shapes = {found.predictions.shape, found.labels.shape, found.logits.shape[:1]}
    if found.logits.ndim != 2 or len(shapes) > 1:
        raise ValueError(f"{file} is not the predictions of a run")
    return found


def tables(
    logits: np.ndarray, labels: np.ndarray, lengths: np.ndarray, names: Sequence[str], rows: int = ROWS
) -> dict[str, Table]:
    """The tables of a split by the names of their charts.

    logits: (E, classes); labels: (E,); lengths: (E,), in tokens; names: of the classes. Accuracies and probabilities
    are fractions, `low` and `high` bound the 95% interval of Wilson.
    """
    predicted = logits.argmax(1)
    return {
        "test/per_class": per_class(predicted, labels, names),
        "test/confusion": confusion(predicted, labels, names),
        "test/predictions": examples(logits, labels, lengths, names, rows),
    }


def per_class(predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Table:
    """Of each class, how many of its examples were given to it; None where it has no example."""
    found: list[tuple[str | int | float | None, ...]] = []
    for label, name in enumerate(names):
        here = labels == label
        n, right = int(here.sum()), int((here & (predicted == label)).sum())
        low, high = wilson(right, n) if n else (None, None)
        found.append((name, n, right / n if n else None, low, high))
    return Table(("class", "n", "accuracy", "low", "high"), found)


def confusion(predicted: np.ndarray, labels: np.ndarray, names: Sequence[str]) -> Table:
    """Of each class (row), how many of its examples were given to each class (column)."""
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, (labels, predicted), 1)
    return Table(("class", *names), [(name, *row) for name, row in zip(names, counts.tolist(), strict=True)])


def examples(
    logits: np.ndarray, labels: np.ndarray, lengths: np.ndarray, names: Sequence[str], rows: int = ROWS
) -> Table:
    """At most `rows` examples, evenly spread: its place in the split, classes, the probability of the prediction."""
    chosen = np.arange(min(rows, len(labels))) * len(labels) // min(rows, len(labels))
    predicted = logits[chosen].argmax(1)
    # A softmax whose largest term is 1: nothing overflows.
    shares = np.exp(logits[chosen].astype(np.float64) - logits[chosen].max(1, keepdims=True))
    probability = 1 / shares.sum(1)
    columns = (chosen, labels[chosen], predicted, probability, lengths[chosen])
    return Table(
        ("index", "label", "prediction", "right", "probability", "length"),
        [
            (index, names[label], names[guess], int(label == guess), share, length)
            for index, label, guess, share, length in zip(*(column.tolist() for column in columns), strict=True)
        ],
    )
