"""The laws of the browser that the other tests look through."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.common.exceptions import TimeoutException

from tests.browser.chromium import Browser, stays

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Browser]:
    """A browser whose complaints are the test's to read."""
    with Browser(tmp_path / "profile", tmp_path / "pictures") as browser:
        yield browser


def page(folder: Path, body: str) -> Path:
    file = folder / "page.html"
    file.write_text(f'<!doctype html><meta charset="utf-8"><title>page</title>{body}')
    return file


def test_a_quiet_page_is_complained_of_by_nobody(browser: Browser, tmp_path: Path) -> None:
    browser.open(page(tmp_path, "<script>console.log('fine'); fetch('data:,x')</script>"))
    browser.wait(lambda: browser.messages, what="the page's line")
    assert "fine" in browser.messages[0]["message"]
    assert browser.requests == [(tmp_path / "page.html").as_uri()]


@pytest.mark.parametrize("script", ["console.error('broken')", "broken()", "Promise.reject(new Error('broken'))"])
def test_an_error_on_the_console_is_a_complaint(watched: Browser, tmp_path: Path, script: str) -> None:
    watched.open(page(tmp_path, f"<script>{script}</script>"))
    watched.wait(watched.complaints, what="the complaint")
    assert "broken" in watched.complaints()[0]


def test_a_request_to_another_machine_is_a_complaint_and_does_not_get_there(watched: Browser, tmp_path: Path) -> None:
    body = '<img src="https://example.com/pixel.png" onerror="document.title = \'refused\'">'
    watched.open(page(tmp_path, body))
    watched.wait(lambda: watched.driver.title == "refused", what="the refusal")
    assert "request: https://example.com/pixel.png" in watched.complaints()


@pytest.mark.parametrize(
    ("url", "here"),
    [("file:///a.html", True), ("http://127.0.0.1:7860/x", True), ("ws://localhost:1/", True),
     ("http://[::1]:80/", True), ("https://localhost.example.com/", False), ("//cdn.example.com/x.js", False)],
)  # fmt: skip
def test_an_address_is_on_this_machine_or_not(url: str, here: bool) -> None:
    assert stays(url) == here


def test_a_page_sees_the_screen_the_scheme_and_the_medium_that_are_asked_for(browser: Browser, tmp_path: Path) -> None:
    style = "<style>@media print { p { display: none } }</style><p>text</p>"
    browser.open(page(tmp_path, f'<meta name="viewport" content="width=device-width">{style}'))

    def matches(query: str) -> bool:
        return browser.run("return matchMedia(arguments[0]).matches", query)

    browser.screen("phone")
    assert browser.run("return innerWidth") == 390
    browser.screen("desktop")
    assert browser.run("return innerWidth") == 1440
    browser.scheme("dark")
    browser.media("print")
    assert matches("(prefers-color-scheme: dark)")
    assert matches("print")
    assert browser.texts("p") == [""]
    browser.scheme("light")
    browser.media("screen")
    assert not matches("(prefers-color-scheme: dark)")
    assert not matches("print")
    assert browser.texts("p") == ["text"]


def test_a_screenshot_shows_the_window_or_the_whole_page(browser: Browser, tmp_path: Path) -> None:
    browser.pictures = tmp_path / "pictures"
    browser.open(page(tmp_path, '<body style="margin: 0"><div style="height: 3000px">tall</div>'))
    browser.screen("desktop")
    heights = []
    for name, whole in (("window", False), ("page", True)):
        picture = browser.screenshot(name, whole=whole).read_bytes()
        assert picture.startswith(b"\x89PNG")
        heights.append(int.from_bytes(picture[20:24], "big"))
    assert heights == [900, 3000]
    assert browser.pdf("page").read_bytes().startswith(b"%PDF")


def test_what_never_comes_is_named_when_the_wait_is_over(browser: Browser, tmp_path: Path) -> None:
    browser.open(page(tmp_path, "<p>text</p>"))
    with pytest.raises(TimeoutException, match="a second paragraph"):
        browser.wait(lambda: len(browser.find_all("p")) == 2, seconds=0.3, what="a second paragraph")


def test_where_there_is_no_chromium_one_line_says_so(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    environment = {**os.environ, "PATH": str(tmp_path / "bin")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.browser"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 77
    assert done.stderr == "tests.browser cannot run here: chromium is not on the PATH\n"
