"""Locust's page as a person uses it: a real Locust process, driven in a real browser from start form to filled tables and charts.

The agent behind it is the fake of fake_slow_agent.py here, whose times are known: what the page shows must be those.
"""

import csv
import io
import json
import os
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver
from selenium.webdriver.support.ui import WebDriverWait

from loadtest.coldstart import ARMS as ALL_ARMS
from loadtest.turns import in_turns
from tests.browser import (
    begin,
    choose,
    chromium,
    darken,
    fill,
    framed_row,
    framed_theme,
    needs_browser,
    offers,
    open_tab,
    pick_users,
    plots,
    shoot,
    shows,
    start,
    table_row,
    text,
)  # fmt: skip
from tests.services import ROOT, free_port, wait_for
from tests.stack import fake_slow_agent as fake

KEY = "a-key-that-must-not-be-shown"
ARMS = ("slim-cold", "slim-warm", "mar", "mar-zygote", "worker", "worker-stock")


@contextmanager
def process(arguments: list[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        child = subprocess.Popen(arguments, env=os.environ | environment, cwd=ROOT, stdout=out, stderr=out)
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


@contextmanager
def fake_agent(folder: Path, **environment: str) -> Iterator[str]:
    """A fake agent's address."""
    log = folder / "agent.log"
    with process([sys.executable, str(Path(fake.__file__))], environment, log):
        port = wait_for(lambda: log.read_text().split("\n")[0].strip(), "the fake agent's port")
        yield f"http://127.0.0.1:{port}"


@contextmanager
def locust(folder: Path, agent: str, *arguments: str, **environment: str) -> Iterator[str]:
    """The address of a Locust page."""
    port = free_port()
    command = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", *arguments]
    with process(command, {"AGENT_URL": agent, "LOCUST_PORT": str(port)} | environment, folder / "locust.log") as child:
        url = f"http://127.0.0.1:{port}"

        def up() -> bool:
            assert child.poll() is None, (folder / "locust.log").read_text()
            return bool(get(url))

        wait_for(up, "Locust's page")
        yield url


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()  # type: ignore[no-any-return]


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[WebDriver]:
    with chromium(tmp_path / "profile") as opened:
        yield opened


@needs_browser
def test_from_the_start_form_to_filled_tables_and_charts(browser: WebDriver, tmp_path: Path) -> None:
    variants = ("--cold-start-variants", *ARMS)
    with fake_agent(tmp_path) as agent, locust(tmp_path, agent, *variants) as url:
        wait = begin(browser, url)
        assert browser.find_element(By.NAME, "host").get_attribute("value") == agent
        offered = {
            name: offers(browser, name) for name in ("model", "embeddingModel", "coldStartModel", "coldStartRelease")
        }
        assert offered == {
            "model": ["auto", "falcon-tiny"],
            "embeddingModel": ["auto", "minilm"],
            "coldStartModel": ["auto", "falcon-1g", "falcon-tiny"],
            "coldStartRelease": ["auto", "falcon-1g: v1", "falcon-tiny: v2", "falcon-tiny: v1"],
        }, "what is served, and what is published"
        assert offers(browser, "coldStartVariants") == list(ALL_ARMS)
        shoot(browser, "locust-form")
        start(browser)
        wait.until(lambda b: table_row(b, "minilm embed"))
        wait.until(lambda b: table_row(b, "falcon-tiny stream"))
        generate = wait.until(lambda b: table_row(b, "falcon-tiny generate"))
        shoot(browser, "locust-statistics")
        assert fake.PREDICT_S * 1000 <= float(generate[4]) < fake.PREDICT_S * 1000 + 100, generate
        embedded = wait.until(lambda b: table_row(b, "falcon-tiny embedded"))
        assert fake.EMBEDDED_S * 1000 <= float(embedded[4]) < fake.EMBEDDED_S * 1000 + 100, embedded

        open_tab(browser, "Cold start")
        wait.until(
            lambda b: table_row(b, "slim, empty cache")[2:3] == ["5"] and table_row(b, "embedded .mar")[2:3] == ["5"]
        )
        cold = table_row(browser, "slim, empty cache")
        assert cold == ["slim, empty cache", "falcon-1g v1", "5", "0", "1.23", "1.23 to 1.23", "1.45", "1.45 to 1.45",
                        "-", "0.031", "961", "1150", "962", ""]  # fmt: skip
        assert table_row(browser, "embedded .mar")[4:12] == [
            "15.4", "15.4 to 15.4", "16", "16 to 16", "84.9", "764", "1730", "1310"]  # fmt: skip
        assert table_row(browser, "one more worker")[4:7] == ["0.22", "0.22 to 0.22", "-"]
        wanted = {"From the trigger to the first token, by phase", "Every start", "Disk and memory that a start takes"}
        wait.until(lambda b: wanted <= set(plots(b)))
        shoot(browser, "locust-cold-start")
        browser.execute_script("document.getElementById('weightless').contentWindow.loadedOnce = true")

        open_tab(browser, "Compare")
        ratio = wait.until(lambda b: table_row(b, "slim, empty cache over embedded .mar, to READY"))
        assert ratio[2:] == ["1.23", "15.4", "0.0799", "12.5"]
        wanted = {
            "What is due to the zygote, and what to the bucket",
            "Building what is registered",
            "Latency over time",
        }
        wait.until(lambda b: wanted <= set(plots(b)))
        assert framed_row(browser, "embedded .mar, to READY")[2:] == ["84.9", "15.4", "10.4", "1.23", "5", "9.17"]
        shoot(browser, "locust-compare")

        open_tab(browser, "Streaming")
        stream = wait.until(lambda b: table_row(b, "falcon-tiny v1 stream"))
        first, gap = float(stream[3]), float(stream[6])
        assert fake.FIRST_TOKEN_S * 1000 <= first < fake.FIRST_TOKEN_S * 1000 + 100, stream
        assert fake.BETWEEN_S * 1000 - 5 <= gap < fake.BETWEEN_S * 1000 + 40, stream
        wait.until(lambda b: plots(b) == ["Time to first token, and between tokens"])
        shoot(browser, "locust-streaming")

        assert framed_theme(browser) == ["", "#fff"]
        darken(browser)
        wait.until(lambda b: framed_theme(b) == ["dark", "#121212"])
        for title in ("Streaming", "Compare", "Cold start"):
            open_tab(browser, title)
            wait.until(lambda b: plots(b) and framed_theme(b)[0] == "dark")
            shoot(browser, f"locust-dark-{title.lower().replace(' ', '-')}")

        once = browser.execute_script("return document.getElementById('weightless').contentWindow.loadedOnce")
        assert once, "the frame was loaded anew for another tab: it shows nothing while that lasts"

        # Cold starts are an experiment of their own: none of them is among Locust's requests.
        names = {row["name"] for row in json.loads(get(f"{url}/stats/requests"))["stats"]}
        kinds = {"falcon-tiny generate", "falcon-tiny embedded", "falcon-tiny stream", "minilm embed"}
        assert names == kinds | {"Aggregated"}
        log = browser.get_log("browser")  # type: ignore[attr-defined]
        # Locust alone keeps two digits: of nine times of 60 to 600 ms, each would be a multiple of 10.
        kept = [
            row[key]
            for row in json.loads(get(f"{url}/stats/requests"))["stats"]
            for key in ("median_response_time", "response_time_percentile_0.95", "response_time_percentile_0.99")
        ]
        assert any(time > 100 and time % 10 for time in kept), kept
        errors = [entry for entry in log if entry["level"] == "SEVERE"]
        assert not errors, errors

        samples = list(csv.DictReader(io.StringIO(get(f"{url}/weightless/samples.csv"))))
        assert len(samples) == 5 * len(ARMS)
        assert [row["arm"] for row in samples[: 2 * len(ARMS)]] == [arm for _, arm in in_turns(ARMS, 2)]
        found = get(f"{url}/weightless/result.json")
        assert json.loads(found)["agent"]["models"]["falcon-tiny"]["digest"] == fake.DIGEST


@needs_browser
def test_the_form_says_what_is_wrong_with_it(browser: WebDriver, tmp_path: Path) -> None:
    with fake_agent(tmp_path) as agent, locust(tmp_path, agent) as url:
        wait = begin(browser, url)
        fill(browser, "answerTokens", "many")
        start(browser)
        wait.until(lambda b: "required a number or a range such as 16-64, found 'many'" in text(b))
        fill(browser, "answerTokens", "16-32")
        fill(browser, "host", "http://127.0.0.1:9")
        start(browser)
        wait.until(lambda b: "start the stack with `make up`, or set AGENT_URL" in text(b))
        shoot(browser, "locust-form-error")
        fill(browser, "host", agent)
        choose(browser, "coldStartModel", "falcon-1g")
        choose(browser, "coldStartRelease", "falcon-tiny: v2")
        start(browser)
        wait.until(lambda b: "required a release of falcon-1g (v1), found 'falcon-tiny: v2'" in text(b))
        assert json.loads(get(f"{url}/stats/requests"))["state"] == "ready"


@needs_browser
def test_cold_starts_alone_end_by_themselves(browser: WebDriver, tmp_path: Path) -> None:
    with fake_agent(tmp_path, FAKE_WITHOUT_1G="1", FAKE_WITHOUT_BASELINE="1") as agent, locust(tmp_path, agent) as url:
        wait = begin(browser, url)
        pick_users(browser, {"ColdStartUser"})
        start(browser)
        wait.until(lambda b: "STOPPED" in text(b))
        open_tab(browser, "Cold start")
        # falcon-1g is not published here: the small model is measured instead.
        wait.until(lambda b: table_row(b, "slim, warm cache")[1:3] == ["falcon-tiny v1", "5"])
        assert "`make baseline` starts it" in table_row(browser, "embedded .mar")[-1]
        shoot(browser, "locust-no-baseline")
        assert "measuring falcon-tiny instead" in (tmp_path / "locust.log").read_text()


@needs_browser
def test_with_a_key_set_the_page_asks_for_it_and_never_shows_it(browser: WebDriver, tmp_path: Path) -> None:
    with fake_agent(tmp_path, API_KEY=KEY) as agent, locust(tmp_path, agent, API_KEY=KEY) as url:
        browser.get(url)
        wait = WebDriverWait(browser, 30)
        for key, then in (("another", "That is not the API key"), (KEY, "Custom parameters")):
            wait.until(lambda b: b.find_elements(By.NAME, "key"))
            browser.find_element(By.NAME, "key").send_keys(key)
            start(browser)
            wait.until(partial(shows, then))
        for path in ("data.json", "result.json", "samples.csv", ""):
            assert "Cold start" not in get(f"{url}/weightless/{path}"), path
        for path in ("", "logs", "weightless/result.json", "weightless/data.json"):
            browser.get(f"{url}/{path}")
            assert "Log in" not in browser.page_source and KEY not in browser.page_source, path
    assert KEY not in (tmp_path / "locust.log").read_text()


@contextmanager
def master_and_two_workers(folder: Path, agent: str) -> Iterator[str]:
    """The address of the master's page, with both workers there."""
    port = str(free_port())
    worker = [sys.executable, "-m", "locust", "-f", "loadtest/locustfile.py", "--worker", "--master-port", port]
    with (
        locust(folder, agent, "--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port) as url,
        process(worker, {"AGENT_URL": agent}, folder / "worker1.log"),
        process(worker, {"AGENT_URL": agent}, folder / "worker2.log"),
    ):
        wait_for(lambda: json.loads(get(f"{url}/worker-count"))["worker_count"] == 2, "two workers")
        yield url


def tables(url: str) -> dict[str, Any]:
    return json.loads(get(f"{url}/weightless/data.json"))["tables"]  # type: ignore[no-any-return]


def state(url: str) -> str:
    return str(json.loads(get(f"{url}/stats/requests"))["state"])


def test_two_workers_report_to_one_master(tmp_path: Path) -> None:
    """Requests and cold starts of both workers are on the master's page, each once."""
    with fake_agent(tmp_path) as agent, master_and_two_workers(tmp_path, agent) as url:
        form = {"user_count": "8", "spawn_rate": "8", "host": agent, "cold_start_samples": "4"}
        assert json.loads(post(f"{url}/swarm", form))["success"]
        wait_for(
            lambda: [row["good"] for row in tables(url)["cold-start"]["rows"]] == [4, 4, 4], "four starts of each", 60
        )
        assert [row["ready"] for row in tables(url)["cold-start"]["rows"]] == [1.23, 0.321, 15.4]
        post(f"{url}/stop", {})
        wait_for(lambda: state(url) == "stopped", "the run to stop")

        def same() -> bool:
            ours = {row["what"]: row["requests"] for row in tables(url)["inference"]["rows"]}
            theirs = {row["name"]: row["num_requests"] for row in json.loads(get(f"{url}/stats/requests"))["stats"]}
            return len(ours) == 4 and sum(ours.values()) == theirs["Aggregated"]

        wait_for(same, "as many requests in our tables as in Locust's own", 20)
        # The users of the other worker paused too while a start was measured.
        assert json.loads(get(f"{agent}/status"))["overlaps"] == 0


def test_two_workers_discard_the_warm_up_and_add_up(tmp_path: Path) -> None:
    """Counted against the server: what it answered in the warm-up is not in the statistics, and what it answered to both workers
    afterwards is. With one worker's requests lost there would be half as many."""
    users = 8
    with fake_agent(tmp_path) as agent, master_and_two_workers(tmp_path, agent) as url:

        def served() -> int:
            return int(json.loads(get(f"{agent}/status"))["served"])

        def requests() -> int:
            return sum(row["requests"] for row in tables(url)["inference"]["rows"])

        form = {"user_count": str(users), "spawn_rate": str(users), "host": agent, "user_classes": "InferenceUser"}
        assert json.loads(post(f"{url}/swarm", form | {"warmup_seconds": "8", "slo_ms": "400"}))["success"]
        wait_for(requests, "requests of the warm-up", 30)
        looks = [(served(), requests())]

        def dropped() -> bool:
            looks.append((served(), requests()))
            return looks[-1][1] < looks[-2][1]

        wait_for(dropped, "the warm-up to end", 30)
        before, after = looks[-2][0], served()
        assert before > users, "the warm-up had requests"
        wait_for(lambda: requests() > 20 * users, "requests that count", 60)
        post(f"{url}/stop", {})
        wait_for(lambda: state(url) == "stopped", "the run to stop")
        wait_for(lambda: served() - after - users <= requests(), "the last report of both workers", 20)
        # At either end each user may have a request under way that the one side has counted and the other has not.
        assert requests() <= served() - before + users
        (column,) = [title for key, title in tables(url)["inference"]["columns"] if key == "good"]
        assert column == "Good/s (within 400 ms)", "the master's tables are about this run's fields"
        names = {node["user_count"] for node in json.loads(get(f"{url}/stats/requests"))["workers"]}
        assert names == {0}, "both have stopped"


def test_cold_starts_alone_end_by_themselves_with_two_workers(tmp_path: Path) -> None:
    with fake_agent(tmp_path) as agent, master_and_two_workers(tmp_path, agent) as url:
        form = {"user_count": "1", "spawn_rate": "1", "host": agent, "user_classes": "ColdStartUser"}
        assert json.loads(post(f"{url}/swarm", form | {"cold_start_samples": "2"}))["success"]
        wait_for(lambda: state(url) == "stopped", "the run to end", 60)
        assert [row["good"] for row in tables(url)["cold-start"]["rows"]] == [2, 2, 2]


def post(url: str, form: dict[str, str]) -> str:
    with urllib.request.urlopen(url, data=urllib.parse.urlencode(form).encode(), timeout=20) as answer:
        return answer.read().decode()  # type: ignore[no-any-return]
