"""Locust's page in a real browser: what a person clicks, fills in and reads there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import Select, WebDriverWait

from tests.services import ROOT

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium: apt-get install chromium chromium-driver"
)
SCREENSHOTS = ROOT / "build" / "screenshots"


@contextmanager
def chromium(profile: Path) -> Iterator[WebDriver]:
    """A browser without a window, for as long as the block lasts; `profile` is a folder that it may fill."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
                 "disable-component-update", "disable-sync", "disable-dev-shm-usage", "window-size=1500,1300",
                 f"user-data-dir={profile}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


def shoot(browser: WebDriver, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    browser.save_screenshot(str(SCREENSHOTS / f"{name}.png"))


def text(browser: WebDriver) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def shows(what: str, browser: WebDriver) -> bool:
    return what in text(browser)


def table_row(browser: WebDriver, name: str) -> list[str]:
    """The cells of the first row of the page that has a cell of that text; empty if there is none.

    Read in one go: React replaces rows at any time.
    """
    rows: list[list[str]] = browser.execute_script(
        "return [...document.querySelectorAll('#root tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    return next((cells for cells in rows if name in cells), [])


def open_tab(browser: WebDriver, title: str) -> None:
    tabs = {tab.text.lower(): tab for tab in browser.find_elements(By.CSS_SELECTOR, "[role=tab]")}
    assert title.lower() in tabs, f"required a tab {title!r}, found {list(tabs)}"
    tabs[title.lower()].click()


def pick_users(browser: WebDriver, wanted: set[str]) -> None:
    """In the class picker, where every kind of user is picked at first, leave the wanted ones."""
    for row in browser.find_elements(By.CSS_SELECTOR, "#root table tbody tr"):
        name = next((user for user in USERS if user in row.text), None)
        box = row.find_element(By.CSS_SELECTOR, "input[type=checkbox]")
        if name and box.is_selected() != (name in wanted):
            box.click()


USERS = ("EmbeddedInferenceUser", "InferenceUser", "StreamingUser", "EmbeddingsUser", "ColdStartUser")


def start(browser: WebDriver) -> None:
    browser.find_element(By.XPATH, "//button[@type='submit']").click()


def begin(browser: WebDriver, url: str) -> WebDriverWait[WebDriver]:
    """Open the start form with our fields unfolded."""
    browser.get(url)
    wait = WebDriverWait(browser, 60)
    wait.until(lambda b: "Custom parameters" in text(b))
    for summary in browser.find_elements(By.CSS_SELECTOR, ".MuiAccordionSummary-root"):
        if summary.text == "Custom parameters":
            summary.click()
    wait.until(lambda b: b.find_element(By.NAME, "promptWords").is_displayed())
    return wait


def fill(browser: WebDriver, name: str, value: str) -> None:
    field = browser.find_element(By.NAME, name)
    field.send_keys(Keys.CONTROL, "a")
    field.send_keys(value)


def choose(browser: WebDriver, name: str, value: str) -> None:
    """One of what `offers` says."""
    Select(browser.find_element(By.NAME, name)).select_by_value(value)


def offers(browser: WebDriver, name: str) -> list[str]:
    """What a field of the start form can be chosen from."""
    return [
        option.get_attribute("value") or ""
        for option in browser.find_elements(By.CSS_SELECTOR, f"select[name={name}] option")
    ]


def framed_row(browser: WebDriver, name: str) -> list[str]:
    """As `table_row`, of the tables in the frame below Locust's own."""
    browser.switch_to.frame("weightless")
    try:
        rows: list[list[str]] = browser.execute_script(
            "return [...document.querySelectorAll('tr')].map(r => [...r.cells].map(c => c.innerText))"
        )
        return next((cells for cells in rows if name in cells), [])
    finally:
        browser.switch_to.default_content()


def darken(browser: WebDriver) -> None:
    """Switch Locust's page to its dark theme."""
    buttons = browser.find_elements(By.CSS_SELECTOR, "header button")
    next(button for button in buttons if button.is_displayed() and not button.text).click()


def framed_theme(browser: WebDriver) -> list[str]:
    """The classes of our page in the frame, and the colour behind its charts."""
    browser.switch_to.frame("weightless")
    try:
        found: list[str] = browser.execute_script(
            "return [document.documentElement.className, document.querySelector('.js-plotly-plot')._fullLayout.paper_bgcolor]"
        )
        return found
    finally:
        browser.switch_to.default_content()


def plots(browser: WebDriver) -> list[str]:
    """The headings of the charts that are drawn (their SVG has marks) in the frame below the table."""
    browser.switch_to.frame("weightless")
    try:
        drawn: list[str] = browser.execute_script(
            "return [...document.querySelectorAll('.js-plotly-plot')]"
            ".filter(p => p.querySelectorAll('.main-svg .point, .main-svg .scatterlayer path').length)"
            ".map(p => p.parentElement.querySelector('h2').textContent)"
        )
        return drawn
    finally:
        browser.switch_to.default_content()
