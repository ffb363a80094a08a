"""The measured numbers beside the published ones: beside_*.csv, for each configuration a row of each origin."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rows import write_rows
from benchmarks.studies.found import Found, Line, plain, threads
from benchmarks.studies.ledger import text
from benchmarks.studies.published import published

PUBLISHED = "published"
NATS = (1, 3, 5, 7)
# The shares of exact attention's time within which errors are compared.
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
# Where a row comes from: "published" or a machine's folder, and under what it was measured.
ORIGIN = ("origin", "inputs", "inputs_sha256", "dtype", "softmax", "device", "torch", "note")
Row = Mapping[str, Any]


class Table(NamedTuple):
    """A file: the study that it needs, its columns before those of ORIGIN, and what makes its rows."""

    study: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[Found]], Iterator[Row]]


def of_paper(line: Mapping[str, str], note: str = "") -> Row:
    """The origin of a number that the authors of MRA published."""
    return {
        "origin": PUBLISHED,
        "inputs": "others, not published",
        "dtype": line["dtype"],
        "softmax": line["softmax"],
        "device": f"GPU {line['gpu']}",
        "torch": "",
        "note": note,
    }


def of_machine(machine: Found, line: Line, note: str = "") -> Row:
    """The origin of a measured number."""
    return {
        "origin": plain(machine.folder.name),
        "inputs": plain(line.get("inputs", "")),
        "inputs_sha256": plain(line.get("inputs_sha256", "")),
        "dtype": line.get("dtype", ""),
        "softmax": "unfused and fused",
        "device": ", ".join(part for part in (plain(line["device"]), threads(line)) if part),
        "torch": plain(line["torch"]),
        "note": plain(note),
    }


def layers(machines: Sequence[Found]) -> Iterator[Row]:
    """Each published configuration, and the same of every machine and input that has it.

    Times and memory are ratios to exact attention. time_layer: a step with the projections to that of unfused softmax
    with them, as published; time: both without projections; time_fused: to torch's fused softmax, without them.
    """
    rows = published("mra_approximation")
    dense = {row["n"]: row for row in rows if row["attn"] == "eager"}
    for row in rows:
        n, value = row.whole("n"), row.whole("value") if row["value"] else None
        named = {"n": n, "method": row["method"], "attn": row["attn"], "parameter": row["keyword"], "value": value}
        flaw = f"memory {row['memory_flaw']}" if row["memory_flaw"] else ""
        time, memory = (row.number(key) / dense[row["n"]].number(key) for key in ("ms", "mb"))
        yield {**named, "time_layer": time, "memory": memory, "error": row.number("error"), **of_paper(row, flaw)}
        for machine in machines:
            found = [line for line in machine.tables["approximation"] if line.whole("n") == n]
            for line in found:
                own = line["attn"], line["parameter"], line.perhaps("value")
                if own == (row["attn"], row["keyword"], value):
                    yield {**named, **_ratios(line, found), **of_machine(machine, line, _failure(line))}


def _ratios(line: Line, found: Sequence[Line]) -> Row:
    """A row of approximation.csv beside the exact attention and the projections of the same inputs."""
    keys = ("inputs", "inputs_sha256", "dtype", "batch", "heads", "head_dim")
    same = {other["attn"]: other for other in found if all(other[key] == line[key] for key in keys)}
    step, eager, around = (_number(row, "step_ms") for row in (line, same.get("eager"), same.get("projections")))
    peak, most = (_number(row, "peak_mb") for row in (line, same.get("eager")))
    with_them = (step + around) / (eager + around) if step and eager and around else None
    return {
        "time_layer": with_them,
        "time": line.perhaps("ratio_eager"),
        "time_fused": line.perhaps("ratio"),
        "memory": peak / most if peak is not None and most else None,
        "error": line.perhaps("error"),
    }


def _number(line: Line | None, key: str) -> float | None:
    return line.perhaps(key) if line else None


def _failure(line: Line) -> str:
    return "" if line["result"] == "ok" else line["result"]


def models(machines: Sequence[Found]) -> Iterator[Row]:
    """The LRA paper's table, and every attention of every machine at the same thousands of tokens.

    Steps a second and peak memory are ratios to a model with unfused softmax and to one with torch's fused softmax.
    """
    rows = published("lra_efficiency")
    dense = {row["thousands"]: row.number("peak_gb") for row in rows if row["attn"] == "eager"}
    for row in rows:
        origin = {**of_paper(row | {"gpu": ""}, row["note"]), "device": row["device"], "inputs": row["task"]}
        yield {
            "model": row["model"],
            "attn": row["attn"],
            "thousands": row.whole("thousands"),
            "rule": row["batch"],
            "speed": row.number("speed"),
            "memory": row.number("peak_gb") / dense[row["thousands"]],
            **origin,
        }
    titles = {row["attn"]: row["model"] for row in rows if row["attn"]}
    lengths = {row.whole("thousands") for row in rows}
    for machine in machines:
        for line in machine.tables["efficiency"]:
            thousands = thousands_of(line.whole("n"))
            if line["of"] == "model" and thousands in lengths:
                speeds = {"speed": line.perhaps("ratio_eager"), "speed_fused": line.perhaps("ratio")}
                yield {
                    "model": titles.get(line["attn"], ""),
                    "attn": line["attn"],
                    "thousands": thousands,
                    "rule": line["rule"],
                    **{key: 1 / ratio if ratio else None for key, ratio in speeds.items()},
                    "memory": line.perhaps("memory_ratio_eager"),
                    "memory_fused": line.perhaps("memory_ratio"),
                    **of_machine(machine, line, _failure(line)),
                }


def thousands_of(n: int) -> int | None:
    """1 for 1,000 and for 1,024 tokens, and so on; None for what is neither."""
    return next((n // unit for unit in (1000, 1024) if n % unit == 0), None)


def smoothed(machines: Sequence[Found]) -> Iterator[Row]:
    """The published curves at four entropies in nats, and those of every machine, input, length and budget."""
    rows = published("mra_entropy")
    for row in rows:
        yield {
            "n": row.whole("n"),
            "against": "eager",
            "budget": row.number("budget"),
            "budget_ms": row.number("budget_ms"),
            "method": row["method"],
            "attn": row["attn"],
            "parameter": row["keyword"],
            "value": row.whole("value") if row["value"] else None,
            "entropy": row.number("entropy"),
            "error": row.perhaps("error"),
            **of_paper(row, "" if row["error"] else "nothing within the budget"),
        }
    methods = {row["attn"]: row["method"] for row in rows}
    for machine in machines:
        curves: dict[tuple[str, ...], list[Line]] = {}
        for line in machine.tables["entropy"]:
            keys = ("inputs", "inputs_sha256", "n", "dtype", "against", "budget", "attn")
            curves.setdefault(tuple(line.get(key, "") for key in keys), []).append(line)
        for lines in curves.values():
            yield from _curve(machine, lines, methods)


def _curve(machine: Found, lines: Sequence[Line], methods: Mapping[str, str]) -> Iterator[Row]:
    import numpy as np

    from benchmarks.studies.smoothing import smooth

    first = lines[0]
    points = [(line.number("entropy"), line.number("error")) for line in lines if line["entropy"] and line["error"]]
    entropy, error = np.array(points).reshape(-1, 2).T
    none = first.get("result", "") or "nothing within the budget"
    for nats, height in zip(NATS, smooth(entropy, error, np.array(NATS, float)), strict=True):
        yield {
            "n": first.whole("n"),
            "against": first["against"],
            "budget": first.number("budget"),
            "budget_ms": first.number("budget_ms"),
            "method": methods.get(first["attn"], ""),
            "attn": first["attn"],
            "parameter": first["parameter"],
            "value": first.whole("value") if first["value"] else None,
            "entropy": nats,
            "error": float(height) if np.isfinite(height) else None,
            **of_machine(machine, first, "" if points else none),
        }


def leads(machines: Sequence[Found]) -> Iterator[Row]:
    """The smallest error that each variant reaches within a share of exact attention's time, where one is so fast.

    Only of variants that aim at softmax. Published times are of layers, with projections, to unfused softmax.
    """
    rows = published("mra_approximation")
    dense = {row["n"]: row.number("ms") for row in rows if row["attn"] == "eager"}
    for n in dense:
        timed = [(row, row.number("ms") / dense[n], row["keyword"]) for row in rows if row["n"] == n and row["keyword"]]
        for found in _nearest(timed):
            yield {"n": int(n), "against": "eager", **found, **of_paper(rows[0], "times of layers, with projections")}
    for machine in machines:
        groups: dict[tuple[str, ...], list[Line]] = {}
        for line in machine.tables["approximation"]:
            if line["aims"] == "True" and line["result"] == "ok" and line["attn"] not in ("softmax", "eager"):
                groups.setdefault(tuple(line[key] for key in ("inputs", "inputs_sha256", "n", "dtype")), []).append(
                    line
                )
        for lines in groups.values():
            for against, key in (("softmax", "ratio"), ("eager", "ratio_eager")):
                timed = [(line, line.number(key), line["parameter"]) for line in lines if line[key]]
                for found in _nearest(timed):
                    yield {"n": lines[0].whole("n"), "against": against, **found, **of_machine(machine, lines[0])}


def _nearest(timed: Sequence[tuple[Line, float, str]]) -> Iterator[Row]:
    for name in dict.fromkeys(line["attn"] for line, _, _ in timed):
        for share in SHARES:
            within = [
                (error, line, ratio, parameter)
                for line, ratio, parameter in timed
                if line["attn"] == name and ratio <= share and (error := line.perhaps("error")) is not None
            ]
            if within:
                error, line, ratio, parameter = min(within, key=lambda found: found[0])
                value = line.whole("value") if line["value"] else None
                yield {
                    "share": share, "attn": name, "parameter": parameter, "value": value, "ratio": ratio, "error": error
                }  # fmt: skip


def crossovers(machines: Sequence[Found]) -> Iterator[Row]:
    """From which length on each attention is ahead: as CAB has it, and of every machine's crossover.csv."""
    for row in published("cab_crossover"):
        for measure in ("time", "memory"):
            yield {
                "of": "core", "method": row["method"], "attn": row["attn"], "measure": measure, "rival": "eager",
                "length": row.number(f"{measure}_length"), "origin": PUBLISHED, "device": f"device {row['device']}",
                "dtype": row["dtype"], "softmax": row["against"],
            }  # fmt: skip
    own = ("of", "attn", "measure", "rival", "against", "rule")
    for machine in machines:
        for line in machine.tables["crossover"]:
            found = {key: line.perhaps(key) for key in ("length", "ahead_from", "behind_at", "longest")}
            yield {**{key: line[key] for key in own}, **found, **of_machine(machine, line)}


TABLES = {
    "beside_leads": Table(
        "approximation", ("n", "against", "share", "attn", "parameter", "value", "ratio", "error"), leads
    ),
    "beside_crossover": Table(
        "crossover",
        ("of", "method", "attn", "measure", "rival", "against", "rule", "length", "ahead_from", "behind_at", "longest"),
        crossovers,
    ),
    "beside_approximation": Table(
        "approximation",
        ("n", "method", "attn", "parameter", "value", "time_layer", "time", "time_fused", "memory", "error"),
        layers,
    ),
    "beside_efficiency": Table(
        "efficiency",
        ("model", "attn", "thousands", "rule", "speed", "speed_fused", "memory", "memory_fused"),
        models,
    ),
    "beside_entropy": Table(
        "entropy",
        ("n", "against", "budget", "budget_ms", "method", "attn", "parameter", "value", "entropy", "error"),
        smoothed,
    ),
}


def write(machines: Sequence[Found], folder: Path) -> bool:
    """Write the file of each study that a machine has; False, with a line, where one cannot be made."""
    whole = True
    for name, table in TABLES.items():
        mine = [machine for machine in machines if machine.tables.get(table.study)]
        if not mine:
            continue
        head = (*table.columns, *ORIGIN)
        try:
            rows = [[text(row.get(key)) for key in head] for row in table.rows(mine)]
        except ValueError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
            whole = False
            continue
        write_rows(str(folder / f"{name}.csv"), head, rows)
    return whole
