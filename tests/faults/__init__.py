"""What goes wrong at night, on purpose: `make test` in a short form, `make test-faults` in full (docs/reliability.md).

`amount(short, full)` is how many attacks a test makes, `SEED` what draws them, and the fixture `tally` counts what came
out of them; the counts of all tests are printed at the end.
"""

from __future__ import annotations

import os
import random

FULL = os.environ.get("LRA_FAULTS") == "full"
SEED = int(os.environ.get("LRA_FAULTS_SEED", "0"))


def amount(short: int, full: int) -> int:
    """How many attacks to make."""
    return full if FULL else short


def draws(*names: object) -> random.Random:
    """Random numbers of the seed and of `names`: the same in every process and in any order of the tests."""
    return random.Random(":".join(map(str, (SEED, *names))))
