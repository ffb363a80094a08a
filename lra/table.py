"""Cells as texts: one set of rows and notes for the terminal and for Markdown, full precision for CSV."""

from __future__ import annotations

import csv
import html
import io
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lra.cells import Cell, column_names
from lra.folders import visible
from lra.notes import cited, marks, notes, papers, sources
from lra.outcomes import spelled
from lra.published import SOURCES, Published, preference, protocol_order


class Row(NamedTuple):
    """A cell as the texts of the terminal and Markdown tables."""

    task: str
    attention: str
    deviation: str
    test: str
    interval: str
    seeds: str
    failures: str
    published: str
    difference: str
    train: str
    params: str
    speed: str
    memory: str


HEADERS = Row(
    *("task", "attention", "deviation", "test %", "95% interval", "seeds", "failures"),
    *("published", "diff", "train %", "params", "tokens/s", "peak MB"),
)


def rows(table: Sequence[Cell]) -> list[Row]:
    """The texts of `table`, in its order."""
    names = column_names(table)
    numbered = papers(table)
    return [_row(cell, names[cell.column], numbered) for cell in table]


def _row(cell: Cell, task: str, numbered: list[tuple[str, str]]) -> Row:
    return Row(
        task=task,
        attention=cell.attn_name,
        deviation=cell.words.replace(",", ", ") or "-",
        test=_decimal(cell.accuracy),
        interval=_interval(cell),
        seeds=str(len(cell.finished)),
        failures=_failures(cell),
        published=cited(cell.published, numbered) if cell.published else "-",
        difference="-" if cell.difference is None else f"{cell.difference:+.1f}",
        train=_decimal(cell.train_accuracy),
        params=_thousands(cell.only(lambda run: run.params)) + (f" ({cell.excess})" if cell.excess else ""),
        speed=_thousands(cell.tokens_per_s),
        memory=_thousands(cell.peak_memory_mb),
    )


def _interval(cell: Cell) -> str:
    if cell.interval is None:
        return "-"
    low, high, kind = cell.interval
    return f"{low:.1f} to {high:.1f} ({'Wilson' if kind == 'wilson' else 't'})"


def _failures(cell: Cell) -> str:
    counts = {"diverged": cell.count("diverged"), "out of memory": cell.count("out_of_memory")}
    failures = ", ".join(f"{count} {what}" for what, count in counts.items() if count) or "0"
    unfinished = cell.count("interrupted")
    return f"{failures}; {unfinished} unfinished" if unfinished else failures


def _decimal(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _thousands(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def markdown(table: Sequence[Cell], problems: Sequence[str] = (), heading: str = "") -> str:
    """`table` as a Markdown page: a section per protocol, then notes, sources and problems."""
    parts = ["# Long Range Arena: our runs beside the published numbers\n"]
    if heading:
        parts.append(f"Only {heading}.\n")
    texts = rows(table)
    for protocol in dict.fromkeys(cell.protocol for cell in table):
        mine = [row for row, cell in zip(texts, table, strict=True) if cell.protocol == protocol]
        parts.append(f"## Protocol {protocol}\n")
        parts.append("\n".join(_markdown_line(line) for line in (HEADERS, _RULE, *mine)) + "\n")
    for lines in (notes(table), sources(table), problems):
        if lines:
            parts.append("\n".join(f"- {_literal(line)}" for line in lines) + "\n")
    return "\n".join(parts)


_RULE = Row(*("---",) * 3, *("---:",) * 10)


def _markdown_line(row: Row) -> str:
    return "| " + " | ".join(_literal(text).replace("|", "\\|") for text in row) + " |"


def _literal(text: str) -> str:
    """`text` with nothing in it that Markdown or HTML reads as its own."""
    return html.escape(text, quote=False).replace("*", "\\*").replace("_", "\\_")


COLUMNS: dict[str, Callable[[Cell], Any]] = {
    "protocol": lambda cell: cell.protocol,
    "task": lambda cell: cell.task,
    "source": lambda cell: cell.source,
    "attn": lambda cell: cell.attn,
    "split": lambda cell: cell.split,
    "deviation": lambda cell: cell.deviation,
    "apart": lambda cell: cell.apart,
    "declared": lambda cell: ",".join(spelled(cell.declared)),
    "accuracy": lambda cell: cell.accuracy,
    "interval_low": lambda cell: cell.interval and cell.interval[0],
    "interval_high": lambda cell: cell.interval and cell.interval[1],
    "interval_kind": lambda cell: cell.interval and cell.interval[2],
    "n_seeds": lambda cell: len(cell.finished),
    "seeds": lambda cell: " ".join(str(run.seed) for run in cell.finished),
    "failures": lambda cell: cell.count("diverged") + cell.count("out_of_memory"),
    "diverged": lambda cell: cell.count("diverged"),
    "out_of_memory": lambda cell: cell.count("out_of_memory"),
    "unfinished": lambda cell: cell.count("interrupted"),
    "train_accuracy": lambda cell: cell.train_accuracy,
    "params": lambda cell: cell.only(lambda run: run.params),
    "params_softmax": lambda cell: cell.only(lambda run: run.params_softmax),
    "params_excess": lambda cell: cell.excess,
    "steps": lambda cell: cell.only(lambda run: run.steps),
    "tokens_per_s": lambda cell: cell.tokens_per_s,
    "peak_memory_mb": lambda cell: cell.peak_memory_mb,
    "device": lambda cell: cell.only(lambda run: run.device),
    "dtype": lambda cell: cell.only(lambda run: run.dtype),
    "kernel": lambda cell: cell.only(lambda run: run.kernel),
    "published": lambda cell: cell.published and cell.published.text,
    "published_status": lambda cell: cell.published and cell.published.status,
    "published_source": lambda cell: cell.published and cell.published.source,
    "published_url": lambda cell: cell.published and cell.published.url,
    "difference": lambda cell: cell.difference,
    "data_sha256": lambda cell: cell.data_sha256,
    "config_sha256": lambda cell: " ".join(sorted({run.config_sha256 for run in cell.runs})),
    "git_commit": lambda cell: " ".join(sorted({run.git_commit for run in cell.runs} - {""})),
    "runs": lambda cell: " ".join(visible(run.path.parent.as_posix()) for run in cell.runs),
}


def comma_separated(table: Sequence[Cell]) -> str:
    """`table` as CSV in full precision, a row per cell; accuracies in percent, empty where there is no value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([column(cell) for column in COLUMNS.values()] for cell in table)
    return file.getvalue()


# The columns of the grids, from the widest layout to the narrowest; where none fits, a few lines per cell.
_NAMES = ("task", "attention", "deviation")
_SCORES = ("test %", "95% interval", "seeds", "failures", "published", "diff")
_COSTS = ("train %", "params", "tokens/s", "peak MB")
_LAYOUTS = (((*_NAMES, *_SCORES, *_COSTS),), ((*_NAMES, *_SCORES), (*_NAMES, *_COSTS)))
_STYLES = {"deviation": "dim", "test %": "bold", "params": "dim", "tokens/s": "dim", "peak MB": "dim", "train %": "dim"}


def show(console: Console, table: Sequence[Cell]) -> None:
    """Print `table`, a grid per protocol; without a terminal nothing is wrapped, whatever its width."""
    texts = rows(table)
    for protocol in dict.fromkeys(cell.protocol for cell in table):
        mine = [row for row, cell in zip(texts, table, strict=True) if cell.protocol == protocol]
        console.print(Text(f"protocol {protocol}", style="bold"))
        for layout in _LAYOUTS:
            grids = [_grid(mine, names) for names in layout]
            if all(_fits(console, grid) for grid in grids):
                for grid in grids:
                    console.print(grid)
                    console.print()
                break
        else:
            _show_lines(console, mine)


def _grid(texts: Sequence[Row], names: Sequence[str]) -> Table:
    columns = [HEADERS.index(name) for name in names]
    if all(row.deviation == "-" for row in texts):
        columns.remove(HEADERS.index("deviation"))
    grid = Table(box=None, padding=(0, 1), pad_edge=False, header_style="underline")
    for i in columns:
        grid.add_column(HEADERS[i], justify="left" if HEADERS[i] in _NAMES else "right", no_wrap=True)
    for row in texts:
        grid.add_row(*(Text(row[i], style=_style(row, i)) for i in columns))
    return grid


def _style(row: Row, i: int) -> str:
    failed = HEADERS[i] == "failures" and row.failures != "0"
    return "red" if failed else _STYLES.get(HEADERS[i], "")


def _fits(console: Console, grid: Table) -> bool:
    """Whether `grid` has room on `console`; one that is no terminal gets the room that it needs."""
    needed = console.measure(grid, options=console.options.update(width=10_000)).maximum
    if not console.is_terminal:
        console.width = max(console.width, needed)
    return needed <= console.width


def _show_lines(console: Console, texts: Sequence[Row]) -> None:
    for row in texts:
        name = " ".join((row.task, row.attention)) + ("" if row.deviation == "-" else f" {row.deviation}")
        console.print(Text(name))
        console.print(Text(f"  test {row.test}%, {row.interval}, seeds {row.seeds}, failures {row.failures}"))
        console.print(Text(f"  published {row.published}, difference {row.difference}"))
        costs = f"  train {row.train}%, {row.params} params, {row.speed} tokens/s, {row.memory} MB"
        console.print(Text(costs, style="dim"))
        console.print()


def show_published(console: Console, published: Sequence[Published]) -> None:
    """Print the published values alone: a row per model, a column per task."""
    published = sorted(published, key=lambda value: (protocol_order(value.protocol), preference(value)))
    tasks = [task for task in SOURCES if any(value.task == task for value in published)]
    numbered = list(dict.fromkeys((value.source, value.url) for value in published))
    models: dict[tuple[str, str, str, int], dict[str, str]] = defaultdict(dict)
    for value in published:
        number = numbered.index((value.source, value.url)) + 1
        models[value.protocol, value.model, value.attn, number][value.task] = value.marked
    grid = Table(box=None, padding=(0, 1), pad_edge=False, header_style="underline")
    for name in ("protocol", "model", "attn"):
        grid.add_column(name, no_wrap=True)
    for name in (*tasks, "from"):
        grid.add_column(name, no_wrap=True, justify="right")
    for (protocol, model, attn, number), values in models.items():
        by_task = (values.get(task, "-") for task in tasks)
        grid.add_row(*map(Text, (protocol, model, attn or "-", *by_task, f"[{number}]")))
    say(console, "published test accuracy in %:")
    if _fits(console, grid):
        console.print(grid)
    else:
        for (protocol, model, attn, number), values in models.items():
            accuracies = ", ".join(f"{task} {text}" for task, text in values.items())
            say(console, f"{protocol} {attn or model} [{number}]: {accuracies}")
    for line in marks({value.status for value in published}):
        say(console, line)
    for number, (source, url) in enumerate(numbered, start=1):
        say(console, f"[{number}] {source}, {url}")


def say(console: Console, line: str) -> None:
    """Print a line; it is wrapped on a terminal only."""
    console.print(Text(line), soft_wrap=not console.is_terminal)
