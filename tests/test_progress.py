"""What a person sees of a long evaluation: a share on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lra import progress
from lra.progress import SILENCE, Display


def test_a_long_evaluation_says_now_and_then_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = io.StringIO()
    with Display(10, 0, Console(file=shown, force_terminal=False)) as display:
        for done in range(0, 6_000, 1_000):
            display.scored("test", done, 6_000)
            now[0] += SILENCE / 2
    assert shown.getvalue() == "test  2,000 of 6,000 examples\ntest  4,000 of 6,000 examples\n"


def test_a_short_evaluation_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress.time, "monotonic", lambda: 0.0)
    shown = io.StringIO()
    with Display(10, 0, Console(file=shown, force_terminal=False)) as display:
        display.scored("val", 100, 200)
    assert shown.getvalue() == ""


def test_a_terminal_shows_the_share_beside_the_bar_and_then_the_training_again() -> None:
    display = Display(10, 0, Console(file=io.StringIO(), force_terminal=True))
    assert display.bar is not None
    with display:
        display.scored("val", 50, 200)
        assert display.bar.tasks[0].description == "val 25%"
        display.step(3)
        assert (display.bar.tasks[0].description, display.bar.tasks[0].completed) == ("train", 3)
