"""A real browser without a screen, for what only a browser can show."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WAIT_S = 30.0


def skip_without_browser() -> None:
    """Skips where there is no Chromium, no driver of it, or no Selenium."""
    for name in ("chromium", "chromedriver"):
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed: apt-get install chromium chromium-driver")
    if importlib.util.find_spec("selenium") is None:
        pytest.skip("selenium is not installed: pip install '.[dev]'")


@contextmanager
def browser() -> Iterator[Any]:
    """A Selenium driver of a headless Chromium; at the end its console must have said nothing bad."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1400,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    driver.set_script_timeout(WAIT_S)
    try:
        yield driver
    finally:
        driver.quit()


def wait_for(driver: Any, condition: str) -> Any:
    """The value of a JavaScript expression once it is true. Raises selenium's TimeoutException."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, WAIT_S).until(lambda d: d.execute_script(f"return {condition}"), condition)


def errors(driver: Any) -> list[str]:
    """What the console of the page says is wrong."""
    return [line["message"] for line in driver.get_log("browser") if line["level"] == "SEVERE"]


class Page:
    """What tests do with a page, in fewer words."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str, *values: Any) -> Any:
        """The value of a JavaScript expression."""
        return self.driver.execute_script(f"return {script}", *values)

    def wait(self, script: str) -> Any:
        """The value of an expression once it is true."""
        return wait_for(self.driver, script)

    def find(self, name: str) -> Any:
        """The element with an id."""
        return self.driver.find_element("id", name)

    def actions(self) -> Any:
        """Movements of the pointer and keys, to be performed."""
        from selenium.webdriver.common.action_chains import ActionChains

        return ActionChains(self.driver, duration=50)

    def keys(self, *keys: str) -> None:
        """Press keys, one after the other."""
        for key in keys:
            self.actions().send_keys(key).perform()

    def click(self, element: Any, places: list[tuple[int, int]]) -> None:
        """Click at places (x, y) in pixels from the middle of an element."""
        for x, y in places:
            self.actions().move_to_element_with_offset(element, x, y).click().perform()

    def shot(self, name: str) -> None:
        """A picture of the page, where the environment variable WSISEG_SCREENSHOTS names a folder."""
        if folder := os.environ.get("WSISEG_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))
