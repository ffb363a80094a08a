"""A browser for each test; a test whose page complains on its console or asks another machine fails."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.chromium import Browser

PICTURES = Path(__file__).resolve().parents[2] / "build" / "browser"


@pytest.fixture
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """An empty profile; screenshots go to build/browser/."""
    with Browser(tmp_path_factory.mktemp("chromium") / "profile", PICTURES) as browser:
        yield browser
        assert browser.complaints() == []
