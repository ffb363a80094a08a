"""From which length on a variant is ahead of softmax attention, by the measurements of `python -m benchmarks.speed`."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from lra.commit import commit_date
from lra.folders import BROKEN, reason, visible

MEASURED = Path(__file__).resolve().parents[1] / "benchmarks" / "results" / "speed.csv"
CORE, YARDSTICK = "zoo core", "softmax"
# What must be equal between two rows for their times to be compared.
SETTING = ("dtype", "device", "batch", "heads", "head_dim", "torch", "commit")


def crossover(file: Path = MEASURED, attentions: Collection[str] = ()) -> tuple[dict[str, Any] | None, list[str]]:
    """What `file` says of `attentions` (none named: of all), None where it says nothing; and the problems met.

    `time` and `memory` are ratios to softmax at each of `lengths`, None where not measured, of one forward and backward
    pass of the attention alone. `ahead_from` is the smallest measured length from which on the ratio is below 1.
    """
    if not file.exists():
        return None, []
    place = "/".join(file.parts[-3:])
    try:
        with file.open(newline="", encoding="utf-8") as opened:
            rows = [row for row in csv.DictReader(opened) if row["implementation"] == CORE]
        setting = next(([row[key] for key in SETTING] for row in rows if row["attn"] == YARDSTICK), None)
        if setting is None:
            return None, [f"no crossover: {place} has no row of {YARDSTICK}, {CORE}"]
        mine = [row for row in rows if [row[key] for key in SETTING] == setting]
        times: dict[str, dict[int, float]] = defaultdict(dict)
        peaks: dict[str, dict[int, float]] = defaultdict(dict)
        for row in mine:
            times[row["attn"]][int(row["n"])] = float(row["step_ratio"])
            peaks[row["attn"]][int(row["n"])] = float(row["peak_mb"])
    except (KeyError, TypeError, *BROKEN) as error:
        return None, [f"no crossover: {place} cannot be read: {reason(error)}"]
    about = dict(zip(SETTING, setting, strict=True))
    lengths = sorted(times[YARDSTICK])
    found = [
        _row(attn, lengths, times[attn], _ratios(peaks[attn], peaks[YARDSTICK]))
        for attn in times
        if attn != YARDSTICK and (not attentions or attn in attentions)
    ]
    problems = []
    if len(mine) < len(rows):
        problems.append(f"crossover: {len(rows) - len(mine)} rows of {place} are of another device, dtype or commit")
    shape = f"{about['batch']} x {about['heads']} heads x {about['head_dim']}, {about['dtype']}"
    what = f"forward and backward of the attention alone ({shape}), not of the whole model"
    when = commit_date(about["commit"].removesuffix("-dirty")) or f"commit {about['commit'][:8] or 'unknown'}"
    source = visible(f"{place}, {when}, {about['device']}: {what}.")
    return {"source": source, "lengths": lengths, "rows": found}, problems


def _ratios(mine: dict[int, float], yardstick: dict[int, float]) -> dict[int, float]:
    return {n: peak / yardstick[n] for n, peak in mine.items() if yardstick.get(n, 0) > 0}


def _row(attn: str, lengths: Sequence[int], time: dict[int, float], memory: dict[int, float]) -> dict[str, Any]:
    return {
        "attention": attn,
        "time": [_rounded(time.get(n)) for n in lengths],
        "memory": [_rounded(memory.get(n)) for n in lengths],
        "ahead_from": ahead_from(time),
        "memory_ahead_from": ahead_from(memory),
    }


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 3)


def ahead_from(ratios: dict[int, float]) -> int | None:
    """The smallest length whose ratio, and that of every longer one, is below 1; None where the longest is not."""
    start = None
    for n in sorted(ratios, reverse=True):
        if not ratios[n] < 1:
            break
        start = n
    return start
