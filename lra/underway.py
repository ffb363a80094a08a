"""The runs under way in a folder, from their metrics.jsonl alone: how far, how good, how fast, how long still."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from lra.folders import run_folders
from lra.records import RECENT, Follower, Name, name_of, number, whole

HOUR = 3600.0
DAY = 24 * HOUR
# A run is silent after so many times its longest silence so far, and never before so many seconds: once it has been
# seen to validate, and before, when nobody knows how long that takes.
PATIENCE = 3.0
SHORTEST = 60.0
UNKNOWN = 600.0
# The share of the steps done whose pace the time left is reckoned with: the newest.
NEWEST = 0.25


@dataclass(frozen=True)
class Row:
    """One run under way. Accuracies are fractions; `age` counts seconds since its last line, `left` those still to go.

    state: `starting` (no line yet), `running`, `testing` (every step done, no result yet) or `silent`.
    """

    folder: Path
    name: Name | None
    state: str
    age: float
    step: int = 0
    steps: int | None = None
    loss: float | None = None
    val: float | None = None
    best: float | None = None
    curve: tuple[float, ...] = ()
    tokens_per_s: float | None = None
    peak_memory_mb: float | None = None
    left: float | None = None


@dataclass
class Snapshot:
    """The rows of a moment in the order of their paths, and counts of the other runs."""

    rows: list[Row] = field(default_factory=list)
    ended: int = 0
    ended_lately: int = 0
    abandoned: int = 0
    broken: int = 0
    problems: list[str] = field(default_factory=list)
    seen: dict[str, set[str]] = field(default_factory=dict)

    def count(self, state: str) -> int:
        return sum(row.state == state for row in self.rows)

    @property
    def tokens_per_s(self) -> float:
        """Of all that is running."""
        return sum(row.tokens_per_s or 0.0 for row in self.rows if row.state == "running")


class UnderWay:
    """The runs below `root` that agree with `wanted`, names by `protocol`, `task` and `attn`."""

    def __init__(self, root: Path, wanted: Mapping[str, frozenset[str]]) -> None:
        self.root, self.wanted = root, wanted
        self.followers: dict[Path, Follower] = {}

    def read(self, now: float) -> Snapshot:
        """What is so at `now`, in seconds since the epoch."""
        shot = Snapshot(seen={key: set() for key in ("protocol", "task", "attn")})
        kept: dict[Path, Follower] = {}
        for folder in run_folders(self.root, []):
            name = name_of(folder, self.root)
            if name:
                for key, names in shot.seen.items():
                    names.add(getattr(name, key))
            if not self.is_wanted(name):
                continue
            file = folder / "metrics.jsonl"
            try:
                ended = ended_at(folder)
                if ended is not None:
                    shot.ended += 1
                    shot.ended_lately += now - ended < HOUR
                    continue
                found = file.stat()
                if now - found.st_mtime > DAY:
                    shot.abandoned += 1
                    continue
                follower = self.followers.get(file) or Follower(file)
                follower.read(found)
            except FileNotFoundError:
                continue
            except OSError as error:
                shot.problems.append(f"{file.relative_to(self.root)}: {error.strerror or error}")
                continue
            kept[file] = follower
            shot.broken += follower.broken
            shot.rows.append(row(folder, name, follower, max(now - found.st_mtime, 0.0)))
        self.followers = kept
        return shot

    def is_wanted(self, name: Name | None) -> bool:
        """Whether a run agrees with the words; one whose path says nothing agrees where nothing was asked."""
        return all(name is not None and getattr(name, key) in names for key, names in self.wanted.items())


def ended_at(folder: Path) -> float | None:
    """When a run wrote its result; None while it has none, or where a resumed one has written lines after it."""
    try:
        result = (folder / "result.json").stat().st_mtime
    except FileNotFoundError:
        return None
    try:
        return result if result >= (folder / "metrics.jsonl").stat().st_mtime else None
    except FileNotFoundError:
        return result


def row(folder: Path, name: Name | None, record: Follower, age: float) -> Row:
    """What the record of a run says, `age` seconds after its last line."""
    last, train, val = record.last, record.train or {}, record.val or {}
    if last is None:
        return Row(folder, name, "silent" if age > UNKNOWN else "starting", age)
    step, steps = last["step"], whole(last, "steps")
    if steps is not None and step >= steps and last["split"] == "val":
        state = "testing"
    else:
        state = "silent" if age > patience(record) else "running"
    accuracies = [accuracy for _, accuracy in record.validations]
    return Row(
        folder, name, state, age, step, steps,
        loss=number(train, "loss"),
        val=number(val, "accuracy"),
        best=max(accuracies, default=None),
        curve=tuple(accuracies),
        tokens_per_s=number(train, "tokens_per_s"),
        peak_memory_mb=number(train, "peak_memory_mb"),
        left=left(record, step, steps, age) if state == "running" else None,
    )  # fmt: skip


def patience(record: Follower) -> float:
    """Seconds after its last line at which a run counts as silent, by its own rhythm."""
    times = [seconds for _, seconds in record.recent]
    if len(times) < RECENT:
        times.insert(0, 0.0)
    gaps = [after - before for before, after in pairwise(times)]
    return max(PATIENCE * max(gaps, default=0.0), SHORTEST if gaps and record.val else UNKNOWN)


def left(record: Follower, step: int, steps: int | None, age: float) -> float | None:
    """Seconds until the last step, from the pace of the newest quarter of the steps done, evaluations included."""
    places = sorted({*record.times, *record.recent})
    if steps is None or not places or places[-1][0] != step or not step:
        return None
    before = [place for place in places if place[0] <= (1 - NEWEST) * step]
    first, began = before[-1] if before else (0, 0.0)
    pace = (places[-1][1] - began) / (step - first)
    return max(pace * (steps - step) - age, 0.0)
