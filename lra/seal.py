"""Seals: the checksum of what a JSON file says, in the file itself, so that a flipped byte never passes for a fact."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Files of a run that its result names with their sha256.
NAMED = ("metrics.jsonl", "predictions.npz")


def digest(record: Mapping[str, Any], seal: str) -> str:
    """Hex sha256 of everything in a record but the value of `seal`, in whatever order and spacing it was written."""
    rest = {key: value for key, value in record.items() if key != seal}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(record: Mapping[str, Any], seal: str = "sha256") -> dict[str, Any]:
    """A record as JSON will give it back, with its digest under the key `seal`."""
    plain = json.loads(json.dumps(dict(record)))
    return {**plain, seal: digest(plain, seal)}


def demand(record: Mapping[str, Any], seal: str = "sha256") -> None:
    """Raise ValueError, in words that follow the name of the file, where a record is not what was sealed."""
    said, found = record.get(seal), digest(record, seal)
    if said != found:
        says = f"it says {said[:12]}" if isinstance(said, str) and said.isprintable() else "it says none"
        raise ValueError(f"is damaged (sha256 {found[:12]}, {says})")


def demand_result(result: Mapping[str, Any]) -> None:
    """The same for what result.json says; one of before has neither `files` nor `sha256` and nothing to be held to."""
    if "files" in result or "sha256" in result:
        demand(result)
        files = result.get("files")
        if not isinstance(files, dict) or not all(isinstance(named, str) for named in files.values()):
            raise ValueError("is damaged (it does not name its files)")


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def faulty(path: Path, sha256: str) -> str:
    """What is wrong with a file that should have this sha256, in words that follow its name; empty where nothing is."""
    # Opening a pipe by its name would wait for good.
    if path.exists() and not path.is_file():
        return "is not a file"
    try:
        return "" if file_sha256(path) == sha256 else "is damaged"
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
