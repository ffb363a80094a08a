"""The HTML report: everything that it shows as one JSON object, put into the front end's template as one file."""

from __future__ import annotations

import html
import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lra.cells import Cell, column_names
from lra.curves import Curve, points, read_curves, windows
from lra.folders import BROKEN, reason
from lra.notes import cell_notes, notes, sources
from lra.outcomes import Run
from lra.published import MARKS, Published
from lra.style import colours_of

SCHEMA = 1
FOLDER = Path(__file__).with_name("report_page")
# What a curve keeps: enough for a picture, little enough for 500 of them in one file.
POINTS = 60
# A value of a configuration that is longer is not worth its place in the file.
LONGEST = 300


def front_end(folder: Path = FOLDER) -> tuple[str, str, str]:
    """Template, style sheet and script of the page; the script's parts are joined in the order of their names."""
    script = "".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.js")))
    template, css = ((folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css"))
    return template, css, script


def build(template: str, css: str, js: str, data: Mapping[str, Any]) -> str:
    """One page without anything from elsewhere. Each of {{css}}, {{js}}, {{data}} stands in `template` once.

    {{static}}, where it stands, becomes the table for readers without scripts. ValueError where a part is missing from
    the template, would end its element early, or a number in `data` is not finite.
    """
    for name, part in (("css", css), ("js", js)):
        if re.search(r"</(?:style|script)|<!--", part, re.IGNORECASE):
            raise ValueError(f"the page's {name} holds </style, </script or <!--, which would end it there")
    parts = {"css": css, "js": js, "data": embedded(data), "static": static(data)}
    for name in ("css", "js", "data"):
        if template.count(f"{{{{{name}}}}}") != 1:
            raise ValueError(f"the page's template must have {{{{{name}}}}} once")
    # In one pass: what one part says of another's place is text.
    return re.sub(r"\{\{(css|js|data|static)\}\}", lambda match: parts[match[1]], template)


def embedded(data: Mapping[str, Any]) -> str:
    """`data` as JSON in ASCII that no text in it can end: inert in a script element, whatever the names in it are."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def static(data: Mapping[str, Any]) -> str:
    """The cells as a plain HTML table."""
    heads = ("protocol", "task", "attention", "deviation", "test %", "95% interval", "seeds", "published", "diff")
    lines = [heads]
    for cell in data["cells"]:
        column, published = data["columns"][cell["column"]], cell["published"]
        low, high, _ = cell["interval"] or ("", "", "")
        lines.append((
            column["protocol"], column["name"], data["attentions"][cell["attention"]]["name"], cell["deviation"],
            _shown(cell["accuracy"]), f"{low:.1f} to {high:.1f}" if cell["interval"] else "", str(cell["finished"]),
            f"{published['text']}{published['mark']}" if published else "", _shown(cell["difference"], "+.1f"),
        ))  # fmt: skip
    rows = (
        "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in line)
        for line, tag in zip(lines, ["th", *["td"] * len(lines)], strict=False)
    )
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>"


def _shown(value: float | None, form: str = ".1f") -> str:
    return "" if value is None else format(value, form)


def contents(
    table: Sequence[Cell],
    problems: Sequence[str] = (),
    filters: str = "",
    crossover: Mapping[str, Any] | None = None,
    commit: str = "",
    generated: float = 0.0,
) -> dict[str, Any]:
    """Everything that the page shows of `table`; `generated` is in seconds since 1970.

    Accuracies are in percent, numbers finite or None. The problems met in reading curves come after `problems`.
    """
    names = column_names(table)
    columns = list(names)
    attentions = list(dict.fromkeys(cell.attn for cell in sorted(table, key=lambda cell: cell.attn != "softmax")))
    colours = colours_of(attentions)
    runs = [run for cell in table for run in (*cell.runs, *cell.superseded)]
    places = {run.path: i for i, run in enumerate(runs)}
    shared = common(runs)
    shown, without_curves = _runs(runs, shared)
    return {
        "schema": SCHEMA,
        "generated": moment(generated),
        "commit": commit,
        "filters": filters,
        "columns": [_column(next(cell for cell in table if cell.column == key), names[key]) for key in columns],
        "attentions": [{"name": attn, "colour": colours[attn][1], "dash": colours[attn][0]} for attn in attentions],
        "cells": [_cell(cell, columns.index(cell.column), attentions.index(cell.attn), places) for cell in table],
        "runs": shown,
        "common": {key: _plain(value) for key, value in shared.items()},
        "crossover": crossover,
        "notes": notes(table),
        "sources": sources(table),
        "problems": [*problems, *without_curves],
    }


def _column(cell: Cell, name: str) -> dict[str, Any]:
    return {
        "protocol": cell.protocol,
        "task": cell.task,
        "name": name,
        "source": cell.source,
        "data": cell.data_sha256[:12],
        "split": cell.split,
        "floors": cell.floors,
    }


def _cell(cell: Cell, column: int, attention: int, places: Mapping[Path, int]) -> dict[str, Any]:
    interval = cell.interval
    return {
        "column": column,
        "attention": attention,
        "deviation": cell.words,
        "accuracy": rounded(cell.accuracy),
        "interval": [rounded(interval[0]), rounded(interval[1]), interval[2]] if interval else None,
        "finished": len(cell.finished),
        "failures": {status: cell.count(status) for status in ("diverged", "out_of_memory", "interrupted")},
        "published": _published(cell.published) if cell.published else None,
        "elsewhere": [_published(value) for value in cell.elsewhere],
        "difference": rounded(cell.difference),
        "excess": cell.excess,
        "params": cell.only(lambda run: run.params),
        "train_accuracy": rounded(cell.train_accuracy),
        "tokens_per_s": rounded(cell.tokens_per_s),
        "peak_memory_mb": rounded(cell.peak_memory_mb),
        "device": cell.only(lambda run: run.device),
        "declared": {key: _plain(value) for key, value in cell.declared.items()},
        "runs": [places[run.path] for run in cell.runs],
        "superseded": [places[run.path] for run in cell.superseded],
        "notes": list(cell_notes(cell)),
    }


def _published(value: Published) -> dict[str, Any]:
    return {
        "text": value.text,
        "value": value.accuracy,
        "mark": MARKS[value.status],
        "status": value.status,
        "source": value.source,
        "url": value.url,
        "note": value.note,
    }


def common(runs: Sequence[Run]) -> dict[str, Any]:
    """The keys and values that are the same in the configuration of every run that recorded one."""
    recorded = [run.config for run in runs if run.config is not None]
    if not recorded:
        return {}
    first, *others = recorded
    return {
        key: value
        for key, value in first.items()
        if all(key in config and _same(config[key], value) for config in others)
    }


def _same(mine: Any, other: Any) -> bool:
    # Numbers by their spelling: true is not 1.
    return mine is other or (type(mine) is type(other) and mine == other)


def _runs(runs: Sequence[Run], shared: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    shown, problems, missing = [], [], []
    for run in runs:
        curves: dict[str, Any] = {}
        try:
            curves = _curves(read_curves(run.path.with_name("metrics.jsonl")))
        except FileNotFoundError:
            missing.append(run.name)
        except BROKEN as error:
            problems.append(f"no curves of {run.name}: {reason(error)}")
        shown.append(_run(run, shared, curves))
    if missing:
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        problems.append(f"no curves, metrics.jsonl is missing ({len(missing)}): {named}")
    return shown, problems


def _run(run: Run, shared: Mapping[str, Any], curves: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "path": run.name,
        "seed": run.seed,
        "status": run.status,
        "accuracy": None if run.accuracy is None else rounded(100 * run.accuracy),
        "n": run.n,
        "steps": run.steps,
        "seconds": rounded(run.seconds),
        "tokens_per_s": rounded(run.tokens_per_s),
        "peak_memory_mb": rounded(run.peak_memory_mb),
        "device": run.device,
        "dtype": run.dtype,
        "kernel": run.kernel,
        "processes": run.processes,
        "git_commit": run.git_commit,
        "data_sha256": run.data_sha256,
        "config_sha256": run.config_sha256,
        "finished_at": moment(run.finished_at),
        "recorded": run.config is not None,
        "config": {key: _plain(value) for key, value in (run.config or {}).items() if key not in shared},
        "predictions": run.predictions,
        "curves": curves,
    }


def _curves(curves: Mapping[str, Curve]) -> dict[str, Any]:
    thin = {"val": points, "train": windows}
    kept = {split: thin[split](curve, POINTS) for split, curve in curves.items() if split in thin}
    return {
        split: {
            "steps": curve.steps,
            "accuracy": [rounded(value) for value in curve.accuracy],
            "loss": [_significant(value) for value in curve.loss],
        }
        for split, curve in kept.items()
    }


def moment(seconds: float) -> str:
    """Seconds since 1970 as `2026-11-23 01:20 UTC`, empty where that is no time."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    except BROKEN:
        return ""


def rounded(value: float | None) -> float | None:
    """Two decimals; None for what is no finite number."""
    return None if value is None or not math.isfinite(value) else round(value, 2)


def _significant(value: float) -> float | None:
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    """A value of a configuration as a browser reads it: no number that JSON lacks, nothing endless."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 2**53:
        return reprlib.repr(value)
    if isinstance(value, (bool, int, float)) or value is None:
        return value
    if isinstance(value, str):
        return value if len(value) <= LONGEST else f"{value[:LONGEST]}..."
    text = json.dumps(value)
    finite = not re.search(r"NaN|Infinity|\d{16}", text)
    return value if len(text) <= LONGEST and finite else f"{text[:LONGEST]}{'...' * (len(text) > LONGEST)}"
