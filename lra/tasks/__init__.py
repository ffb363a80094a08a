"""The tasks of the benchmark, by name. Importing them loads no TFDS; building their data does."""

from __future__ import annotations

from lra.tasks.base import Task
from lra.tasks.listops import ListOps

TASKS: dict[str, Task] = {task.name: task for task in (ListOps(),)}
