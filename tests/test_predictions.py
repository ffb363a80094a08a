"""The tables of a test split against counts made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lra.intervals import wilson
from lra.predictions import ROWS, tables
from lra.tasks import TASKS

LABELS = np.array([0, 0, 1, 1, 1])
LOGITS = np.array([[2, 0, 0], [0, 2, 0], [0, 3, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float32)
LENGTHS = np.array([5, 4, 3, 2, 1])
NAMES = ("cat", "dog", "eel")


def test_each_class_has_its_share_and_wilsons_interval_and_none_without_examples() -> None:
    table = tables(LOGITS, LABELS, LENGTHS, NAMES)["test/per_class"]
    assert table.columns == ("class", "n", "accuracy", "low", "high")
    assert list(table.rows) == [
        ("cat", 2, 0.5, *wilson(1, 2)),
        ("dog", 3, 2 / 3, *wilson(2, 3)),
        ("eel", 0, None, None, None),
    ]


def test_the_confusion_counts_every_example_once() -> None:
    table = tables(LOGITS, LABELS, LENGTHS, NAMES)["test/confusion"]
    assert table.columns == ("class", "cat", "dog", "eel")
    assert list(table.rows) == [("cat", 1, 1, 0), ("dog", 0, 2, 1), ("eel", 0, 0, 0)]


def test_a_prediction_stands_with_its_place_classes_probability_and_length() -> None:
    table = tables(LOGITS, LABELS, LENGTHS, NAMES)["test/predictions"]
    share = math.exp(2) / (math.exp(2) + 2)
    assert table.columns == ("index", "label", "prediction", "right", "probability", "length")
    assert table.rows[1][:4] == (1, "cat", "dog", 0)
    assert table.rows[1][4:] == (pytest.approx(share, rel=1e-12), 4)


def test_of_a_large_split_evenly_spread_examples_stand_for_the_rest() -> None:
    count = 10 * ROWS
    made = tables(np.zeros((count, 2), np.float32), np.zeros(count, np.uint8), np.ones(count), ("no", "yes"))
    assert [row[0] for row in made["test/predictions"].rows] == list(range(0, count, 10))
    assert made["test/per_class"].rows[0][1] == count


@pytest.mark.parametrize("name", TASKS)
def test_a_task_names_all_of_its_classes_or_none_and_a_toys_classes_are_numbers(name: str) -> None:
    kind = TASKS[name]
    assert len(kind.class_names) in (0, kind.classes)
    assert [kind().class_name("synthetic", label) for label in range(2)] == ["0", "1"]
    assert kind().class_name(kind.sources[0], 1) == (kind.class_names or ("0", "1"))[1]
