"""What W&B's offline mode left in its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def wandb_records(path: Path) -> Iterator[Any]:
    """The protobuf records of a .wandb file: LevelDB's log format, blocks of 32 KiB behind a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2 as messages

    parse: Any = messages.Record  # type: ignore[attr-defined]  # made at import, without type stubs
    data, at, parts = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield parse.FromString(parts)
            parts = b""


def values(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


class Offline:
    """What an offline run wrote."""

    def __init__(self, path: Path) -> None:
        records = list(wandb_records(path))
        self.run = next(record.run for record in records if record.HasField("run"))
        self.config = values(self.run.config.update)
        self.history = [values(record.history.item) for record in records if record.HasField("history")]
        self.summary: dict[str, Any] = {}
        for record in records:
            self.summary |= values(record.summary.update)
        self.metrics = {
            record.metric.name or record.metric.glob_name: record.metric
            for record in records
            if record.HasField("metric")
        }
        self.stats = [record.stats for record in records if record.HasField("stats")]
        self.exit_codes = [record.exit.exit_code for record in records if record.HasField("exit")]
