"""What a tracker shows of a run beside its curves: its configuration, and the values that stand for the whole of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The summary keys of a run, and where result.json has them.
SUMMARY = {
    "test/accuracy": ("test", "accuracy"),
    "val/best_accuracy": ("val", "accuracy"),
    "speed/tokens_per_s": ("tokens_per_s",),
    "memory/peak_mb": ("peak_memory_mb",),
    "model/params": ("params",),
    "status": ("status",),
}
FAILED = ("diverged", "out_of_memory")


def summary(result: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of SUMMARY that a result has, and whether the run failed."""
    values = {}
    for name, keys in SUMMARY.items():
        value: Any = result
        for key in keys:
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is not None:
            values[name] = value
    return values | {"run/failed": int(result["status"] in FAILED)}


def view_config(config: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration: task, attn and protocol by name, their parameters beside them, and what it stands on.

    `cell`, where the data are known, is equal for runs that may be averaged: those that differ in their seed alone.
    """
    beside = {f"{key}_parameters": config[key] for key in ("attn", "task") if key in config}
    shown = {**config, **beside, **about}
    if "data_sha256" in about:
        recipe = "/".join((about["protocol"], about["task"], about["attn"]))
        words = ",".join(f"{key}={value}" for key, value in about.get("deviations", {}).items())
        shown["cell"] = " ".join([recipe, *([words] if words else []), about["data_sha256"][:8]])
    return shown
