"""The published accuracies, how far each is from its source, and the tasks that they speak of."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from lra.csv_rows import read_rows

PUBLISHED = Path(__file__).resolve().parents[1] / "runs" / "published"
# Beside what others published: our own results, in columns of their own (lra.ours).
OURS = "ours.csv"
# The sources of a task's own distribution, which the published numbers speak of. The task's plain name means the first.
SOURCES = {
    "listops": ("release", "generated"),
    "text": ("imdb",),
    "retrieval": ("aan",),
    "image": ("cifar10",),
    "pathfinder": ("release", "generated"),
    "pathx": ("release", "generated"),
}
# Options that make another task of a task: nothing was published for them under its name.
OTHER_TASK = re.compile(r"(?:^|,)task\.(?:resolution|difficulty)=")
# What needs no attention at all on ListOps: test accuracies in percent.
LISTOPS_FLOORS = {"majority class": 17.1, "root-operator classifier": 36.2}
# How far a published value is from its source, best first, and the mark that it carries in tables.
MARKS = {"read": "", "secondary": "*", "unverified": "?"}
# The paper that a protocol is taken from: its value is preferred where several papers print one.
OWN_PAPER = {"mlpen": "https://arxiv.org/abs/2207.10284", "google": "https://arxiv.org/abs/2011.04006"}


@dataclass(frozen=True)
class Published:
    """One published accuracy in percent, None where the paper prints FAIL."""

    source: str
    url: str
    protocol: str
    model: str
    attn: str
    task: str
    accuracy: float | None
    status: str
    note: str

    @property
    def text(self) -> str:
        """The value, such as `37.2`, or FAIL."""
        return "FAIL" if self.accuracy is None else str(self.accuracy)

    @property
    def marked(self) -> str:
        """The value with the mark of its status, such as `37.2?`."""
        return self.text + MARKS[self.status]


COLUMNS = tuple(field.name for field in fields(Published))


def read_published(folder: Path = PUBLISHED) -> list[Published]:
    """Every row of `folder`/*.csv but ours; ValueError names the file and line that breaks a rule."""
    files = sorted(set(folder.glob("*.csv")) - {folder / OURS})
    return [row for path in files for row in read_rows(path, COLUMNS, _published)]


def _published(row: Sequence[str]) -> Published:
    if len(row) != len(COLUMNS):
        raise ValueError(f"{len(row)} cells under {len(COLUMNS)} columns")
    for name, cell in zip(COLUMNS, row, strict=True):
        if not cell.isprintable():
            raise ValueError(f"{name} {reprlib.repr(cell)} is not one line that can be printed")
    cells = dict(zip(COLUMNS, row, strict=True))
    if cells["status"] not in MARKS:
        raise ValueError(f"status {reprlib.repr(cells['status'])} is not one of {', '.join(MARKS)}")
    said, accuracy = cells["accuracy"], None
    if said:
        try:
            accuracy = float(said)
        except ValueError:
            raise ValueError(f"accuracy {reprlib.repr(said)} is not a number") from None
        if not 0 <= accuracy <= 100:
            raise ValueError(f"accuracy {reprlib.repr(said)} is not between 0 and 100")
    return Published(**{**cells, "accuracy": accuracy})  # type: ignore[arg-type]


def preference(value: Published) -> tuple[bool, int]:
    """The protocol's own paper first, then what is nearest to its source."""
    return value.url != OWN_PAPER.get(value.protocol), list(MARKS).index(value.status)


def protocol_order(protocol: str) -> tuple[int, str]:
    """The place of a protocol in tables: those that runs follow first, the default one before all."""
    return list(OWN_PAPER).index(protocol) if protocol in OWN_PAPER else len(OWN_PAPER), protocol


def task_name(task: str, source: str) -> str:
    """The task's plain name where its data are the real ones, with the source in parentheses where they are not."""
    return task if source == SOURCES.get(task, (None,))[0] else f"{task} ({source})"


def floors(task: str, source: str) -> dict[str, float]:
    """Test accuracies in percent that need no attention at all, by name; empty where none are known."""
    return LISTOPS_FLOORS if task == "listops" and source in SOURCES["listops"] else {}
