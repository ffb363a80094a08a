"""Runs under way as lines of text that fit a width and a height."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from lra.underway import Row, Snapshot

GAP = 2
BAR = (6, 20)
CURVE = 12
# Names are cut to the first before a column goes, and to the second before the last ones go.
ROOMY, NAME = 24, 8
SPARKS = "▁▂▃▄▅▆▇█"
UNKNOWN = "?"
# For terminals that know no others.
ASCII = str.maketrans("━─…" + SPARKS, "#-~" + "._-=+*%#")


class Cell(NamedTuple):
    """What stands in a column of a row, and how."""

    text: str
    style: str = ""


@dataclass(frozen=True)
class Column:
    """A column; `words` are those that all rows share, which no cell repeats."""

    name: str
    cell: Callable[[Row, frozenset[str]], Cell]
    left: bool = False


def task(row: Row, shared: frozenset[str]) -> Cell:
    """The task, with its source where the path names one; the path of a run whose path says no more."""
    if row.name is None:
        return Cell(row.folder.name)
    source = next((word.partition("=")[2] for word in row.name.words if is_source(word)), "")
    return Cell(row.name.task + (f" ({source})" if source else ""))


def attention(row: Row, shared: frozenset[str]) -> Cell:
    """The attention and what the row alone changes in its recipe, keys without their group."""
    if row.name is None:
        return Cell("")
    own = [word for word in row.name.words if word not in shared and not is_source(word)]
    short = (f"{word.partition('=')[0].rpartition('.')[2]}={word.partition('=')[2]}" for word in own)
    return Cell(" ".join((row.name.attn, *short)), "bold")


def is_source(word: str) -> bool:
    return word.startswith("task.source=")


def progress(row: Row, shared: frozenset[str]) -> Cell:
    return Cell("━" * BAR[0])


def steps(row: Row, shared: frozenset[str]) -> Cell:
    if row.state == "starting":
        return Cell("-")
    return Cell(f"{row.step:,}/{UNKNOWN if row.steps is None else format(row.steps, ',')}")


def best(row: Row, shared: frozenset[str]) -> Cell:
    """The best accuracy so far, in green while it is the last."""
    return Cell(percent(row.best), "green" if row.best is not None and row.best == row.val else "")


def curve(row: Row, shared: frozenset[str]) -> Cell:
    """Validation accuracy from the first to the last, each mark the mean of a stretch, between its own extremes."""
    values = row.curve
    if len(values) < 2:
        return Cell("")
    marks = min(len(values), CURVE)
    edges = [i * len(values) // marks for i in range(marks + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return Cell("".join(SPARKS[round((mean - low) * scale)] for mean in means), "cyan")


def time_left(row: Row, shared: frozenset[str]) -> Cell:
    if row.state == "running":
        return Cell(UNKNOWN if row.left is None else clock(row.left))
    return Cell("-", "dim")


def last(row: Row, shared: frozenset[str]) -> Cell:
    """How long ago the last line was written, and what else than training that may mean."""
    if row.state == "running":
        return Cell(ago(row.age), "dim")
    return Cell(f"{row.state} {ago(row.age)}", "red" if row.state == "silent" else "yellow")


def percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f}"


def count(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def clock(seconds: float) -> str:
    """h:mm:ss, or days and hours from 100 hours on."""
    whole = round(seconds)
    if whole >= 360_000:
        return f"{whole // 86_400} d {whole % 86_400 // 3600} h"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def ago(seconds: float) -> str:
    """The largest unit alone: `12 min`."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} s"


COLUMNS = (
    Column("protocol", lambda row, shared: Cell(row.name.protocol if row.name else "", "dim"), left=True),
    Column("task", task, left=True),
    Column("attention", attention, left=True),
    Column("seed", lambda row, shared: Cell(row.name.seed if row.name else "", "dim")),
    Column("progress", progress, left=True),
    Column("step", steps),
    Column("loss", lambda row, shared: Cell(UNKNOWN if row.loss is None else f"{row.loss:.3f}")),
    Column("val %", lambda row, shared: Cell(percent(row.val))),
    Column("best", best),
    Column("curve", curve, left=True),
    Column("tokens/s", lambda row, shared: Cell(count(row.tokens_per_s))),
    Column("peak MB", lambda row, shared: Cell(count(row.peak_memory_mb), "dim")),
    Column("left", time_left),
    Column("last line", last),
)
# What goes first where a line has no room for all; the others stay.
DROPPED = ("curve", "peak MB", "loss", "protocol", "tokens/s", "progress", "val %", "seed", "task")
LAST_RESORT = ("seed", "task", None)


def draw(shot: Snapshot, width: int | None, height: int | None, nothing: str, ascii_only: bool = False) -> list[Text]:
    """The lines of a snapshot, at most `height` of them and none wider than `width` (None: as needed).

    nothing: the line that stands where there are no rows. ascii_only: draw with no other characters.
    """
    rows, hidden = fitting(shot.rows, height)
    lines = [Text(caption(rows), style="dim"), *grid(rows, width)] if rows else [Text(nothing)]
    if hidden:
        lines.append(Text(f"and {hidden:,} more", style="dim"))
    lines += [Text(line, style="dim") for line in footer(shot)]
    for line in lines:
        line.no_wrap = True
        if width is not None:
            line.truncate(width, overflow="ellipsis")
        if ascii_only:
            line.plain = line.plain.translate(ASCII)
    return lines if height is None else lines[:height]


def fitting(rows: Sequence[Row], height: int | None) -> tuple[list[Row], int]:
    """The rows that have room, the most recently active, in the order of their paths; and how many have none."""
    # Beside the rows: what they share, the header, how many more, and three lines of footer.
    room = len(rows) if height is None else max(height - 6, 1)
    # By the minute, so that rows which are all active do not change places at every look.
    chosen = sorted(rows, key=lambda row: (row.state == "silent", row.age // 60, row.folder))[:room]
    chosen.sort(key=lambda row: (row.state == "silent", row.folder))
    return chosen, len(rows) - len(chosen)


def shared_words(rows: Sequence[Row]) -> frozenset[str]:
    """The words that every row has, the source of the data apart."""
    each = [frozenset(row.name.words) if row.name else frozenset() for row in rows]
    return frozenset(word for word in frozenset.intersection(*each) if not is_source(word)) if each else frozenset()


def caption(rows: Sequence[Row]) -> str:
    """What all rows share, so that none needs to say it."""
    shared = shared_words(rows)
    parts = [column.cell(rows[0], shared).text for column in COLUMNS[:2] if is_shared(column, rows)]
    return ", ".join(filter(None, [*parts, *sorted(shared)]))


def is_shared(column: Column, rows: Sequence[Row]) -> bool:
    """Whether every row has a name and the same text in a column."""
    return all(row.name for row in rows) and len({column.cell(row, frozenset()) for row in rows}) == 1


def grid(rows: Sequence[Row], width: int | None) -> list[Text]:
    """A header and a line per row, columns left out and names cut until they fit."""
    shared = shared_words(rows)
    columns = [column for i, column in enumerate(COLUMNS) if i > 1 or not is_shared(column, rows)]
    cells = {column.name: [column.cell(row, shared) for row in rows] for column in columns}
    widths = {name: max(cell_len(name), *(cell_len(cell.text) for cell in column)) for name, column in cells.items()}

    def over() -> int:
        return 0 if width is None else sum(widths.values()) + GAP * (len(widths) - 1) - width

    named = widths["attention"]
    # In the order of their worth, and at last with nothing left to drop.
    for name in (*DROPPED, None):
        widths["attention"] = named
        floor = min(named, NAME if name in LAST_RESORT else ROOMY)
        widths["attention"] = max(named - max(over(), 0), floor)
        if over() <= 0 or name is None:
            break
        widths.pop(name, None)
    if "progress" in widths:
        room = BAR[1] if width is None else widths["progress"] - over()
        widths["progress"] = min(max(room, BAR[0]), BAR[1])
    kept = [column for column in columns if column.name in widths]
    header = (aligned(column.name, widths[column.name], column.left) for column in kept)
    lines = [Text((" " * GAP).join(header), style="bold")]
    for i, row in enumerate(rows):
        line = Text()
        for column in kept:
            cell = cells[column.name][i]
            if line:
                line.append(" " * GAP)
            if column.name == "progress":
                line.append_text(bar(row, widths["progress"]))
            else:
                line.append(aligned(cell.text, widths[column.name], column.left), cell.style)
        lines.append(line)
    return lines


def aligned(text: str, width: int, left: bool) -> str:
    """Text in a field of so many cells, its end cut where it is longer."""
    if cell_len(text) > width:
        text = set_cell_size(text, width - 1) + "…"
    space = " " * (width - cell_len(text))
    return text + space if left else space + text


def bar(row: Row, width: int) -> Text:
    """The share of the steps that is done."""
    done = width * min(row.step, row.steps) // row.steps if row.steps else 0
    style = "red" if row.state == "silent" else "green"
    return Text.assemble(("━" * done, style), ("─" * (width - done), "dim"))


def footer(shot: Snapshot) -> list[str]:
    """Counts of what is shown and of what is not."""
    parts = [f"{shot.count('running'):,} running"]
    parts += [f"{shot.count(state):,} {state}" for state in ("starting", "testing", "silent") if shot.count(state)]
    line = f"{', '.join(parts)}; {shot.ended_lately:,} ended in the last hour, {shot.ended:,} in all"
    lines = [f"{line}; {shot.tokens_per_s:,.0f} tokens/s" if shot.count("running") else line]
    if shot.abandoned:
        lines.append(f"{shot.abandoned:,} without a result or a line for over a day; the same words resume")
    troubles = shot.problems + ([f"{shot.broken:,} unreadable lines in records"] if shot.broken else [])
    if troubles:
        more = f", and {len(troubles) - 1:,} more problems" if len(troubles) > 1 else ""
        lines.append(f"not shown: {troubles[0]}{more}")
    return lines
