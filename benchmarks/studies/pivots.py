"""The tables of docs/studies.md from beside_*.csv: a line for each configuration, columns for each origin."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from benchmarks.rows import grid

Row = dict[str, str]
PUBLISHED = "published"
# What tells the columns of one table apart; rows that have the same in these stand in one column.
SAME_LAYER = ("origin", "inputs", "inputs_sha256", "dtype")
SAME_MODEL = ("origin", "rule", "dtype")
SAME_CURVE = (*SAME_LAYER, "n", "against")
SAME_CROSSING = (*SAME_MODEL, "of")
MARK = "Published: fp32, GPU not named, unfused softmax, other inputs."


def layers(rows: Sequence[Row]) -> str:
    """A table for each length: time, memory and error of a configuration, published and on every machine."""
    parts = []
    for n in dict.fromkeys(row["n"] for row in rows):
        here = [row for row in rows if row["n"] == n]
        origins = letters(here, SAME_LAYER)
        head = ["method", "value", "published: layer, time", "memory", "error"]
        for letter in origins.values():
            head += [f"{letter}: layer, time", "attention, time", "to fused", "memory", "error"]
        lines = []
        for key in dict.fromkeys((row["method"], row["attn"], row["value"]) for row in here):
            its = [row for row in here if (row["method"], row["attn"], row["value"]) == key]
            paper = next(row for row in its if row["origin"] == PUBLISHED)
            flaw = "?" if paper["note"] else ""
            line = [key[0], key[2], times(paper["time_layer"]), times(paper["memory"]) + flaw, number(paper["error"])]
            for origin in origins:
                row = _of(its, origin, SAME_LAYER)
                cells = [times(row[key]) for key in ("time_layer", "time", "time_fused", "memory")] if row else [""] * 4
                line += [*cells, number(row["error"]) if row else ""]
            lines.append(line)
        parts.append(f"n = {int(n):,}\n\n{captions(origins, SAME_LAYER, here)}\n{grid(head, lines)}")
    question = '"?": a peak that is known or likely to be that of a larger batch, which had failed.'
    facts = "Times and memory as multiples of unfused softmax's; `to fused` of torch's fused softmax."
    return f"{MARK} {facts} {question}\n\n" + "\n".join(parts)


def models(rows: Sequence[Row]) -> str:
    """Two tables: steps a second and peak memory at 1K to 4K tokens, published and on every machine."""
    origins = letters(rows, SAME_MODEL)
    thousands = sorted({row["thousands"] for row in rows}, key=int)
    names = dict.fromkeys((row["model"], row["attn"]) for row in rows)
    parts = []
    for title, key, fused in (("Steps a second", "speed", "speed_fused"), ("Peak memory", "memory", "memory_fused")):
        head = ["model", *(f"{'published: ' * (not i)}{k}K" for i, k in enumerate(thousands))]
        for letter in origins.values():
            head += [f"{letter}: {k}K" if not i else f"{k}K" for i, k in enumerate(thousands)]
        lines = []
        for model, attn in names:
            its = [row for row in rows if (row["model"], row["attn"]) == (model, attn)]
            line = [f"{cell(model)} {code(attn)}".strip()]
            for k in thousands:
                row = next((row for row in its if row["origin"] == PUBLISHED and row["thousands"] == k), None)
                line.append(times(row[key]) + "?" * bool(row["note"] and key == "speed") if row else "")
            for origin in origins:
                for k in thousands:
                    row = _of([row for row in its if row["thousands"] == k], origin, SAME_MODEL)
                    line.append(_both(row, key, fused) if row else "")
            lines.append(line)
        parts.append(f"{title}:\n\n{grid(head, lines)}")
    facts = (
        "As multiples of a model with unfused softmax; in brackets of one with torch's fused softmax. Published: batch"
        ' 32, 4x4 TPU v3, dtype not named, unfused softmax. "?": probably a misprint, not monotone and equal to another'
        " model's."
    )
    return f"{facts}\n\n{captions(origins, SAME_MODEL, rows)}\n" + "\n".join(parts)


def smoothed(rows: Sequence[Row]) -> str:
    """A table for each length, exact attention and budget: smoothed errors at four entropies."""
    nats = sorted({row["entropy"] for row in rows}, key=float)
    parts = []
    for share in sorted({row["budget"] for row in rows}, key=float, reverse=True):
        here = [row for row in rows if row["budget"] == share]
        origins = letters(here, SAME_CURVE)
        head = ["attention", "published: value", *(f"{x} nats" for x in nats)]
        for letter in origins.values():
            head += [f"{letter}: value", *(f"{x} nats" for x in nats)]
        lines = []
        for attn in dict.fromkeys(row["attn"] for row in here):
            its = [row for row in here if row["attn"] == attn]
            line = [code(attn), *_curve([row for row in its if row["origin"] == PUBLISHED], nats)]
            for origin in origins:
                line += _curve([row for row in its if _key(row, SAME_CURVE) == origin], nats)
            lines.append(line)
        title = f"Within {float(share):g} of the time of exact attention"
        parts.append(f"{title}\n\n{captions(origins, SAME_CURVE, here, 'budget_ms')}\n{grid(head, lines)}")
    return f"{MARK} Published at n = 4,096.\n\n" + "\n".join(parts)


def leads(rows: Sequence[Row]) -> str:
    """A table for each origin, input and length: the smallest error of each attention within shares of the time."""
    parts = []
    for key in dict.fromkeys(_key(row, SAME_CURVE) for row in rows):
        here = [row for row in rows if _key(row, SAME_CURVE) == key]
        shares = sorted({row["share"] for row in here}, key=float)
        cells = {(row["attn"], row["share"]): row for row in here}
        least = {x: min(float(row["error"]) for row in here if row["share"] == x) for x in shares}
        lines = []
        for attn in sorted({row["attn"] for row in here}, key=lambda name: _standing(name, shares, cells)):
            line = [code(attn)]
            for x in shares:
                row = cells.get((attn, x))
                told = f"{number(row['error'])} at {row['value']}" if row else ""
                line.append(f"**{told}**" if row and float(row["error"]) == least[x] else told)
            lines.append(line)
        head = ["attention", *(f"within {share_of(x)}" for x in shares)]
        first = here[0]
        exact = "unfused" if first["against"] == "eager" else "fused"
        what = "Published, others' inputs" if first["origin"] == PUBLISHED else f"Inputs {cell(first['inputs'])}"
        layer = f"; {cell(first['note'])}" if first["note"] else ""
        where = "; ".join(cell(first[key]) for key in ("device", "torch", "dtype") if first[key])
        title = f"{what}, n = {int(first['n']):,}, shares of {exact} softmax's time ({where}{layer})"
        parts.append(f"{title}:\n\n{grid(head, lines)}")
    facts = (
        "The smallest relative error of a budget within the share of time, and that budget; bold: the column's least."
    )
    return f"{facts} Empty: no budget is so fast.\n\n" + "\n".join(parts)


def _standing(attn: str, shares: Sequence[str], cells: dict[tuple[str, str], Row]) -> list[float]:
    """The errors of an attention, at the largest share first, as what tables are sorted by."""
    return [float(cells[attn, x]["error"]) if (attn, x) in cells else float("inf") for x in reversed(shares)]


def share_of(text: str) -> str:
    """1/8 for 0.125."""
    share = float(text)
    return f"1/{1 / share:.0f}" if share < 1 else "1"


def crossovers(rows: Sequence[Row]) -> str:
    """A table for each machine and batch: from which length on each attention is ahead of exact ones."""
    published = {(row["attn"], row["measure"]): row["length"] for row in rows if row["origin"] == PUBLISHED}
    measured = [row for row in rows if row["origin"] != PUBLISHED]
    parts = []
    for key in dict.fromkeys(_key(row, SAME_CROSSING) for row in measured):
        here = [row for row in measured if _key(row, SAME_CROSSING) == key]
        first, alone = here[0], here[0]["of"] == "core"
        cells = {(row["attn"], row["measure"], row["rival"]): crossing(row) for row in here}
        head = ["attention", "time, best exact", "time, unfused", "memory, best exact", "memory, unfused"]
        head += ["CAB: time", "CAB: memory"] if alone else []
        lines = []
        for attn in dict.fromkeys(row["attn"] for row in here):
            line = [cells.get((attn, x, rival), "") for x in ("time", "memory") for rival in ("best", "eager")]
            theirs = [published.get((attn, x)) for x in ("time", "memory")] if alone else []
            lines.append([code(attn), *line, *(f"{float(x):,.0f}" if x else "" for x in theirs)])
        where = "; ".join(cell(first[key]) for key in ("device", "torch", "dtype") if first[key])
        what = "The attention alone, forward and backward" if alone else "A whole training step of the model"
        parts.append(f"{what}, {NAMED['rule'](first['rule'])} ({where}):\n\n{grid(head, lines)}")
    facts = "CAB's lengths: against vanilla attention, dtype and device not named."
    return f"{facts}\n\n" + "\n".join(parts)


def crossing(row: Row) -> str:
    """A crossover as a cell."""
    if not row["ahead_from"]:
        return f"never to {int(row['longest']):,}"
    if not row["behind_at"]:
        return f"always, from {int(row['ahead_from']):,}"
    return f"{float(row['length'] or row['ahead_from']):,.0f}"


def _key(row: Row, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(row[key] for key in keys)


def letters(rows: Iterable[Row], keys: Sequence[str]) -> dict[tuple[str, ...], str]:
    """A letter for each origin but the published one: A, B, ... and, after 26 of them, A1, B1, ..."""
    origins = dict.fromkeys(_key(row, keys) for row in rows if row["origin"] != PUBLISHED)
    return {origin: chr(ord("A") + i % 26) + str(i // 26 or "") for i, origin in enumerate(origins)}


NAMED: dict[str, Callable[[str], str]] = {
    "inputs": lambda value: f"inputs {cell(value)}",
    "n": lambda value: f"n = {int(value):,}",
    "rule": lambda value: f"batch {cell(value)}" if value.isdecimal() else f"batch by {cell(value)}",
    "against": lambda value: f"the time of {'unfused' if value == 'eager' else 'fused'} softmax",
    "budget_ms": lambda value: f"{float(value):.4g} ms",
}


def captions(origins: dict[tuple[str, ...], str], keys: Sequence[str], rows: Sequence[Row], *more: str) -> str:
    """A line for each letter: the device, the versions and what else tells it from others."""
    lines = []
    for origin, letter in origins.items():
        row = next(row for row in rows if _key(row, keys) == origin)
        parts = [cell(row["device"]), f"torch {cell(row['torch'])}", cell(row["dtype"])]
        parts += [NAMED[key](row[key]) for key in (*keys, *more) if key in NAMED]
        lines.append(f"- {letter}: {'; '.join(part for part in parts if part)}\n")
    return "".join(lines)


def _of(rows: Iterable[Row], origin: tuple[str, ...], keys: Sequence[str]) -> Row | None:
    return next((row for row in rows if _key(row, keys) == origin), None)


def _both(row: Row, key: str, fused: str) -> str:
    if not row[key] and not row[fused]:
        return cell(row["note"].partition(":")[0])
    return f"{times(row[key]) or '-'} ({times(row[fused]) or '-'})"


def _curve(rows: Sequence[Row], nats: Sequence[str]) -> list[str]:
    found = {row["entropy"]: row for row in rows}
    value = rows[0]["value"] or ("none" if rows[0]["note"] else "") if rows else ""
    return [value, *(number(found[x]["error"]) if x in found else "" for x in nats)]


def times(text: str) -> str:
    """A ratio as it stands in a cell, "" where there is none."""
    return f"{float(text):.3g}" if text else ""


def number(text: str) -> str:
    """An error as it stands in a cell."""
    return (f"{float(text):.3f}" if float(text) < 10 else f"{float(text):.3g}") if text else ""


def code(text: str) -> str:
    """A name of ours as code, "" where there is none."""
    return f"`{plain}`" if (plain := re.sub(r"[`|<>]|\s+", " ", text).strip()) else ""


def cell(text: str) -> str:
    """A name that somebody else gave, which must not end a cell, a line or a comment of the page."""
    return re.sub(r"([\\`*_|\[\]])", r"\\\1", " ".join(text.split())).replace("<", "&lt;").replace(">", "&gt;")
