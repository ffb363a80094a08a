"""Runs grouped into what may be averaged, beside the published numbers.

A cell is the runs of one protocol, task, source and split of the data, attention, deviation from the recipe and data
hash, whose configurations differ in nothing but the seed. Accuracies are fractions in `Run`, as in result.json, and
percent in `Published` and `Cell`.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lra.budget import excess
from lra.folders import visible
from lra.intervals import student_interval, wilson
from lra.outcomes import Run
from lra.published import OTHER_TASK, SOURCES, Published, floors, preference, protocol_order, task_name
from lra.words import choose

# What stands at the name of an attention whose parameters are beyond the benchmark's rule.
OVER_BUDGET = "†"


@dataclass(frozen=True)
class Cell:
    """Runs that differ in their seed alone, one per seed, beside the published value. Accuracies in percent.

    apart: what sets these runs apart from more runs of the same words, such as `train.warmup=500 (not 1000)`.
    """

    protocol: str
    task: str
    source: str
    attn: str
    deviation: str
    data_sha256: str
    split: str
    runs: tuple[Run, ...]
    superseded: tuple[Run, ...] = ()
    published: Published | None = None
    elsewhere: tuple[Published, ...] = ()
    apart: str = ""

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.status == "finished"]

    @property
    def accuracy(self) -> float | None:
        return _mean(run.accuracy for run in self.finished)

    @property
    def train_accuracy(self) -> float | None:
        return _mean(run.train_accuracy for run in self.finished)

    @property
    def interval(self) -> tuple[float, float, str] | None:
        """Low, high and kind of the 95% interval: `wilson` over one run's test set, `student` over several seeds."""
        accuracies = [run.accuracy for run in self.finished if run.accuracy is not None]
        if not accuracies:
            return None
        if len(accuracies) == 1:
            n = self.finished[0].n
            low, high = wilson(accuracies[0] * n, n)
            return 100 * low, 100 * high, "wilson"
        low, high = student_interval(accuracies)
        return 100 * max(low, 0.0), 100 * min(high, 1.0), "student"

    @property
    def difference(self) -> float | None:
        """Ours minus the published value, in points."""
        if self.accuracy is None or self.published is None or self.published.accuracy is None:
            return None
        return self.accuracy - self.published.accuracy

    @property
    def excess(self) -> str:
        """Parameters beyond the benchmark's 10% more than softmax's, such as `+502%`; empty where none is beyond."""
        return next(filter(None, (excess(run.params, run.params_softmax) for run in self.runs)), "")

    @property
    def attn_name(self) -> str:
        """The attention, marked where its parameters are beyond the benchmark's rule."""
        return self.attn + (OVER_BUDGET if self.excess else "")

    @property
    def words(self) -> str:
        """The deviation, and after it what sets the cell apart from another one with the same deviation."""
        return ",".join(filter(None, (self.deviation, self.apart)))

    @property
    def declared(self) -> dict[str, Any]:
        """What the published set-up changes in the plain recipe, as far as the runs say."""
        return {key: value for run in self.runs for key, value in (run.declared or {}).items()}

    @property
    def floors(self) -> dict[str, float]:
        """Test accuracies in percent that need no attention at all."""
        return floors(self.task, self.source)

    @property
    def task_name(self) -> str:
        """The task's plain name where its data are the real ones, with the source in parentheses where they are not."""
        return task_name(self.task, self.source)

    @property
    def column(self) -> tuple[str, str, str, str, str]:
        """What cells have in common that may be compared: protocol, task, source, data hash, split."""
        return self.protocol, self.task, self.source, self.data_sha256, self.split

    def count(self, status: str) -> int:
        return sum(run.status == status for run in self.runs)

    def only(self, fact: Callable[[Run], Any]) -> Any:
        """What `fact` says of every finished run (of every run, where none finished), or None where they disagree."""
        facts = {fact(run) for run in self.finished or self.runs}
        return facts.pop() if len(facts) == 1 else None

    @property
    def tokens_per_s(self) -> float | None:
        """Mean over finished runs; None where they ran on different devices, which no mean describes."""
        if self.only(lambda run: run.device) is None:
            return None
        speeds = [run.tokens_per_s for run in self.finished if run.tokens_per_s is not None]
        return statistics.fmean(speeds) if speeds else None

    @property
    def peak_memory_mb(self) -> float | None:
        """Largest of the finished runs; None where they ran on different devices."""
        if self.only(lambda run: run.device) is None:
            return None
        return max((run.peak_memory_mb for run in self.finished if run.peak_memory_mb is not None), default=None)


def select(
    runs: Sequence[Run], published: Sequence[Published], wanted: Mapping[str, str]
) -> tuple[list[Run], list[Published]]:
    """What agrees with `wanted`, names with commas by key. A name that no run and no paper has is a WordError."""
    for key, names in wanted.items():
        known = sorted({getattr(item, key) for item in (*runs, *published)} - {""})
        chosen = [choose(key, name, known) for name in names.split(",")]
        runs = [run for run in runs if getattr(run, key) in chosen]
        published = [value for value in published if getattr(value, key) in chosen]
    return list(runs), list(published)


def cells(runs: Iterable[Run], published: Sequence[Published] = ()) -> list[Cell]:
    """Group `runs` into cells, softmax first in each task; of two runs with one seed the newer counts."""
    groups: dict[tuple[str, ...], dict[str, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        place = run.protocol, run.task, run.source, run.attn, run.deviation, run.data_sha256, run.split
        groups[place][run.settings].append(run)
    known: dict[tuple[str, str, str], list[Published]] = defaultdict(list)
    for value in sorted(published, key=preference):
        known[value.protocol, value.attn, value.task].append(value)

    table = []
    for key in sorted(groups, key=_order):
        protocol, task, source, attn, words, data, split = key
        same_task = source in SOURCES.get(task, ()) and not OTHER_TASK.search(words)
        values = known[protocol, attn, task] if same_task else []
        # The configuration of most runs is the one that the others are told apart from; of equals, the newest.
        first, *others = sorted(groups[key].values(), key=_weight, reverse=True)
        for members in (first, *others):
            members = sorted(members, key=lambda run: (run.finished_at, run.path))
            newest = {run.seed: run for run in members}
            table.append(
                Cell(
                    protocol=protocol,
                    task=task,
                    source=source,
                    attn=attn,
                    deviation=words,
                    data_sha256=data,
                    split=split,
                    runs=tuple(newest[seed] for seed in sorted(newest)),
                    superseded=tuple(run for run in members if newest[run.seed] is not run),
                    published=values[0] if values else None,
                    elsewhere=tuple(value for value in values[1:] if value.url != values[0].url),
                    apart="" if members[0].settings == first[0].settings else unlike(members[0], first[0]),
                )
            )
    return table


def column_names(table: Iterable[Cell]) -> dict[tuple[str, str, str, str, str], str]:
    """By column its task's name, with the data hash and the split where others under that name have another one."""
    named = {cell.column: cell.task_name for cell in table}
    hashes: dict[tuple[str, ...], set[str]] = defaultdict(set)
    splits: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for protocol, task, source, data, split in named:
        hashes[protocol, task, source].add(data)
        splits[protocol, task, source].add(split)
    for column in named:
        if len(hashes[column[:3]]) > 1:
            named[column] += f" data {column[3][:8]}"
        if len(splits[column[:3]]) > 1:
            named[column] += f" split {column[4] or 'not recorded'}"
    return named


def _weight(members: Sequence[Run]) -> tuple[int, float, str]:
    return len(members), max(run.finished_at for run in members), members[0].settings


def unlike(run: Run, other: Run) -> str:
    """What the configuration of `run` has that the one of `other` has not: `train.warmup=500 (not 1000)`."""
    if run.config is None or other.config is None:
        return "configuration not recorded" if run.config is None else "configuration recorded"
    keys = (run.config.keys() | other.config.keys()) - {"seed"}
    differ = sorted(key for key in keys if _value(run, key) != _value(other, key))
    return ",".join(f"{visible(key)}={_value(run, key)} (not {_value(other, key)})" for key in differ)


def _value(run: Run, key: str) -> str:
    config = run.config or {}
    return visible(json.dumps(config[key]).strip(chr(34))) if key in config else "unset"


def _order(key: tuple[str, ...]) -> tuple[Any, ...]:
    protocol, task, source, attn, words, data, split = key
    place = list(SOURCES).index(task) if task in SOURCES else len(SOURCES)
    return protocol_order(protocol), place, task, source, attn != "softmax", attn, words, data, split


def _mean(shares: Iterable[float | None]) -> float | None:
    """Mean of fractions in percent, None where there are none."""
    known = [share for share in shares if share is not None]
    return 100 * statistics.fmean(known) if known else None
