"""Learning curves as metrics.jsonl has them, and with fewer points."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lra.folders import BROKEN, read_text, reason


class Curve(NamedTuple):
    """One split of one run over its steps; loss in nats, accuracy in percent, NaN where a line has no such number."""

    steps: list[int]
    loss: list[float]
    accuracy: list[float]


def read_curves(path: Path) -> dict[str, Curve]:
    """The curves in a metrics.jsonl by split. A torn last line is left out; any other broken line is a ValueError."""
    try:
        text, _, _ = read_text(path).rpartition("\n")
    except ValueError as error:
        raise ValueError(f"{path} is not text: {reason(error)}") from None
    records = _records(path, text) if text else []
    try:
        splits = {split: [record for record in records if record["split"] == split] for split in _splits(records)}
        return {split: _curve(mine) for split, mine in splits.items()}
    except _NO_CURVE:
        # Again one by one, to name the line.
        for number, record in enumerate(records, start=1):
            try:
                _curve([record for _ in _splits([record])])
            except _NO_CURVE:
                raise _foreign(path, number) from None
        raise


_NO_CURVE = (KeyError, TypeError, AttributeError, *BROKEN)


def _splits(records: Sequence[Any]) -> Iterable[str]:
    return dict.fromkeys(record["split"] for record in records)


def _curve(records: Sequence[Any]) -> Curve:
    steps = [record["step"] for record in records]
    splits = {type(record["split"]) for record in records}
    if not (splits == {str} and set(map(type, steps)) == {int} and min(steps) >= 0 and max(steps) <= 2**53):
        raise ValueError("a step is no whole number, or a split has no name")
    loss = _numbers([record.get("loss") for record in records])
    accuracy = _numbers([record.get("accuracy") for record in records])
    return Curve(steps, loss, _numbers([100 * share for share in accuracy]))


def _numbers(values: list[Any]) -> list[float]:
    if set(map(type, values)) == {float} and all(map(math.isfinite, values)):
        return values
    known = (math.nan if value is None else float(value) for value in values)
    return [value if math.isfinite(value) else math.nan for value in known]


def _records(path: Path, text: str) -> list[Any]:
    """What each line says: all at once, which takes half the time, or line by line to name the one that is broken."""
    try:
        # Objects from line to line, and as many as lines: else a line could open what another one closes.
        if text.startswith("{") and text.endswith("}") and text.count("\n") == text.count("}\n{"):
            records: list[Any] = json.loads(f"[{text.replace(chr(10), ',')}]")
            if len(records) == text.count("\n") + 1:
                return records
    except BROKEN:
        pass
    records = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            records.append(json.loads(line))
        except BROKEN:
            raise _foreign(path, number) from None
    return records


def _foreign(path: Path, number: int) -> ValueError:
    return ValueError(f"{path}, line {number} is not a metrics line")


def windows(curve: Curve, most: int = 100) -> Curve:
    """`curve` as the means of at most `most` windows of consecutive points, each at its last step."""
    size = math.ceil(len(curve.steps) / most)
    cuts = [slice(i, i + size) for i in range(0, len(curve.steps), size or 1)]
    means = ([statistics.fmean(values[cut]) for cut in cuts] for values in (curve.loss, curve.accuracy))
    return Curve([curve.steps[cut][-1] for cut in cuts], *means)


def points(curve: Curve, most: int) -> Curve:
    """At most `most` points of `curve`, evenly apart: the first, the last and the most accurate are among them."""
    count = len(curve.steps)
    if count <= most:
        return curve
    kept = {round(i * (count - 1) / (most - 2)) for i in range(most - 1)}
    kept.add(max(range(count), key=lambda i: (not math.isnan(curve.accuracy[i]), curve.accuracy[i], -i)))
    return Curve(*([values[i] for i in sorted(kept)] for values in curve))  # type: ignore[arg-type]
