"""`python -m tests.gpu`: the tests that need a GPU. Exit code 2 and one line where torch finds none."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


def main(words: Sequence[str]) -> int:
    """Run them, with pytest's own `words`; returns the exit code."""
    import torch

    if not torch.cuda.is_available():
        print(f"tests.gpu: torch {torch.__version__} finds no GPU", file=sys.stderr)
        return 2
    import pytest

    # What torch.compile warns of depends on the GPU.
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "filterwarnings=default"]
    return int(pytest.main([*options, str(Path(__file__).parent), *words]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
