"""The load test as a person starts it: the page that the stack publishes, in a real browser, against the served models."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from tests.browser import begin, chromium, needs_browser, pick_users, shoot, start, table_row
from tests.compose.stack import Stack, ask


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[WebDriver]:
    with chromium(tmp_path / "profile") as opened:
        yield opened


@needs_browser
def test_a_run_started_from_the_form_fills_the_tables(stack: Stack, browser: WebDriver) -> None:
    wait = begin(browser, stack.url("LOCUST_PORT"))
    assert "falcon-tiny" in browser.page_source
    assert "minilm" in browser.page_source
    pick_users(browser, {"InferenceUser", "StreamingUser", "EmbeddingsUser"})
    start(browser)
    for name in ("falcon-tiny generate", "falcon-tiny stream", "minilm embed"):
        row = wait.until(partial(table_row, name=name))
        assert int(row[2]) > 0, row
        assert int(row[3]) == 0, row
    shoot(browser, "compose-locust")
    assert ask(stack.url("LOCUST_PORT", "/stop"), {}, None).json()["success"]
