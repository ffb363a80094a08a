"""A headless Chromium with an empty profile: what a page shows, what it complains of, whom it asks."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

T = TypeVar("T")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--window-size=1440,900",
    # Nothing reaches another machine, whatever a page asks for.
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)  # fmt: skip
# Width and height in CSS pixels, device pixels in each, and whether fingers use it.
SCREENS = {"desktop": (1440, 900, 1, False), "phone": (390, 844, 2, True)}
HERE = {"localhost", "127.0.0.1", "::1"}


class Browser:
    """One Chromium, closed with its `with` block. A CSS selector names an element; waiting is up to `seconds`.

    messages: what pages wrote to the console, as {"level", "message", ...}; errors have the level SEVERE.
    requests: every address that was asked for, data and blob addresses left out.
    """

    def __init__(self, profile: Path, pictures: Path) -> None:
        """profile: a folder that does not exist yet. pictures: where screenshots go."""
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or ""
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        # The driver is named, so that selenium has no reason to look for one elsewhere.
        os.environ.setdefault("SE_OFFLINE", "true")
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        self.pictures = pictures
        self._messages: list[dict[str, Any]] = []
        self._requests: list[str] = []
        self._media: dict[str, str] = {}

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.driver.quit()

    def open(self, page: Path | str) -> None:
        """Load a file or an address."""
        self.driver.get(page.absolute().as_uri() if isinstance(page, Path) else page)

    def find(self, selector: str) -> WebElement:
        """The first element of a CSS selector, NoSuchElementException where there is none."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def find_all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """What a reader sees of each element."""
        return [element.text for element in self.find_all(selector)]

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def run(self, script: str, *arguments: object) -> Any:
        """The value of a JavaScript function body, which sees `arguments`."""
        return self.driver.execute_script(script, *arguments)

    def wait(self, condition: Callable[[], T], seconds: float = 10, what: str = "") -> T:
        """The first true value of `condition`; TimeoutException with `what` where none comes."""
        # A page may replace an element between finding and reading it.
        wait = WebDriverWait(self.driver, seconds, 0.1, ignored_exceptions=[StaleElementReferenceException])
        return wait.until(lambda driver: condition(), what)

    def screen(self, name: str) -> None:
        """Show pages as one of SCREENS does."""
        width, height, scale, mobile = SCREENS[name]
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def scheme(self, name: str) -> None:
        """Prefer `dark` or `light`, as a system setting does."""
        self._emulate("prefers-color-scheme", name)

    def media(self, name: str) -> None:
        """Lay pages out for `print` or `screen`."""
        self._emulate("", name)

    def screenshot(self, name: str, whole: bool = False) -> Path:
        """Write `<name>.png`: what is in view, or the whole page."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        file = self.pictures / f"{name}.png"
        options = {"format": "png", "captureBeyondViewport": whole}
        if whole:
            size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
            options["clip"] = {**size, "x": 0, "y": 0, "scale": 1}
        picture = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        file.write_bytes(base64.b64decode(picture["data"]))
        return file

    def pdf(self, name: str) -> Path:
        """Print the page to `<name>.pdf`."""
        self.pictures.mkdir(parents=True, exist_ok=True)
        file = self.pictures / f"{name}.pdf"
        file.write_bytes(base64.b64decode(self.driver.print_page()))
        return file

    @property
    def messages(self) -> list[dict[str, Any]]:
        # The driver hands each line over once.
        self._messages += self.driver.get_log("browser")
        return self._messages

    @property
    def requests(self) -> list[str]:
        for line in self.driver.get_log("performance"):
            event = json.loads(line["message"])["message"]
            facts = event["params"]
            if event["method"] == "Network.requestWillBeSent":
                # A new tab loads pages of Chromium's own.
                own = facts.get("documentURL", "").startswith("chrome:")
                self._requests += [] if own else [facts["request"]["url"]]
            elif event["method"] == "Network.webSocketCreated":
                self._requests.append(facts["url"])
        self._requests = [url for url in self._requests if urlsplit(url).scheme not in ("data", "blob")]
        return self._requests

    def complaints(self) -> list[str]:
        """Errors on the console, and requests that went to other machines."""
        errors = [f"console: {line['message']}" for line in self.messages if line["level"] == "SEVERE"]
        return errors + [f"request: {url}" for url in self.requests if not stays(url)]

    def _emulate(self, feature: str, value: str) -> None:
        self._media[feature] = value
        features = [{"name": key, "value": self._media[key]} for key in self._media if key]
        media = {"media": self._media.get("", ""), "features": features}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def stays(url: str) -> bool:
    """Whether an address is on this machine."""
    parts = urlsplit(url)
    return parts.scheme in ("file", "about") or parts.hostname in HERE
