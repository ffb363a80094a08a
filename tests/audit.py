"""`make audit`: the known vulnerabilities of what the locks name, by pip-audit, which asks a service on the internet.

Exit codes: 0 none is known, 1 some are, 3 of some packages nothing could be learned.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lra.command import command
from lra.words import choose
from tests.faults.licences import LOCKS, locked

SERVICES = ("pypi", "osv")
KEYS = {"service": ("pypi", f"whom to ask: {', '.join(SERVICES)}")}
UNKNOWN = 3


def asked(service: str) -> dict[str, Any]:
    """pip-audit's report on all locks; OSError with its last words where it has none."""
    with TemporaryDirectory() as folder:
        out = Path(folder) / "report.json"
        pins = sorted({f"{name}=={version}\n" for lock in LOCKS for name, version in locked(lock).items()})
        (Path(folder) / "pins").write_text("".join(pins))
        words = [f"--requirement={folder}/pins", "--no-deps", "--disable-pip", "--progress-spinner=off", "--timeout=15"]
        words += ["--format=json", f"--vulnerability-service={service}", f"--output={out}"]
        done = subprocess.run([sys.executable, "-m", "pip_audit", *words], capture_output=True, text=True, check=False)
        if not out.exists():
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise OSError(f"nothing is known: pip-audit had no answer of {service}: {said[-1]}")
        report: dict[str, Any] = json.loads(out.read_text())
        return report


def verdict(report: dict[str, Any]) -> tuple[list[str], int]:
    """What to print of a report, and the exit code."""
    packages: list[dict[str, Any]] = report["dependencies"]
    # pip-audit itself calls these free of known vulnerabilities.
    unknown = [package for package in packages if "skip_reason" in package]
    lines, count = [], 0
    for package in packages:
        for vulnerability in package.get("vulns", ()):
            count += 1
            fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
            lines.append(f"{package['name']}=={package['version']}: {vulnerability['id']}, mended in {fixed}")
    lines.append(f"{len(packages)} packages, {count} known vulnerabilities")
    if unknown:
        lines.append(f"of {len(unknown)} nothing is known: {unknown[0]['skip_reason']}")
    return lines, UNKNOWN if unknown else int(bool(count))


def run(options: dict[str, str]) -> int:
    try:
        report = asked(choose("service", options["service"], SERVICES))
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return UNKNOWN
    lines, code = verdict(report)
    print("\n".join(lines))
    return code


def main(words: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    return command("tests.audit", "Known vulnerabilities of what the locks name.", KEYS, run, words)


if __name__ == "__main__":
    sys.exit(main())
