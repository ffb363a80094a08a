"""Tests run side by side: one thread for each process, and the same examples every time."""

from __future__ import annotations

import os

from hypothesis import settings

# Read by the mathematics libraries when they are imported, here and in the processes that tests start.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")
