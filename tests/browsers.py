"""A real browser without a screen, for what only a browser can show."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
