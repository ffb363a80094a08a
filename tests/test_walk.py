"""docs/adding-a-variant.md, followed to the letter in a copy of the repository."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .runs import ROOT, environment

PAGE = (ROOT / "docs" / "adding-a-variant.md").read_text()
BLOCKS = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
NEW = {path: text for _, path, text in BLOCKS if path and path != "attention_zoo/__init__.py"}


def lines_of(path: str) -> list[str]:
    return next(text for _, name, text in BLOCKS if name == path).splitlines(keepends=True)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with everything that the page adds."""
    copy = tmp_path_factory.mktemp("walk")
    for name in ("lra", "attention_zoo", "conf", "docs", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, copy)
    # What is compiled from here is compiled once.
    (copy / "csrc").symlink_to(ROOT / "csrc", target_is_directory=True)
    for path, text in NEW.items():
        assert not (copy / path).exists()
        (copy / path).write_text(text)
    imported, entry = lines_of("attention_zoo/__init__.py")
    registry = copy / "attention_zoo" / "__init__.py"
    before, opening, after = registry.read_text().partition("ZOO: dict[str, type[Attention]] = {\n")
    assert opening
    registry.write_text(f"{before}{imported}{opening}{entry}{after}")
    return copy


def python(folder: Path, *words: str) -> str:
    """Run python -m <words> there and return what it says."""
    here = {**environment(), "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=here, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_adds_two_files_and_two_lines_and_an_oracle() -> None:
    assert sorted(NEW) == [
        "attention_zoo/linear_attention.py", "conf/attn/linear_attention.yaml", "tests/oracles/linear_attention.py"
    ]  # fmt: skip
    assert len(lines_of("attention_zoo/__init__.py")) == 2


def test_the_new_variant_keeps_the_laws_and_equals_its_oracle(walked: Path) -> None:
    files = ["tests/test_laws.py", "tests/test_oracles.py"]
    said = python(walked, "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", "linear_attention")
    passed = re.search(r"(\d+) passed, \d+ deselected", said)
    assert passed is not None, said
    assert int(passed[1]) > 80


def test_the_commands_of_the_page_do_what_it_says(walked: Path) -> None:
    commands = next(text for kind, _, text in BLOCKS if kind == "sh").splitlines()
    assert [shlex.split(line)[:2] for line in commands] == [["make", "test"], ["make", "variants"], ["make", "lra"]]
    modules = {"variants": "lra.variants", "lra": "lra.train"}
    words = [[modules[target], *rest] for _, target, *rest in map(shlex.split, commands[1:])]
    assert "written: README.md" in python(walked, *words[0])
    row = next(line for line in (walked / "README.md").read_text().splitlines() if "`linear_attention`" in line)
    assert "https://arxiv.org/abs/2006.16236" in row
    assert "| none | +0 |" in row
    said = python(walked, *words[1], "tracker=jsonl", f"data_dir={walked / 'data'}", f"run_dir={walked / 'run'}")
    assert "model  linear_attention()" in said
    assert "test   accuracy" in said


def test_the_page_is_plain_code_in_the_style_of_the_house(walked: Path) -> None:
    files = [path for path in NEW if path.endswith(".py")]
    python(walked, "ruff", "check", *files)
    assert "already formatted" in python(walked, "ruff", "format", "--check", *files)
