"""`python -m tests.faults seed=0`: every attack in full, up to an hour on two cores; further words go to pytest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> int:
    """Run them; returns pytest's exit code, or 2 where a word is wrong."""
    seed, options = "0", []
    for word in words:
        if word.startswith("seed="):
            seed = word.removeprefix("seed=")
        elif "=" in word and not word.startswith("-"):
            print(f"error: {word.partition('=')[0]} is not a word of make test-faults; there is seed", file=sys.stderr)
            return 2
        else:
            options.append(word)
    if not (seed.isascii() and seed.isdigit()):
        print(f"error: seed={seed} is not a whole number from 0", file=sys.stderr)
        return 2
    # A process of its own, whose first import of tests.faults sees these.
    environ = {**os.environ, "LRA_FAULTS": "full", "LRA_FAULTS_SEED": seed}
    pytest = [sys.executable, "-m", "pytest", "-q", "-n", "logical", "--maxprocesses", "8", "--dist", "worksteal"]
    process = [*pytest, str(Path(__file__).parent), *options]
    sys.stdout.flush()
    return subprocess.call(process, env=environ)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
