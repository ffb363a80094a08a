"""The table of the study of entropy: smoothed errors of all that enters, under each budget."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.studies.budgets import Entry, Timed
from benchmarks.studies.smoothing import smooth
from benchmarks.studies.sweeps import Choice

# As in the file: an attention, a parameter and its value; a temperature, an instance and a head; entropy and error.
Name = tuple[str, str, str]
Point = tuple[str, str, str]
Found = tuple[str, str]
Known = dict[Name, dict[Point, Found]]

# At which entropies the table stands, nats: those at which the published curves were read.
ENTROPIES = (1, 3, 5, 7)
NONE = "none within the budget"


def name_of(choice: Choice) -> Name:
    return choice.attn, choice.parameter, str(choice.value)


def table(
    title: str, entries: Sequence[Entry], points: Sequence[Point], known: Known, failed: Mapping[Name, str]
) -> list[str]:
    """Its lines. All curves are of the same `points`; `failed`: why a configuration lacks some."""
    lines = []
    for budget in dict.fromkeys(entry.budget for entry in entries):
        lines.append(f"{title}, within {budget}: error at {', '.join(map(str, ENTROPIES))} nats")
        for entry in entries:
            if entry.budget == budget:
                taken = entry.taken
                told = none_of(entry) if taken is None else line(entry, taken, points, known, failed)
                lines.append(f"  {entry.attn:16} {told}")
    return lines


def none_of(entry: Entry) -> str:
    """What is said of an attention none of whose configurations is within the budget."""
    against, quickest = entry.budget.against, entry.quickest
    if quickest is None or against not in quickest.ratios:
        return NONE
    return f"{NONE}: {quickest.label()} takes {quickest.ratios[against]:.2f} x {against}"


def line(entry: Entry, taken: Timed, points: Sequence[Point], known: Known, failed: Mapping[Name, str]) -> str:
    """The configuration, its time, its smoothed errors, and what a reader must know of them."""
    name = name_of(taken.choice)
    told = f"{taken.label()}, {taken.ms:.4g} ms, {taken.ratios[entry.budget.against]:.2f} x"
    found = known.get(name, {})
    if not found.keys() >= set(points):
        return f"{told}: {failed[name]}"
    entropy, error = np.array([found[point] for point in points], float).T
    values = smooth(entropy, error, np.array(ENTROPIES, float))
    shown = " ".join(f"{value:6.3f}" if math.isfinite(value) else "     -" for value in values)
    notes = []
    if wrong := np.count_nonzero(~np.isfinite(error)):
        notes.append(f"{wrong} of {len(error)} errors are no numbers")
    if not taken.choice.aims:
        notes.append("does not aim at softmax")
    nearest = entry.nearest
    if nearest is not None and nearest.error < 0.99 * taken.error:
        notes.append(f"{nearest.label()} is nearer at temperature 1, {nearest.error:.3g} against {taken.error:.3g}")
    return f"{told:38} {shown}{'  ' if notes else ''}{'; '.join(notes)}"
