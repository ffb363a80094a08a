"""What the project is made of: every file by its hash, every licence known, nothing secret committed."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests import audit
from tests.faults import licences
from tests.faults.licences import LOCKS, PAGE, committed, found, locked, page, refused
from tests.runs import ROOT

HASHED = [lock for lock in LOCKS if lock != "requirements-torch.lock"]
REQUIREMENT = re.compile(r"[a-z0-9][a-z0-9.-]*==[^\s;]+( ; [^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+")
# Keys of services, private keys, credentials in addresses, paths of a person's or a builder's home.
SECRETS = {
    "a key": r"AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|github_pat_\w{22}|hf_[A-Za-z]{34}|sk-[\w-]{32}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "a password in an address": r"[a-z]{3,}://[\w.-]+:[\w.%-]{3,}@(?!127\.0\.0\.1)",
    "a value of a secret": r"(?i)(api_?key|password|secret|token)['\"]?\s*[=:]\s*['\"]?(?=[\w+/-]*\d)[\w+/-]{20,}",
    "a path of a machine": r"/(home|Users)/(?!user\b|you\b|me\b)[a-z][\w-]*/|/(root|work)/|/opt/(wheels|pypi)",
}
EXAMPLES = {
    "a key": "AKIA" + "A1" * 8,
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a password in an address": "https://user:" + "pass-word@host/x",
    "a value of a secret": 'api_key = "' + "0123456789abcdef" * 2 + '"',
    "a path of a machine": "/home" + "/anna/data",
}


def requirements(lock: str) -> Iterator[str]:
    """The requirements of a lock, each with its hashes."""
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]
    yield from re.split(r"\n(?=\S)", "\n".join(lines))


@pytest.mark.parametrize("lock", HASHED)
def test_a_lock_has_the_hashes_of_everything_that_it_names(lock: str, tally: Counter[str]) -> None:
    for requirement in requirements(lock):
        assert REQUIREMENT.fullmatch(requirement), requirement[:80]
        tally["supply: packages locked by hash"] += 1
        tally["supply: hashes"] += requirement.count("--hash")


def test_torch_alone_has_no_hash() -> None:
    assert [*locked("requirements-torch.lock")] == ["torch"]
    assert not any("torch" in locked(lock) for lock in HASHED)


def test_what_a_lock_adds_changes_nothing_that_the_first_one_pins() -> None:
    base = locked("requirements.lock") | locked("requirements-torch.lock")
    added = [locked(lock) for lock in HASHED if lock != "requirements.lock"]
    for lock in added:
        assert lock.keys().isdisjoint(base)
        assert all(lock[name] == other[name] for other in added for name in lock.keys() & other.keys())


def test_every_direct_dependency_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[<>=]", name)[0].lower().replace("_", "-") for name in wanted}
    assert names <= {name for lock in LOCKS for name in locked(lock)}


def test_the_page_of_licences_is_what_the_installed_packages_say(tally: Counter[str]) -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "make licences writes it again"
    names = {name: version for lock in LOCKS for name, version in locked(lock).items()}
    assert committed().keys() == names.keys()
    for name in locked("requirements.lock"):
        assert found(name, names[name]) == committed()[name][1]
    tally["supply: licences"] += len(names)


def test_every_licence_is_allowed() -> None:
    assert {name: refused(name, licence) for name, (_, licence) in committed().items() if refused(name, licence)} == {}


@pytest.mark.parametrize(
    ("package", "licence", "parts"),
    [
        ("one", "MIT OR (Apache-2.0 WITH LLVM-exception AND BSD-2-Clause)", []),
        ("certifi", "MPL-2.0", []),
        ("one", "MPL-2.0", ["MPL-2.0"]),
        ("one", "MIT AND GPL-3.0-only", ["GPL-3.0-only"]),
        ("one", "not given", ["not given"]),
    ],
)
def test_a_licence_that_is_not_allowed_is_named(package: str, licence: str, parts: list[str]) -> None:
    assert refused(package, licence) == parts


def test_a_package_that_is_not_known_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(licences, "locked", lambda lock: {"no-such-package": "1"})
    with pytest.raises(ValueError, match="not installed: no-such-package==1, .*; make licences"):
        page()


def test_an_audit_names_what_is_known_and_what_could_not_be_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good: dict[str, Any] = {"name": "good", "version": "1", "vulns": []}
    bad = {"name": "bad", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
    silent = {"name": "silent", "skip_reason": "not found"}
    for packages, code, line in (
        ([good], 0, "1 packages, 0 known vulnerabilities"),
        ([good, bad], 1, "bad==2: CVE-1, mended in 3"),
        ([good, bad, silent], 3, "of 1 nothing is known: not found"),
    ):
        monkeypatch.setattr(audit, "asked", lambda service, packages=packages: {"dependencies": packages})
        assert audit.main([]) == code
        assert line in capsys.readouterr().out.splitlines()


def test_an_audit_whose_service_cannot_be_reached_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "Traceback ...\nConnectionError: no such host\n")
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: failed)
    assert audit.main(["service=osv"]) == 3
    assert capsys.readouterr().err == (
        "error: nothing is known: pip-audit had no answer of osv: ConnectionError: no such host\n"
    )


@pytest.mark.parametrize("kind", SECRETS)
def test_nothing_committed_looks_like_a_secret_or_a_path_of_a_machine(kind: str, tally: Counter[str]) -> None:
    pattern = re.compile(SECRETS[kind])
    assert pattern.search(EXAMPLES[kind])
    hits = []
    for name in committed_files():
        text = (ROOT / name).read_bytes().decode("utf-8", "ignore")
        hits += [f"{name}: {match.group()[:60]}" for match in pattern.finditer(text)]
        tally["supply: committed files searched"] += 1
    assert hits == []


def committed_files() -> list[str]:
    """The files that git has or would take; outside a checkout all of the project's own."""
    done = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return [name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]
    folders = ("lra", "attention_zoo", "csrc", "conf", "tests", "benchmarks", "docs")
    files = [file for folder in folders for file in (ROOT / folder).rglob("*") if "__pycache__" not in file.parts]
    return [str(file.relative_to(ROOT)) for file in files if file.is_file()]
