"""Tests run side by side: one thread for each process, and the same examples every time."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from pathlib import Path

import pytest
from hypothesis import settings

from csrc.build import BuildError
from csrc.zoo import zoo_library

# Read by the mathematics libraries when they are imported, here and in the processes that tests start.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# Threads that wait for each other sleep soon, as in a run: other tests have their cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Compile the kernels before any test: a command that a test starts then has nothing to announce."""
    if hasattr(session.config, "workerinput"):
        return
    spec = importlib.util.find_spec("torch")
    assert spec
    assert spec.origin
    try:
        zoo_library(Path(spec.origin).parent, importlib.metadata.version("torch"))
    except BuildError as error:
        # Tests of the kernels fail with this line, the others run on the references.
        print(f"kernels: {error}")
