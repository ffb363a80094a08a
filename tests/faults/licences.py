"""The licences of all that the locks name: `make licences` writes docs/licences.md, test_supply.py compares it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from tests.runs import ROOT

PAGE = ROOT / "docs" / "licences.md"
LOCKS = {
    "requirements.lock": "make setup",
    "requirements-torch.lock": "make setup",
    "requirements-peers.lock": "make peers",
    "requirements-dashboard.lock": "make dashboard view=trackio, make test-browser",
    "requirements-audit.lock": "make audit",
}
HEAD = """# Licences

What each package that the locks name says its licence is, in its own metadata: `make licences` writes this page, a test
compares it with what is installed and refuses a licence that is not one of these. Names are SPDX's where the package
gives them or leaves no doubt; `BSD` and `PSF` stand where its metadata say no more than that.

- Permissive, for any package: {permissive}.
- By name: {named}. MPL-2.0 asks for the source of those files of theirs that are changed and passed on; we change none,
  and pass none on.

On Linux, torch from PyPI brings packages for CUDA under NVIDIA's own terms, and triton (MIT). No lock names them, this
page does not either.

| package | version | licence | installed by |
|---|---|---|---|
"""
PERMISSIVE = frozenset(
    {
        "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "ISC", "MIT",
        "MIT-CMU", "PSF", "PSF-2.0", "Zlib",
    }
)  # fmt: skip
# Only these packages may be under these.
NAMED = {"MPL-2.0": frozenset({"certifi", "hypothesis", "orjson", "pathspec", "tqdm"})}
# What packages without an expression of SPDX's write, in their field or in their classifier.
SPELLED = {
    "apache license, version 2.0": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd license": "BSD",
    "bsd": "BSD",
    "isc license": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "psfl": "PSF",
    "python software foundation license": "PSF",
}
PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)
ROW = re.compile(r"^\| ([^ |]+) \| ([^ |]+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def locked(lock: str) -> dict[str, str]:
    """The versions that a lock pins, by the names of its packages."""
    return {name.lower().replace("_", "-"): version for name, version in PIN.findall((ROOT / lock).read_text())}


def declared(about: metadata.PackageMetadata) -> str:
    """The licence that a package's metadata give: an expression of SPDX's where there is one."""
    if "License-Expression" in about:
        return about["License-Expression"]
    field = about["License"].strip() if "License" in about else ""
    classifiers = [
        line.rpartition(" :: ")[2] for line in about.get_all("Classifier") or () if line.startswith("License")
    ]
    # Some have the whole text of the licence in the field.
    first = field.partition("\n")[0].strip()
    if first.lower() in SPELLED or (field not in ("", "UNKNOWN") and first == field):
        return SPELLED.get(first.lower(), first)
    return " OR ".join(SPELLED.get(name.lower(), name) for name in classifiers) or "not given"


def refused(package: str, licence: str) -> list[str]:
    """The parts of a licence's expression that are not allowed for the package."""
    # What is granted WITH an exception is granted.
    terms = re.sub(r" WITH [\w.-]+", "", licence)
    parts = [part.strip(" ()") for part in re.split(r" AND | OR ", terms)]
    return [part for part in parts if part not in PERMISSIVE and package not in NAMED.get(part, ())]


def committed() -> dict[str, tuple[str, str]]:
    """Version and licence of each package, as the page has them."""
    rows = ROW.findall(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else []
    return {name: (version, licence) for name, version, licence, _ in rows if name != "package"}


def found(name: str, version: str) -> str | None:
    """The licence of an installed package; None where this version is not installed."""
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    # torch's builds have a local version: 2.13.0+cpu.
    return declared(distribution.metadata) if distribution.version.partition("+")[0] == version else None


def page() -> str:
    """The page: of what is installed from its metadata, of the rest as the page has it now.

    ValueError names what is neither.
    """
    known = committed()
    rows: dict[str, tuple[str, str, list[str]]] = {}
    missing = []
    for lock, command in LOCKS.items():
        for name, version in locked(lock).items():
            licence = found(name, version)
            if licence is None and known.get(name, ("",))[0] == version:
                licence = known[name][1]
            if licence is None:
                missing.append(f"{name}=={version}")
                continue
            commands = rows.setdefault(name, (version, licence, []))[2]
            if command not in commands:
                commands.append(command)
    if missing:
        raise ValueError(f"not installed: {', '.join(missing)}; make licences installs them")
    named = "; ".join(f"{licence} for {_listed(sorted(names))}" for licence, names in NAMED.items())
    lines = (
        f"| {name} | {version} | {licence} | {', '.join(commands)} |\n"
        for name, (version, licence, commands) in sorted(rows.items())
    )
    return HEAD.format(permissive=_listed(sorted(PERMISSIVE)), named=named) + "".join(lines)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def main() -> int:
    try:
        text = page()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    PAGE.write_text(text, encoding="utf-8")
    print(f"written: {Path('docs') / PAGE.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
