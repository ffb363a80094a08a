"""From which length on an attention is ahead of exact ones, in time and in memory, by the rows of efficiency.csv."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.rows import save_rows
from benchmarks.studies.ledger import rows_of

EFFICIENCY, CROSSOVER = "efficiency.csv", "crossover.csv"
# The part whose time counts, and with how many others it is measured in turn.
PART = {"core": "step", "model": "train"}
BEST, EAGER = "best", "eager"
# What rows must have in common to be of one line over the lengths.
SETTING = ("of", "dtype", "rule")

Rows = Sequence[Mapping[str, str]]


class Crossing(NamedTuple):
    """A line of crossover.csv: one attention against exact ones, over the lengths where both are known.

    measure     time: of a step of the attention alone, of a whole training step of a model; memory: their peak
    rival       best: whichever exact attention is best at each length; eager: softmax with its scores in memory
    against     its name, of best at `ahead_from`, else at the longest length
    length      where the ratio is 1 on a straight line in log-log from `behind_at` to `ahead_from`; empty where it is
                not behind at any length, where it is at the longest, and where the other one does not run
    ahead_from  the smallest measured length from which on it stays ahead; empty: behind at the longest
    behind_at   the largest measured length at which it is not ahead; empty: ahead at all
    ahead_before  shorter lengths at which it is ahead too, though not from there on
    longest     the largest measured length
    """

    of: str
    attn: str
    measure: str
    dtype: str
    rule: str
    rival: str
    against: str
    length: float | None
    ahead_from: int | None
    behind_at: int | None
    ahead_before: list[int]
    longest: int
    device: str
    torch: str
    source: str


def crossings(rows: Rows) -> list[Crossing]:
    """Of every variant, in the order of the rows, against the best exact attention and against eager softmax."""
    found = []
    for setting in dict.fromkeys(tuple(row[key] for key in SETTING) for row in rows):
        mine = [row for row in rows if tuple(row[key] for key in SETTING) == setting]
        exact = [row for row in mine if row["kind"] == "exact"]
        for attn in dict.fromkeys(row["attn"] for row in mine if row["kind"] == "variant"):
            its = [row for row in mine if row["attn"] == attn]
            for measure in ("time", "memory"):
                for rival, others in ((BEST, exact), (EAGER, [row for row in exact if row["attn"] == EAGER])):
                    crossing = crossed(its, others, measure, rival)
                    found += [crossing] if crossing else []
    return found


def crossed(its: Rows, exact: Rows, measure: str, rival: str) -> Crossing | None:
    """One line; None where there is no length at which both are known."""
    ratios: dict[int, float] = {}
    names: dict[int, str] = {}
    for row in its:
        others = [other for other in exact if other["n"] == row["n"]]
        known = best(others, measure)
        n = int(row["n"])
        if value(row, measure) is not None:
            if known is not None:
                ratios[n], names[n] = ratio(row, known, measure), known["attn"]
            elif others and all(out_of_memory(other) for other in others):
                ratios[n], names[n] = 0.0, others[0]["attn"]
        elif known is not None and out_of_memory(row):
            ratios[n], names[n] = math.inf, known["attn"]
    if not ratios:
        return None
    lengths = sorted(ratios)
    behind = [n for n in lengths if not ratios[n] < 1]
    behind_at = behind[-1] if behind else None
    after = [n for n in lengths if behind_at is None or n > behind_at]
    ahead_from = after[0] if after else None
    length = None
    if behind_at is not None and ahead_from is not None:
        length = meeting(behind_at, ratios[behind_at], ahead_from, ratios[ahead_from])
    first = its[0]
    return Crossing(
        first["of"],
        first["attn"],
        measure,
        first["dtype"],
        first["rule"],
        rival,
        names[ahead_from or lengths[-1]],
        length,
        ahead_from,
        behind_at,
        [n for n in lengths if ratios[n] < 1 and behind_at is not None and n < behind_at],
        lengths[-1],
        first["device"],
        first["torch"],
        first["source"],
    )


def meeting(n: int, ratio: float, longer: int, smaller: float) -> float | None:
    """Where the ratio is 1 on a straight line in log-log; None where there is none between what does not run."""
    if not (0 < smaller < 1 <= ratio < math.inf):
        return None
    share = math.log(ratio) / math.log(ratio / smaller)
    return float(n * (longer / n) ** share)


def value(row: Mapping[str, str], measure: str) -> float | None:
    """What is compared, for one example: milliseconds or MiB; None where it was not measured, or not seen to be any."""
    key = f"{PART[row['of']]}_ms" if measure == "time" else "peak_mb"
    number = float(row[key] or 0) / int(row["batch"] or 1)
    return number if number > 0 else None


def best(rows: Rows, measure: str) -> Mapping[str, str] | None:
    """The row with the least time or memory."""
    known = [(number, i) for i, row in enumerate(rows) if (number := value(row, measure)) is not None]
    return rows[min(known)[1]] if known else None


def ratio(row: Mapping[str, str], other: Mapping[str, str], measure: str) -> float:
    """What the row takes to what the other takes, for one example; times round by round where they are of one race."""
    mine, its = value(row, measure), value(other, measure)
    assert mine is not None
    assert its is not None, "both are known"
    if measure == "time" and row["date"] == other["date"] and row["batch"] == other["batch"]:
        ours, theirs = ([float(x) for x in each["samples_ms"].split()] for each in (row, other))
        if len(ours) == len(theirs) > 0 and min(theirs) > 0:
            return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return mine / its


def out_of_memory(row: Mapping[str, str]) -> bool:
    return "out of memory" in row["result"]


def words(crossing: Crossing) -> str:
    """A crossing as a table shows it."""
    if crossing.ahead_from is None:
        told = f"never up to {crossing.longest:,}"
    elif crossing.behind_at is None:
        told = f"always, from {crossing.ahead_from:,}"
    elif crossing.length is None:
        told = f"from {crossing.ahead_from:,}"
    else:
        told = f"{crossing.length:,.0f}"
    before = " ".join(f"{n:,}" for n in crossing.ahead_before)
    return f"{told} (and at {before})" if before else told


def derive(folder: Path) -> list[Crossing]:
    """Write crossover.csv of a folder anew from its efficiency.csv; OSError where that is missing."""
    found = crossings(rows_of(folder / EFFICIENCY))
    save(folder / CROSSOVER, found)
    return found


def save(file: Path, found: Iterable[Crossing]) -> None:
    from benchmarks.studies.ledger import text

    save_rows(str(file), Crossing._fields, ([text(cell) for cell in crossing] for crossing in found))


def as_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, the first one to the left, the others to the right."""
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in (head, *lines)
    )


def crossover_table(found: Sequence[Crossing], of: str, dtype: str, rule: str) -> str:
    """Attention by attention: from which length on it is ahead; of the best exact one and of eager softmax."""
    mine = [each for each in found if (each.of, each.dtype, each.rule) == (of, dtype, rule)]
    cells = {(each.attn, each.measure, each.rival): words(each) for each in mine}
    columns = [(measure, rival) for measure in ("time", "memory") for rival in (BEST, EAGER)]
    head = ["attention", *(f"{measure}, {'best exact' if rival == BEST else rival}" for measure, rival in columns)]
    names = dict.fromkeys(each.attn for each in mine)
    return as_table(head, [[name, *(cells.get((name, *column), "") for column in columns)] for name in names])


def benchmark_table(rows: Rows, of: str, dtype: str, rule: str) -> str:
    """The benchmark's own table, attention x length: steps a second and MiB, times eager softmax's and fused one's.

    More than 1 is faster, and more memory. What did not run is told by its reason's first word.
    """
    mine = [row for row in rows if (row["of"], row["dtype"], row["rule"]) == (of, dtype, rule)]
    lengths = sorted({int(row["n"]) for row in mine})
    at = {(row["attn"], int(row["n"])): row for row in mine}

    def cells(row: Mapping[str, str] | None) -> list[str]:
        if row is None:
            return ["", ""]
        if not row["steps_per_s"]:
            return ["memory" if out_of_memory(row) else "none", ""]
        faster = [f"{1 / float(row[key]):.2f}" if row[key] else "-" for key in ("ratio_eager", "ratio")]
        larger = [f"{float(row[key]):.2f}" if row[key] else "-" for key in ("memory_ratio_eager", "memory_ratio")]
        speed = f"{float(row['steps_per_s']):.3g} x{faster[0]} x{faster[1]}"
        memory = f"{float(row['peak_mb']):.0f} x{larger[0]} x{larger[1]}" if row["peak_mb"] else ""
        return [speed, memory]

    head = ["attention", *(f"{n:,}: steps/s" for n in lengths), *(f"{n:,}: MiB" for n in lengths)]
    lines = []
    for name in dict.fromkeys(row["attn"] for row in mine):
        speed, memory = zip(*(cells(at.get((name, n))) for n in lengths), strict=True)
        lines.append([name, *speed, *memory])
    return as_table(head, lines)
