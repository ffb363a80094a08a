"""The commits that the source and its measurements are from."""

from __future__ import annotations

import subprocess
from pathlib import Path

HERE = Path(__file__).parent


def git_commit() -> str:
    """The commit of the source, with `-dirty` where files differ from it; empty outside a checkout."""
    return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def commit_date(commit: str) -> str:
    """The day of a commit, such as `2026-11-22`; empty where this checkout does not have it."""
    return _git("show", "--no-patch", "--format=%cs", "--end-of-options", commit)


def _git(*words: str) -> str:
    try:
        told = subprocess.run(["git", *words], cwd=HERE, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return told.stdout.strip() if told.returncode == 0 else ""
