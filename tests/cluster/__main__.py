"""`python -m tests.cluster`: a sweep on a real Slurm of one node, set up in a folder and taken down again.

Exit code 77 and one line where this machine cannot have one. Slurm is installed where it is missing, by root on Debian.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from tests.cluster.scenario import play
from tests.cluster.slurm import PACKAGES, Slurm, missing

CANNOT = 77


def main() -> int:
    """Play the scenario; returns the exit code."""
    signal.signal(signal.SIGTERM, leave)
    why = obstacle()
    if why:
        print(f"tests.cluster: not run: {why}", file=sys.stderr)
        return CANNOT
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lra-cluster-") as name:
        folder = Path(name).resolve()
        slurm = Slurm(folder / "slurm")
        try:
            with slurm:
                play(slurm, folder / "work")
        except AssertionError as error:
            print(f"{slurm.logs()}\n--- FAILED: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("tests.cluster: interrupted; nothing is left of the cluster", file=sys.stderr)
            return 128 + signal.SIGINT
    print(f"passed in {time.monotonic() - began:.0f} s; nothing is left of the cluster")
    return 0


def leave(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + signum)


def obstacle() -> str:
    """Why there can be no Slurm on this machine, empty where there is one now."""
    if sys.platform != "linux":
        return "Slurm runs on Linux"
    lacking = missing()
    if not lacking:
        return ""
    packages = " ".join(PACKAGES)
    if os.getuid() or not Path("/etc/debian_version").exists() or not shutil.which("apt-get"):
        return f"no {lacking[0]} here; root on Debian installs {packages}"
    print(f"installing {packages} ...", flush=True)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update"], ["install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(
            ["apt-get", "--quiet", *words], env=environment, capture_output=True, text=True, check=False
        )
    return f"apt-get installs no {packages}: {(done.stderr.splitlines() or ['?'])[-1]}" if missing() else ""


if __name__ == "__main__":
    sys.exit(main())
