"""The load test as a person starts it: the page that the stack publishes, in a real browser, against the served models."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from selenium.webdriver.remote.webdriver import WebDriver

from tests.browser import begin, chromium, needs_browser, pick_users, shoot, start, table_row
from tests.compose.stack import Stack, ask
from tests.services import wait_for


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


def test_workers_make_the_load_when_asked_for(stack: Stack) -> None:
    """LOCUST_WORKERS turns the page's process into a master; `--scale` changes how many workers there are."""

    def page(path: str) -> dict[str, Any]:
        found: dict[str, Any] = ask(stack.url("LOCUST_PORT", path), None, None).json()
        return found

    try:
        stack.up("locust", "locust-worker", LOCUST_WORKERS="1")
        stack.up("--scale", "locust-worker=2", "locust", "locust-worker", LOCUST_WORKERS="1")
        wait_for(lambda: page("/worker-count")["worker_count"] == 2, "two workers")
        form = urlencode({"user_count": 2, "spawn_rate": 2, "user_classes": "InferenceUser"}).encode()
        with urlopen(stack.url("LOCUST_PORT", "/swarm"), form, timeout=60) as answer:
            assert json.load(answer)["success"]
        wait_for(lambda: page("/stats/requests")["stats"][-1]["num_requests"] > 0, "requests of the workers")
        assert {worker["user_count"] for worker in page("/stats/requests")["workers"]} == {1}
        assert page("/stats/requests")["stats"][-1]["num_failures"] == 0
    finally:
        # Without --wait: compose 2.26 then misses a service whose last container goes.
        stack.compose("up", "--detach")
