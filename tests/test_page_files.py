"""The laws of the report's front end that its text alone can break: nothing from elsewhere, nothing made of markup."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "lra" / "report_page"
SCRIPTS = sorted(FOLDER.glob("*.js"))
FILES = [FOLDER / "page.html", FOLDER / "page.css", *SCRIPTS]
# A name that says which elements are meant, never an address that is asked for.
NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_is_loaded_from_elsewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8").replace(NAMESPACE, "")
    assert re.findall(r"https?://|@import|url\(|\bsrc=|fetch\(|XMLHttpRequest|WebSocket|import\(", text) == []


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_text_never_becomes_markup_or_code(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|DOMParser|srcdoc|javascript:"
    assert re.findall(ways, text) == []


def test_the_page_has_one_place_for_each_part() -> None:
    text = (FOLDER / "page.html").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\{\{(\w+)\}\}", text)) == ["css", "data", "js", "static"]
    assert not [path.name for path in FILES[1:] if "{{" in path.read_text(encoding="utf-8")]


def test_the_page_forbids_everything_but_its_own_script_and_style() -> None:
    text = (FOLDER / "page.html").read_text(encoding="utf-8")
    policy = re.search(r'http-equiv="Content-Security-Policy"\s+content="([^"]*)"', text)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    assert rules == {
        "default-src": "'none'", "script-src": "'unsafe-inline'", "style-src": "'unsafe-inline'",
        "img-src": "data:", "base-uri": "'none'", "form-action": "'none'",
    }  # fmt: skip


def test_no_part_ends_the_element_that_it_is_put_into() -> None:
    ends = [path.name for path in FILES[1:] if re.search(r"</(script|style)|<!--", path.read_text(encoding="utf-8"))]
    assert ends == []


def test_the_scripts_are_joined_in_the_order_of_their_names() -> None:
    assert [path.name.split("-")[0] for path in SCRIPTS] == [str(i + 1) for i in range(len(SCRIPTS))]
