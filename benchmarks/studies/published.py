"""The published numbers that the studies are laid beside: benchmarks/published/*.csv, each row with its source."""

from __future__ import annotations

import math
import reprlib
from pathlib import Path
from typing import NamedTuple

from benchmarks.studies.found import Line, read

PUBLISHED = Path(__file__).resolve().parents[1] / "published"
SOURCE = ("source", "url")
# What every row of the MRA paper's authors says of how it was measured.
SETTING = ("dtype", "gpu", "softmax")
# The name of the budget in their code: ours.
KEYWORDS = {
    "": "",
    "window_size": "window",
    "block_size": "block_size",
    "num_landmarks": "landmarks",
    "block_per_row": "blocks_per_row",
}


class Kind(NamedTuple):
    """The columns of a file: those that hold text, numbers in every row, and numbers where there is one."""

    texts: tuple[str, ...]
    numbers: tuple[str, ...]
    perhaps: tuple[str, ...] = ()

    def columns(self) -> set[str]:
        return {*SOURCE, *self.texts, *self.numbers, *self.perhaps}


CONFIGURATION = ("method", "attn", "parameter", "keyword")
KINDS = {
    "mra_approximation": Kind(
        ("file", *CONFIGURATION, "memory_flaw", "error_source", "measured", *SETTING),
        ("n", "workload", "batch", "ms", "ms_std", "mb", "error"),
        ("value",),
    ),
    "mra_temperatures": Kind(
        ("file", *CONFIGURATION, *SETTING), ("n", "temperature", "entropy"), ("value", "error")
    ),
    "mra_entropy": Kind(
        ("figure", *CONFIGURATION, *SETTING), ("n", "budget", "budget_ms", "entropy"), ("value", "error")
    ),
    "lra_efficiency": Kind(
        ("table", "model", "attn", "task", "note", "device", "dtype", "softmax"),
        ("thousands", "batch", "steps_per_s", "speed", "peak_gb"),
    ),
    "cab_crossover": Kind(("table", "method", "attn", "against", "dtype", "device"), ("time_length", "memory_length")),
}  # fmt: skip


def published(name: str, folder: Path = PUBLISHED) -> list[Line]:
    """The rows of one of KINDS, checked; ValueError names the file, the line and the rule."""
    kind, file = KINDS[name], folder / f"{name}.csv"
    lines = read(file, kind.columns())
    for number, line in enumerate(lines, 2):
        where = f"{file}, line {number}"
        if line.keys() != kind.columns():
            unknown = reprlib.repr(sorted(line.keys() - kind.columns()))
            raise ValueError(f"{file} has unknown columns {unknown}")
        for key in SOURCE:
            if not line[key]:
                raise ValueError(f"{where}: there is no {key}")
        for key in (*kind.numbers, *kind.perhaps):
            if (key in kind.numbers or line[key]) and not math.isfinite(line.number(key)):
                raise ValueError(f"{where}: {key} is {reprlib.repr(line[key])}, not finite")
        if KEYWORDS.get(line.get("parameter", ""), "") != line.get("keyword", ""):
            said, parameter = reprlib.repr(line["keyword"]), reprlib.repr(line["parameter"])
            raise ValueError(f"{where}: keyword {said} is not what {parameter} is called here")
    return lines
