"""The laws of runs/report/index.html, on pages of made-up data: what a reader sees, presses, prints and links."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.chromium import Browser
from tests.browser.conftest import PICTURES
from tests.browser.report_sample import ATTENTIONS, TASKS, page, sample

Show = Callable[..., None]
LISTOPS = "mlpen/listops"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests: what a page leaves in it is taken away between them."""
    with Browser(tmp_path_factory.mktemp("chromium") / "profile", PICTURES) as chromium:
        yield chromium


@pytest.fixture
def browser(chromium: Browser) -> Iterator[Browser]:
    chromium.screen("desktop")
    chromium.media("screen")
    chromium.scheme("light")
    yield chromium
    chromium.run("localStorage.clear()")
    assert chromium.complaints() == []


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Show:
    """Open the page of some data at a place in its address."""

    def open_page(data: dict[str, Any], place: str = "") -> None:
        file = tmp_path / "index.html"
        file.write_text(page(data), encoding="utf-8")
        browser.open("about:blank")
        browser.open(file.as_uri() + place)

    return open_page


def press(browser: Browser, selector: str) -> None:
    """A click where the element is, whatever else is in view."""
    browser.run("arguments[0].scrollIntoView({block: 'center'})", browser.find(selector))
    browser.click(selector)


def means(browser: Browser, task: int = 0) -> list[str]:
    """The means in a column of the matrix, from top to bottom."""
    column = 2 + 2 * task
    cells = f"#matrix tbody tr:not(.variant) td:nth-child({column})"
    script = (
        "return [...document.querySelectorAll(arguments[0])].map(n => n.querySelector('.mean')?.firstChild.data ?? '–')"
    )
    found: list[str] = browser.run(script, cells)
    return found


def names(browser: Browser) -> list[str]:
    return browser.texts("#matrix tbody tr:not(.variant) th")


def column_of(browser: Browser, name: str) -> list[str]:
    heads = [text.rstrip(" ▾▴") for text in browser.texts("#list thead th")]
    found: list[str] = browser.run(
        "return [...document.querySelectorAll('#list tbody tr')].map(row => row.cells[arguments[0]].innerText)",
        heads.index(name),
    )
    return found


def number(text: str) -> float:
    return float(text.split(" [")[0].strip("?*†").replace("−", "-").replace(",", ""))


def address(browser: Browser) -> str:
    return str(browser.run("return decodeURIComponent(location.hash)"))


def panel_tables(browser: Browser) -> dict[str, list[list[str]]]:
    """The rows of each table in the open panel, by the heading above it."""
    script = """return Object.fromEntries([...document.querySelectorAll('#panel section')]
      .filter(part => part.querySelector('table'))
      .map(part => [part.querySelector('h3').innerText,
                    [...part.querySelectorAll('tr')].map(row => [...row.cells].map(cell => cell.innerText))]))"""
    found: dict[str, list[list[str]]] = browser.run(script)
    return found


def failed_cells() -> dict[str, Any]:
    """A sample whose second attention has no accuracy on ListOps."""
    data = sample(6, 2, 2)
    cell = next(cell for cell in data["cells"] if cell["attention"] == 1 and cell["column"] == 0)
    cell.update(accuracy=None, interval=None, finished=0, difference=None, failures={"diverged": 2})
    return data


def test_a_column_sorts_by_a_click_and_turns_over_by_the_next(browser: Browser, show: Show) -> None:
    show(failed_cells())
    head = f"[data-focus='sort {LISTOPS}:accuracy']"
    orders = []
    for direction in ("descending", "ascending"):
        press(browser, head)
        assert browser.find("#matrix th[aria-sort]").get_attribute("aria-sort") == direction
        found = means(browser)
        # What has no accuracy stands last, whichever way the others are sorted.
        assert found[-1] == "–"
        orders.append([float(text) for text in found[:-1]])
    assert orders[0] == sorted(orders[0], reverse=True)
    assert orders[1] == sorted(orders[0])


def test_a_column_sorts_by_the_keyboard_and_keeps_the_focus(browser: Browser, show: Show) -> None:
    show(sample(6, 2, 2))
    head = browser.find("[data-focus='sort mlpen/text:difference']")
    head.send_keys(Keys.ENTER)
    found = [number(text) for text in browser.texts("#matrix tbody td:nth-child(5) .difference")]
    assert found == sorted(found, reverse=True)
    assert browser.run("return document.activeElement.dataset.focus") == "sort mlpen/text:difference"
    browser.find("[data-focus='sort name']").send_keys(Keys.ENTER)
    assert names(browser) == sorted(ATTENTIONS[:6])


def test_the_list_sorts_by_every_column(browser: Browser, show: Show) -> None:
    show(failed_cells(), "#view=list")
    count = len(column_of(browser, "task"))
    for name in ("test %", "published", "diff", "seeds", "tokens/s", "params"):
        press(browser, f"[data-focus='by {name}']")
        texts = column_of(browser, name)
        values = [number(text) for text in texts if text != "–"]
        assert values == sorted(values, reverse=True), name
        assert len(texts) == count
        assert texts[len(values) :] == ["–"] * (count - len(values))
    for name in ("attention", "task", "deviation", "device"):
        press(browser, f"[data-focus='by {name}']")
        texts = [text for text in column_of(browser, name) if text]
        assert texts == sorted(texts), name


def test_filters_leave_what_they_name_and_stand_in_the_address(browser: Browser, show: Show) -> None:
    show(sample())
    browser.find("#search").send_keys("mra2_s text")
    browser.wait(lambda: names(browser) == ["mra2_s"], what="one attention")
    assert browser.texts("#matrix .tasks th")[1:] == ["text"]
    assert browser.find("#shown").text == "1 of 93 cells shown"
    assert address(browser) == "#q=mra2_s+text"
    press(browser, "#clear")
    assert browser.find("#shown").text == "93 cells"

    press(browser, "[data-key='attn'] summary")
    for name in ("softmax", "mra2"):
        browser.click(f"[data-key='attn'] input[value='{name}']")
    assert names(browser) == ["softmax", "mra2"]
    press(browser, "[data-key='task'] summary")
    browser.click("[data-key='task'] input[value='image']")
    assert browser.texts("#matrix .tasks th")[1:] == ["image"]
    assert address(browser) == "#task=image&attn=softmax&attn=mra2"
    assert not browser.find("[data-key='attn'] .choices").is_displayed()


def test_only_published_only_reproductions_only_failures(browser: Browser, show: Show) -> None:
    data = sample()
    show(data, "#view=list")
    press(browser, "input[name='published']")
    assert "–" not in column_of(browser, "published")
    assert len(column_of(browser, "task")) == sum(cell["published"] is not None for cell in data["cells"])
    press(browser, "input[name='published']")
    press(browser, "input[name='plain']")
    assert set(column_of(browser, "deviation")) == {""}
    press(browser, "input[name='plain']")
    press(browser, "[data-key='status'] summary")
    browser.click("[data-key='status'] input[value='diverged']")
    assert len(column_of(browser, "task")) == sum(cell["failures"]["diverged"] > 0 for cell in data["cells"])


def test_an_address_brings_the_view_back(browser: Browser, show: Show) -> None:
    show(
        sample(), f"#sort=-{quote(LISTOPS, safe='')}:accuracy&protocol=mlpen&attn=mra&attn=mra2&attn=performer&hide=mra"
    )
    found = [float(text) for text in means(browser)]
    assert len(found) == 3
    assert found == sorted(found, reverse=True)
    assert browser.find("input[name='attn'][value='mra2']").is_selected()
    assert browser.find(".legend [data-attention='mra']").get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize(
    "place", ["#%", "#sort=-", "#cell=nothing&by=x&view=y&device=z", "#attn=%E0%A4%A", "#accuracy"]
)
def test_a_wrong_address_is_a_view_all_the_same(browser: Browser, show: Show, place: str) -> None:
    show(sample(3, 1, 1), place)
    assert browser.find("#facts").text.startswith("3 runs")
    assert browser.find("#matrix").is_displayed()


def test_a_cell_opens_its_runs_and_what_differs_in_their_configurations(browser: Browser, show: Show) -> None:
    data = sample()
    show(data)
    value = browser.find(f"[data-cell='{LISTOPS}/mra2']")
    value.send_keys(Keys.ENTER)
    tables = panel_tables(browser)
    assert browser.find("#panel-title").text == "mra2 on listops"
    assert [row[0] for row in tables["Runs"][1:]] == ["0", "1"]
    assert tables["Runs"][1][-1] == "mlpen/listops/mra2/seed0"
    assert tables["What differs between its runs"] == [
        ["key", "seed 0", "seed 1"],
        ["seed", "0", "1"],
    ]
    assert tables["What differs from softmax on this task"][1:] == [
        ["attn", "mra2", "softmax"],
        ["attn.block_size", "32", "null"],
    ]
    assert tables["Declared for this attention and task"][1:] == [["attn.first_blocks", "1"]]
    assert len(browser.find_all("#panel svg.chart")) == 2
    assert address(browser) == f"#cell={LISTOPS}/mra2"


def test_the_panel_closes_by_escape_and_by_the_way_back(browser: Browser, show: Show) -> None:
    show(sample(3, 1, 2), f"#cell={LISTOPS}/bigbird")
    assert browser.find("#panel").is_displayed()
    browser.find("#panel").send_keys(Keys.ESCAPE)
    browser.wait(lambda: address(browser) == "", what="an address without the cell")
    assert not browser.find("#panel").is_displayed()
    press(browser, f"[data-cell='{LISTOPS}/softmax']")
    assert browser.find("#panel-title").text == "softmax on listops"
    browser.driver.back()
    browser.wait(lambda: not browser.find("#panel").is_displayed(), what="the way back")
    browser.driver.forward()
    browser.wait(lambda: browser.find("#panel").is_displayed(), what="the way forward")


def test_the_plain_recipe_stands_first_and_its_variants_open(browser: Browser, show: Show) -> None:
    show(sample())
    assert browser.texts("#matrix .more") == ["+1 variant", "+2 variants"]
    assert not browser.find_all("#matrix .variant")
    more = browser.find_all("#matrix .more")[1]
    more.send_keys(Keys.ENTER)
    deviations = browser.texts("#matrix .variant th")
    assert deviations == ["attn.blocks_per_row=16", "train.steps=10000, train.lr=0.0003"]
    assert browser.run("return document.activeElement.getAttribute('aria-expanded')") == "true"


def test_where_every_cell_deviates_the_deviation_is_said_once(browser: Browser, show: Show) -> None:
    data = sample(3, 2, 1)
    for cell in data["cells"]:
        cell["deviation"] = "train.steps=100"
    show(data)
    assert browser.find("#matrix caption").text == "Every cell deviates from its recipe: train.steps=100"
    assert not browser.find_all("#matrix .more, #matrix .value .deviation")
    assert "No reproduction: 6 cells" in browser.find("#published-body").text


def test_speeds_of_one_device_stand_in_a_plot(browser: Browser, show: Show) -> None:
    data = sample()
    show(data)
    browser.run("drawAll()")
    on = {device: sum(cell["device"] == device and cell["accuracy"] is not None for cell in data["cells"])
          for device in ("NVIDIA A100", "cpu, 16 cores")}  # fmt: skip
    assert len(browser.find_all("#speed [data-mark]")) == on["NVIDIA A100"]
    browser.run("set({device: 'cpu, 16 cores'})")
    browser.run("drawAll()")
    assert len(browser.find_all("#speed [data-mark]")) == on["cpu, 16 cores"]
    assert "device=cpu" in address(browser)
    assert browser.find("#devices select").get_attribute("value") == "cpu, 16 cores"


def test_marks_are_walked_by_the_arrows_and_say_their_values(browser: Browser, show: Show) -> None:
    show(sample(6, 1, 1))
    browser.run("drawAll()")
    assert len(browser.find_all("#speed [data-mark][tabindex='0']")) == 1
    browser.run("document.querySelector('#speed [data-mark][tabindex=\"0\"]').focus()")
    assert browser.find("#tip").text.startswith("softmax on listops")
    browser.driver.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    tip = browser.find("#tip").text
    assert tip.startswith("adamra on listops")
    assert "tokens/s" in tip
    browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert browser.find("#panel-title").text == "adamra on listops"


def test_a_name_in_the_legend_hides_its_lines(browser: Browser, show: Show) -> None:
    show(sample(4, 1, 2))
    browser.run("drawAll()")
    lines = "#curves [data-series='bigbird']"
    assert browser.find_all(lines)
    press(browser, "#curves .legend [data-attention='bigbird']")
    browser.run("drawAll()")
    assert not browser.find_all(lines)
    assert browser.find_all("#curves [data-series='softmax']")
    assert address(browser) == "#hide=bigbird"


def test_plots_tell_what_they_show_and_not_by_colour_alone(browser: Browser, show: Show) -> None:
    show(sample())
    browser.run("drawAll()")
    charts = browser.find_all("svg.chart")
    assert charts
    for picture in charts:
        assert picture.get_attribute("aria-label")
        assert picture.get_attribute("role") in ("img", "group")
    assert browser.run(
        "return [...document.querySelectorAll('svg.chart')].every(n => n.querySelector('desc').textContent)"
    )
    looks = browser.run(
        """return [...document.querySelectorAll('#curves .legend .swatch')].map(n =>
             n.getAttribute('style') + n.querySelector('.line').getAttribute('stroke-dasharray'))"""
    )
    assert len(set(looks)) == len(looks) == len(ATTENTIONS)


def test_a_divergence_is_a_cross(browser: Browser, show: Show) -> None:
    data = sample(2, 1, 2)
    data["runs"][1]["status"] = "diverged"
    show(data)
    browser.run("drawAll()")
    assert len(browser.find_all("#curves .cross")) == 4


def test_colours_follow_the_system_until_the_reader_chooses(browser: Browser, show: Show) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    browser.scheme("dark")
    show(sample(3, 1, 1))
    dark = browser.run(paper)
    browser.scheme("light")
    light = browser.run(paper)
    assert dark != light == "rgb(255, 255, 255)"
    assert browser.find("#theme").text == "Dark"
    press(browser, "#theme")
    assert browser.run(paper) == dark
    browser.driver.refresh()
    assert browser.run(paper) == dark
    assert browser.find("#theme").text == "Light"


def test_every_colour_of_a_line_is_seen_on_either_ground(browser: Browser, show: Show) -> None:
    show(sample())
    contrast = """const light = (text) => { const parts = text.match(/[\\d.]+/g).slice(0, 3).map((part) => {
        const share = part / 255; return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]; };
      const ground = light(getComputedStyle(document.body).backgroundColor);
      const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const lines = [...document.querySelectorAll('#curves .legend .line')];
      return lines.map((line) => ratio(light(getComputedStyle(line).stroke), ground))"""
    for scheme in ("light", "dark"):
        browser.scheme(scheme)
        found = browser.run(contrast)
        assert len(found) == len(ATTENTIONS)
        # Okabe and Ito's lightest colours have 2.2 on white; in the dark all are well above.
        assert min(found) > (2 if scheme == "light" else 4)


def test_a_browser_that_keeps_nothing_breaks_nothing(browser: Browser, show: Show) -> None:
    refuse = """const no = () => { throw new DOMException('no', 'SecurityError'); };
      Object.defineProperty(window, 'localStorage', { get: no });
      history.replaceState = history.pushState = no;"""
    kept = browser.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": refuse})
    show(sample(3, 1, 2))
    browser.driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", kept)
    press(browser, "#theme")
    assert browser.find("html").get_attribute("data-theme") == "dark"
    browser.find("#search").send_keys("bigbird")
    browser.wait(lambda: names(browser) == ["bigbird"], what="the filter")
    browser.driver.refresh()


@pytest.mark.parametrize("view", ["matrix", "list"])
def test_nothing_is_wider_than_a_narrow_window(browser: Browser, show: Show, view: str) -> None:
    for width in (320, 360, 768):
        metrics = {"width": width, "height": 780, "deviceScaleFactor": 1, "mobile": True}
        browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        show(sample(), f"#view={view}")
        browser.run("drawAll()")
        assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
        browser.run(f"set({{cell: '{LISTOPS}/mra2'}})")
        assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
        assert browser.run("return document.querySelector('#panel').scrollWidth") <= width


def test_the_first_column_and_the_head_stay_in_sight(browser: Browser, show: Show) -> None:
    show(sample())
    browser.screen("phone")
    browser.run("const frame = document.querySelector('#matrix'); frame.scrollTo(400, 300)")
    sight = """const at = (selector) => document.querySelector(selector).getBoundingClientRect();
      const frame = at('#matrix');
      return [at('#matrix tbody tr:nth-child(6) th').left - frame.left, at('#matrix thead').top - frame.top]"""
    left, top = browser.run(sight)
    assert abs(left) <= 1
    assert abs(top) <= 2


def test_on_paper_everything_is_open_and_nothing_is_to_press(browser: Browser, show: Show) -> None:
    browser.scheme("dark")
    show(sample())
    browser.media("print")
    browser.run("openForPrint()")
    assert browser.run("return getComputedStyle(document.documentElement).colorScheme") == "light"
    assert len(browser.texts("#matrix .variant")) == 3
    assert browser.find("#list").is_displayed()
    assert not any(node.is_displayed() for node in browser.find_all("#theme, #filters, #views, nav, .more"))
    assert browser.find("#notes details").get_attribute("open") is not None
    assert not browser.run("return pending.size")
    browser.media("screen")
    assert browser.pdf("report").read_bytes().startswith(b"%PDF")
    # After the print the view is as it was.
    assert browser.wait(lambda: not browser.find_all("#matrix .variant"), what="the view")


HOSTILE = "<img src=x onerror=document.title='broken'></script><script>document.title='broken'</script>'\"&{{js}}"


def test_hostile_text_is_text(browser: Browser, show: Show) -> None:
    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key + ("" if key.isidentifier() else HOSTILE): poisoned(other) for key, other in value.items()}
        if isinstance(value, list):
            return [poisoned(other) for other in value]
        return value + HOSTILE if isinstance(value, str) else value

    data = sample(4, 2, 2)
    words = {"columns", "notes", "sources", "problems", "common", "crossover", "attentions", "generated", "filters"}
    data = {key: poisoned(value) if key in words else value for key, value in data.items()}
    for cell in data["cells"]:
        cell["deviation"], cell["excess"], cell["device"], cell["notes"] = HOSTILE, HOSTILE, HOSTILE, [HOSTILE]
        url = "javascript:document.title='broken'"
        texts = dict.fromkeys(("text", "mark", "status", "source", "note"), HOSTILE)
        cell["published"] = {**texts, "value": 1.0, "url": url}
        cell["declared"] = {HOSTILE: HOSTILE, "__proto__": HOSTILE, "constructor": 1}
    for run in data["runs"]:
        run.update(
            path=HOSTILE, device=HOSTILE, dtype=HOSTILE, kernel=HOSTILE, config={"a" + str(run["seed"]): HOSTILE}
        )
    show(data)
    browser.run("drawAll()")
    browser.run("openForPrint()")
    browser.run("set({cell: DATA.cells[1].id}); drawAll()")
    assert browser.find("#panel").is_displayed()
    browser.run("set({view: 'list', cell: ''})")
    assert browser.driver.title == "Long Range Arena: our runs beside the published numbers"
    assert not browser.find_all("img, #main script, a[href^='javascript']")
    assert HOSTILE in browser.find("#notes-body").text


EMPTY: dict[str, Any] = {
    "cells": [],
    "runs": [],
    "columns": [],
    "attentions": [],
    "common": {},
    "notes": [],
    "sources": [],
}


def test_without_runs_the_page_names_the_first_command(browser: Browser, show: Show) -> None:
    show({**sample(1, 1, 1), **EMPTY, "problems": [], "crossover": None})
    assert "make lra task=listops attn=mra2" in browser.find("#matrix").text
    assert "make bench" in browser.find("#crossover-body").text
    assert browser.find("#notes-body").text == "Nothing to note."


def test_what_the_data_leaves_out_is_left_out(browser: Browser, show: Show) -> None:
    show({"schema": 1, "cells": []})
    assert browser.find("#facts").text == "0 runs"


def test_only_failures_are_shown_as_such(browser: Browser, show: Show) -> None:
    data = sample(1, 1, 1)
    for run in data["runs"]:
        run.update(status="diverged", accuracy=None, curves={})
    for cell in data["cells"]:
        cell.update(accuracy=None, interval=None, finished=0, difference=None, published=None, tokens_per_s=None,
                    failures={"diverged": 1})  # fmt: skip
    show(data)
    assert means(browser) == ["–"]
    assert browser.texts("#matrix .failed") == ["✕ 1 diverged"]
    for part in ("speed", "curves", "published"):
        assert browser.find(f"#{part}-body .empty").text
    browser.click(f"[data-cell='{LISTOPS}/softmax']")
    assert "no finished run" in browser.find("#panel").text


def test_one_single_run_is_a_report(browser: Browser, show: Show) -> None:
    data = sample(1, 1, 1)
    data["runs"][0]["curves"] = {"val": {"steps": [100], "accuracy": [30.0], "loss": [None]}}
    show(data)
    browser.run("drawAll()")
    assert browser.find("#facts").text.startswith("1 run: 1 finished")
    assert browser.find_all("#curves .dot")
    assert len(browser.find_all("#speed [data-mark]")) == 1
    assert "No loss to draw." in browser.find("#curves-body").text


def test_data_that_cannot_be_read_is_said(browser: Browser, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text(page(sample(1, 1, 1)).replace('{"schema"', '{"schema'), encoding="utf-8")
    browser.open(file)
    assert browser.find("#facts").text.startswith("The data of this page cannot be read")


def test_without_scripts_the_table_is_there(browser: Browser, show: Show) -> None:
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    show(sample(2, 1, 1))
    lines = browser.texts("noscript tr")
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert lines[1].startswith("mlpen listops softmax")
    assert len(lines) == 3


def test_the_same_task_with_other_data_has_a_column_of_its_own(browser: Browser, show: Show) -> None:
    data = sample(2, 2, 1)
    data["columns"][1] = {**data["columns"][0], "data": "0123456789ab"}
    show(data)
    assert browser.texts("#matrix .tasks th")[1:] == ["listops data dba848f5", "listops data 01234567"]
    ids = browser.run("return DATA.cells.map(cell => cell.id)")
    assert len(set(ids)) == len(ids)


def test_problems_and_superseded_runs_are_counted_and_named(browser: Browser, show: Show) -> None:
    data = sample(2, 1, 2)
    data["cells"][0]["superseded"] = [1]
    show(data, f"#cell={LISTOPS}/softmax")
    facts = browser.find("#facts").text
    assert "1 superseded" in facts
    assert "1 problem" in facts
    assert "not whole JSON" in browser.find("#notes-body").text
    assert "Superseded by a newer run of the same seed" in panel_tables(browser)


def test_five_hundred_runs_are_drawn_at_once_and_fit_three_megabytes(browser: Browser, show: Show) -> None:
    data = sample(seeds=5, rounds=46)
    assert len(data["runs"]) == 500
    assert len(page(data).encode()) < 3_000_000
    start = time.perf_counter()
    show(data)
    assert len(names(browser)) == len(ATTENTIONS)
    seconds = time.perf_counter() - start
    # What is far below the window is not drawn yet.
    assert browser.run("return pending.size") > len(TASKS)
    for size in ("desktop", "phone"):
        browser.screen(size)
        browser.run("drawAll()")
        browser.screenshot(f"report-{size}", whole=True)
    print(json.dumps({"seconds to the table of 500 runs": round(seconds, 2)}))
