"""What the attacks came to: each test counts, and the end of the session prints the sums."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults import SEED
from tests.faults.injection import injectable

PROPERTY = "faults"


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Iterator[Counter[str]]:
    """Counts of a test by what they count: `tally["kills: instants"] += 1`."""
    counts: Counter[str] = Counter()
    yield counts
    record_property(PROPERTY, dict(counts))


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one, for thousands of small files."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as name:
        yield Path(name)


@pytest.fixture(scope="module")
def with_injector() -> Iterator[None]:
    """The processes that tests.forks starts heed an Injection in their environment."""
    with injectable():
        yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    sums: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == PROPERTY and report.when == "teardown":
                    sums.update(value)
    if sums:
        terminalreporter.section(f"faults, seed {SEED}")
        for what in sorted(sums):
            terminalreporter.write_line(f"{sums[what]:9,}  {what}")
