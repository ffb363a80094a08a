"""trackio's page over the folders of runs, used as a reader uses it."""

from __future__ import annotations

import contextlib
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By

from tests.board_runs import write_run
from tests.browser.chromium import Browser
from tests.runs import environment

COMMAND = [sys.executable, "-m", "lra.board"]


class Page:
    """`python -m lra.board` in a folder: the lines before its address, and the address."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *words], cwd=folder, env=environment(), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout
        self.lines: list[str] = []
        for line in self.process.stdout:
            if line.startswith("http://127.0.0.1:"):
                self.address = line.split()[0]
                return
            self.lines.append(line.rstrip())
        raise AssertionError(f"no address: {self.lines}, {self.process.communicate()[1]}")

    def end(self) -> tuple[int, str]:
        """Ctrl-C: the exit code, and all that was said meanwhile."""
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=30)
        return self.process.returncode, out + err


def points(folder: Path, project: str, name: str) -> list[tuple[int, str]]:
    """The steps and values that trackio has of a run."""
    with contextlib.closing(sqlite3.connect(folder / "runs" / "trackio" / f"{project}.db")) as database:
        query = "SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY id"
        return database.execute(query, [name]).fetchall()


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two seeds of two attentions on one task, and a run on another one."""
    for seed in (0, 1):
        for attn in ("mra2", "softmax"):
            write_run(tmp_path / "runs", attn, seed)
    write_run(tmp_path / "runs", "mra2", 0, task="text")
    return tmp_path


@pytest.fixture
def page(runs: Path) -> Iterator[Page]:
    """Before `browser` among a test's arguments: the page must outlive what looks at it."""
    page = Page(runs)
    yield page
    if page.process.poll() is None:
        page.process.kill()
        page.process.communicate()


def group_by(browser: Browser, key: str) -> None:
    """Choose in the page's list."""
    browser.click(".group-by-row input")
    options = browser.wait(lambda: browser.find_all(".group-by-row [role=option]"), what="the list")
    next(option for option in options if option.text.split()[-1] == key).click()


def groups(browser: Browser) -> dict[str, list[str]]:
    """What stands under each heading in the list of runs."""
    return {
        section.find_element(By.CSS_SELECTOR, ".run-group-label").text: sorted(
            run.text for run in section.find_elements(By.CSS_SELECTOR, ".checkbox-list label")
        )
        for section in browser.find_all(".run-group-section")
    }


def curves(browser: Browser, metric: str) -> dict[str, int]:
    """The runs that a chart's legend names, and how many pixels of the chart have the run's colour."""
    count = r"""
        const chart = document.querySelector(`[data-metric="${arguments[0]}"]`);
        const canvas = chart && chart.querySelector('canvas.marks');
        if (!canvas) return {};
        const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
        const found = {};
        for (const item of chart.querySelectorAll('.legend-item')) {
          const colour = getComputedStyle(item.querySelector('.legend-dot')).backgroundColor.match(/\d+/g).map(Number);
          let count = 0;
          for (let i = 0; i < pixels.length; i += 4)
            count += colour.every((part, k) => Math.abs(part - pixels[i + k]) < 8) && pixels[i + 3] > 200;
          found[item.innerText.trim()] = count;
        }
        return found;
    """
    return browser.run(count, metric)


def await_curves(browser: Browser, metric: str, runs: Iterable[str]) -> None:
    """Wait until a chart shows a curve for each of these runs and no other."""

    def drawn() -> bool:
        # A chart is drawn when it comes into view.
        browser.run('document.querySelector(`[data-metric="${arguments[0]}"]`)?.scrollIntoView()', metric)
        found = curves(browser, metric)
        return found.keys() == set(runs) and min(found.values()) > 50

    browser.wait(drawn, seconds=30, what=f"curves of {runs} in {metric}")


def test_runs_are_grouped_by_attention_with_a_curve_for_each(page: Page, browser: Browser) -> None:
    assert len(page.lines) == 1
    assert page.lines[0].startswith("5 runs in runs/trackio (245 new points): mlpen-listops 4, mlpen-text 1")
    browser.open(page.address)
    every = {f"{attn}/seed{seed}" for attn in ("mra2", "softmax") for seed in (0, 1)}
    await_curves(browser, "val/accuracy", every)
    group_by(browser, "attn")
    seeds = {attn: [f"{attn}/seed0", f"{attn}/seed1"] for attn in ("mra2", "softmax")}
    browser.wait(lambda: groups(browser) == seeds, what="two attentions with their seeds")
    browser.screenshot("dashboard")
    for metric in ("val/loss", "train/accuracy", "train/loss"):
        await_curves(browser, metric, every)

    softmax = next(header for header in browser.find_all(".run-group-header") if header.text.split()[:1] == ["softmax"])
    softmax.find_element(By.CSS_SELECTOR, "input").click()
    await_curves(browser, "val/accuracy", seeds["mra2"])
    assert any("/api/get_logs_batch" in url for url in browser.requests)


def test_a_line_that_training_adds_comes_into_the_open_page(page: Page, browser: Browser, runs: Path) -> None:
    browser.open(page.address)
    browser.wait(lambda: len(curves(browser, "val/accuracy")) == 4, seconds=30, what="the four runs")
    write_run(runs / "runs", "linformer", 0, status="")
    browser.wait(lambda: len(curves(browser, "val/accuracy")) == 5, seconds=30, what="the fifth run")
    assert "linformer/seed0" in curves(browser, "val/accuracy")


def test_the_same_runs_again_add_nothing_and_a_port_in_use_is_refused(page: Page, runs: Path) -> None:
    again = Page(runs)
    port = again.address.split(":")[2].partition("/")[0]
    taken = subprocess.run(
        [*COMMAND, f"port={port}"], cwd=runs, env=environment(), capture_output=True, text=True, check=False
    )
    assert again.lines == ["5 runs in runs/trackio (0 new points): mlpen-listops 4, mlpen-text 1"]
    assert again.address != page.address
    assert (taken.returncode, taken.stderr) == (1, f"error: port={port} of 127.0.0.1 is taken; choose another one\n")
    assert again.end() == (0, "")
    assert page.end() == (0, "")
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind(("127.0.0.1", int(port)))


def test_a_run_that_starts_over_leaves_nothing_of_the_old_one(runs: Path) -> None:
    Page(runs).end()
    for seed in (0, 1):
        metrics = runs / "runs" / "mlpen" / "listops" / "mra2" / f"seed{seed}" / "metrics.jsonl"
        lines = metrics.read_text().splitlines(keepends=True)
        metrics.write_text("".join(lines[:5]).replace('"accuracy": 0.', '"accuracy": 0.1'))
        # Known by another id, as with fresh=true, or by the same.
        if seed:
            metrics.with_name("tracker.id").write_text("0123456789abcdef\n")
    page = Page(runs)
    assert "(12 new points)" in page.lines[0]
    assert page.end() == (0, "")
    assert [len(points(runs, "mlpen-listops", f"mra2/seed{seed}")) for seed in (0, 1)] == [6, 6]
    assert len(points(runs, "mlpen-listops", "softmax/seed0")) == 49


def test_a_broken_run_is_named_and_the_others_are_shown(runs: Path) -> None:
    (runs / "runs" / "mlpen" / "text" / "mra2" / "seed0" / "result.json").write_text("{")
    page = Page(runs)
    assert page.lines[0].startswith("left out mlpen/text/mra2/seed0: not whole JSON")
    assert page.lines[1:] == ["4 runs in runs/trackio (196 new points): mlpen-listops 4"]
    assert page.end() == (0, "")


@pytest.mark.parametrize("harm", ["no database", "a folder"])
def test_files_of_trackio_that_cannot_be_used_are_named_in_one_line(runs: Path, harm: str) -> None:
    database = runs / "runs" / "trackio" / "mlpen-listops.db"
    database.parent.mkdir()
    if harm == "a folder":
        database.mkdir()
    else:
        database.write_bytes(b"no database" * 1000)
    done = subprocess.run(COMMAND, cwd=runs, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {database}: ")
    assert done.stderr.count("\n") == 1


def test_without_runs_there_is_nothing_to_serve(tmp_path: Path) -> None:
    done = subprocess.run(COMMAND, cwd=tmp_path, env=environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no runs in runs yet: make lra task=listops attn=mra2\n"
