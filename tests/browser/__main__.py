"""`python -m tests.browser`: the pages in headless Chromium. Exit code 77 and one line where it cannot run here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CANNOT_RUN = 77
PROGRAMS = ("chromium", "chromedriver")
PACKAGES = ("chromium", "chromium-driver")


def main(words: Sequence[str]) -> int:
    """Run them, with pytest's own `words`; returns the exit code."""
    reason = unavailable()
    if reason:
        print(f"tests.browser cannot run here: {reason}", file=sys.stderr)
        return CANNOT_RUN
    import pytest

    here = Path(__file__).parent
    # The tests above this folder compile kernels when they start; these need none.
    options = ["-q", "-p", "no:cacheprovider", "-o", "addopts=--strict-markers", f"--confcutdir={here}"]
    places = [word for word in words if not word.startswith("-") and Path(word.partition("::")[0]).exists()]
    return int(pytest.main([*options, *([] if places else [str(here)]), *words]))


def unavailable() -> str:
    """Why there is no Chromium to drive, in one line; empty where there is one. Debian's root installs it."""
    absent = missing()
    if not absent:
        return ""
    if not (Path("/etc/debian_version").exists() and shutil.which("apt-get")):
        return f"{absent} is not on the PATH"
    if os.geteuid() != 0:
        return f"{absent} is not on the PATH; as root: apt-get install {' '.join(PACKAGES)}"
    print(f"installing {' and '.join(PACKAGES)} with apt-get (about a minute) ...", flush=True)
    for words in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "-qq", *words],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        # Lists that could not be brought up to date may still name the packages.
        if done.returncode and words[0] == "install":
            said = [line.strip() for line in done.stdout.splitlines() if line.strip()]
            return f"apt-get install {' '.join(PACKAGES)} failed: {said[-1] if said else f'code {done.returncode}'}"
    return f"{missing()} is not on the PATH after the installation" if missing() else ""


def missing() -> str:
    """The first of PROGRAMS that is not on the PATH, or nothing."""
    return next((name for name in PROGRAMS if not shutil.which(name)), "")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
