"""The tasks of the benchmark by the names that they have everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lra.tasks.base import Task
from lra.tasks.image import Image
from lra.tasks.listops import ListOps
from lra.tasks.pathfinder import Pathfinder, PathX
from lra.tasks.retrieval import Retrieval
from lra.tasks.text import Text
from lra.words import WordError, choose, nearest

TASKS: dict[str, type[Task]] = {task.name: task for task in (ListOps, Text, Retrieval, Image, Pathfinder, PathX)}

# Keys under `task` that choose the data set without being options of it, or that say how a run looks at it.
BESIDE = ("name", "source", "version", "mask_zero_pixels")


def task(words: Mapping[str, Any]) -> Task:
    """The task that the words under `task` name, with its options. WordError where one of them is wrong."""
    kind = TASKS[choose("task", str(words.get("name")), list(TASKS))]
    choose("task.source", str(words.get("source", kind.sources[0])), kind.sources)
    choose("task.version", str(words.get("version", kind.version)), [kind.version])
    options = {key: value for key, value in words.items() if key not in BESIDE}
    defaults = kind.defaults()
    for key in options:
        if key not in defaults:
            takes = ", ".join(defaults) or "no options"
            raise WordError(f"unknown key 'task.{key}': {kind.name} takes {takes}{nearest(key, defaults)}")
    try:
        return kind(**{key: _typed(key, value, defaults[key]) for key, value in options.items()})
    except ValueError as error:
        raise WordError(str(error)) from error


def _typed(key: str, value: Any, default: Any) -> Any:
    """A value of a command line as what the option is; YAML has typed its own already."""
    if type(default) is int and type(value) is not int:
        try:
            return int(str(value))
        except ValueError:
            raise ValueError(f"task.{key}={value} must be a whole number") from None
    return value if type(default) is int else str(value)
