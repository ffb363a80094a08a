"""From the words of a sweep to its cells: every combination of their values, each composed and checked."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from lra.compose import CONF, WRONG_WORDS, Composer, Planned, demand_words, known_keys, softmax_words
from lra.config import Config, identity
from lra.published import task_name
from lra.tasks import task
from lra.tracker import TRACKERS
from lra.trackio_store import demand
from lra.words import WordError, choose, explain

SWEEPS = CONF / "sweep"
# The words that a cell's name says in its own way.
NAMED = ("task", "task.source", "attn")


class Cell(NamedTuple):
    """One run of a sweep. `name` is what tells it from the others, `rival` the same words with softmax."""

    words: list[str]
    name: str
    run: Planned
    rival: Config

    @property
    def path(self) -> Path:
        return self.run.path

    @property
    def source(self) -> str:
        return str(self.run.config.task["source"])

    @property
    def task_name(self) -> str:
        return task_name(self.run.choices["task"], self.source)


def preset(name: str) -> list[str]:
    """The words of conf/sweep/<name>.yaml, a list of values as `key=a,b,c`."""
    choose("sweep", name, sorted(file.stem for file in SWEEPS.glob("*.yaml")))
    file = SWEEPS / f"{name}.yaml"
    try:
        # As they are written: 1e-4 stays 1e-4.
        words = yaml.load(file.read_text(encoding="utf-8"), yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise WordError(f"{file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(words, dict):
        raise WordError(f"{file} must be a mapping from a word to its value or values")
    return [f"{key}={_spelled(value)}" for key, value in words.items()]


def _spelled(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return ",".join(f"[{_spelled(each)}]" if isinstance(each, list) else str(each) for each in value)


def merged(below: Sequence[str], above: Sequence[str]) -> list[str]:
    """The words of both; of two for one key the one of `above`, of two in one list the later."""
    return list({key_of(word): word for word in (*below, *above)}.values())


def key_of(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def combinations(composer: Composer, words: Sequence[str]) -> list[list[str]]:
    """The words of every cell, in the order of the words, the first changing slowest, but seeds before all."""
    demand_words(words)
    values: list[list[str]] = []
    for override in composer.parse(words):
        if not override.is_sweep_override():
            values.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            key = override.get_key_element()
            values.append([f"{key}={value}" for value in override.sweep_string_iterator()])
            if not values[-1]:
                raise WordError(f"{override.input_line!r} names nothing")
        else:
            raise WordError(f"{override.input_line!r} has no end: a sweep takes a,b,c, choice(), range() or glob()")
    # A sweep that is stopped half-way then has a seed of every cell, rather than every seed of half of them.
    values.sort(key=lambda same: key_of(same[0]) != "seed")
    return [list(cell) for cell in itertools.product(*values)]


def cells(
    composer: Composer, words: Sequence[str], each: Callable[[Cell], object] = lambda cell: None
) -> tuple[list[Cell], int]:
    """The cells of a grid, each once, and how many were named again. A WordError names the cell that is wrong.

    `each` hears of every cell as soon as it is composed.
    """
    every = combinations(composer, words)
    vary = {key for key, values in _values(every).items() if len(values) > 1}
    found: dict[Path, Cell] = {}
    for chosen in every:
        cell = one(composer, chosen, vary)
        same = found.setdefault(cell.path, cell)
        if same is cell:
            each(cell)
        elif identity(same.run.plain) != identity(cell.run.plain):
            raise WordError(f"{cell.path} would be the directory of two cells: {same.name}, and {cell.name}")
    return list(found.values()), len(every) - len(found)


def one(composer: Composer, words: list[str], vary: Iterable[str]) -> Cell:
    """One cell, checked as `lra.train` would check it; a WordError names the cell."""
    try:
        run = composer.planned(words)
        if choose("tracker", run.config.tracker, TRACKERS) == "trackio":
            demand("tracker=trackio")
        task(run.config.task)
        rival = composer.planned(softmax_words(words)).config
    except WRONG_WORDS as error:
        differs = " ".join(word for word in words if key_of(word) in vary)
        line = explain(error, known_keys)
        raise WordError(line if line.startswith(differs) else f"{differs}: {line}") from None
    beside = [word for word in words if key_of(word) in vary and key_of(word) not in NAMED]
    name = " ".join([task_name(run.choices["task"], run.config.task["source"]), run.choices["attn"], *beside])
    return Cell(words, name, run, rival)


def _values(every: Sequence[Sequence[str]]) -> dict[str, set[str]]:
    values: dict[str, set[str]] = {}
    for words in every:
        for word in words:
            values.setdefault(key_of(word), set()).add(word)
    return values
