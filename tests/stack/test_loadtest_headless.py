"""`python -m loadtest`: what it measures, writes, says and exits with. The agent is the fake whose times are known."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from loadtest.turns import in_turns
from tests.services import ROOT
from tests.stack import fake_slow_agent as fake
from tests.stack.test_locust_ui import KEY, fake_agent, get


def loadtest(agent: str, out: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtest", "--out", str(out), *arguments]
    return subprocess.run(
        command,
        env=os.environ | {"AGENT_URL": agent} | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def read(out: Path, profile: str) -> dict[str, Any]:
    return json.loads((out / f"{profile}.json").read_text())  # type: ignore[no-any-return]


def rows(found: dict[str, Any], table: str) -> dict[str, dict[str, Any]]:
    return {row["what"]: row for row in found["tables"][table]}


class Outside(HTMLParser):
    """Collects what a page would load from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe"):
            self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_quick_measures_what_the_server_is_known_to_take(tmp_path: Path) -> None:
    with fake_agent(tmp_path, API_KEY=KEY) as agent:
        run = loadtest(agent, tmp_path / "out", "--profile", "quick", "--seconds", "2", API_KEY=KEY)
    assert run.returncode == 0, run.stderr
    found = read(tmp_path / "out", "quick")
    inference, stream = rows(found, "inference"), rows(found, "streaming")["falcon-tiny v1 stream"]
    for name, known_s in (("falcon-tiny v1 generate", fake.PREDICT_S), ("minilm v1 embed", fake.EMBED_S)):
        assert known_s * 1000 <= inference[name]["p50"] < known_s * 1000 + 60, inference[name]
        assert inference[name]["failures"] == 0
    four_users_each_waiting_for_its_answer = 4 / fake.PREDICT_S
    assert 0.6 < inference["falcon-tiny v1 generate"]["rate"] / four_users_each_waiting_for_its_answer <= 1
    assert fake.FIRST_TOKEN_S * 1000 <= stream["first_p50"] < fake.FIRST_TOKEN_S * 1000 + 60
    assert fake.BETWEEN_S * 1000 - 5 <= stream["gap_p50"] < fake.BETWEEN_S * 1000 + 20
    starts = found["cold_starts"]["starts"]
    arms = ["slim-cold", "slim-warm", "mar"]
    assert [s["arm"] for s in starts] == [arm for _, arm in in_turns(arms, 3)]
    assert found["cold_starts"]["spreads"]["falcon-tiny v1 mar"]["ready_s"] == {
        "samples": 3, "median": 15.4, "min": 15.4, "max": 15.4}  # fmt: skip
    assert found["agent"]["models"]["falcon-tiny"] == {
        "release": "v1", "digest": fake.DIGEST, "task": "text-generation", "state": "serving"}  # fmt: skip
    assert found["ok"] and found["machine"]["cores"] and found["versions"]["locust"]
    assert found["settings"]["cold_start_samples"] == 3
    assert found["agent"]["versions"] == fake.STATUS["versions"], (
        "what answered, not what is installed beside the load test"
    )

    html = (tmp_path / "out" / "quick.html").read_text()
    page = Outside()
    page.feed(html)
    assert page.found == [], "the report must stand alone"
    assert "<dt>torchserve</dt><dd>0.2-fake</dd>" in html
    assert fake.DIGEST in html and "From the trigger to the first token, by phase" in html
    for text in (html, json.dumps(found), run.stdout, run.stderr):
        assert KEY not in text
    assert "slim-cold #1: READY after 1.23 s, first token after 1.45 s" in run.stderr


def test_failed_requests_fail_the_run(tmp_path: Path) -> None:
    with fake_agent(tmp_path, FAKE_FAILS="1") as agent:
        run = loadtest(agent, tmp_path / "out", "--profile", "soak", "--seconds", "2", "--users", "2")
    assert run.returncode == 1, run.stderr
    gate = read(tmp_path / "out", "soak")["gates"][0]
    assert gate["name"] == "failed requests" and not gate["ok"]
    assert "FAILED: failed requests: required at most 0.00%" in run.stderr
    assert "Failed" in (tmp_path / "out" / "soak.html").read_text()


def test_a_missed_latency_fails_the_run(tmp_path: Path) -> None:
    with fake_agent(tmp_path) as agent:
        arguments = ("--profile", "soak", "--seconds", "2", "--max-p95-ms")
        assert loadtest(agent, tmp_path / "out", *arguments, "100").returncode == 1
        assert loadtest(agent, tmp_path / "out", *arguments, "5000").returncode == 0


def test_coldstart_measures_the_big_model_and_says_ratios(tmp_path: Path) -> None:
    arms = ("--cold-start-variants", "slim-cold", "mar", "mar-zygote", "worker", "worker-stock")
    with fake_agent(tmp_path) as agent:
        run = loadtest(agent, tmp_path / "out", "--profile", "coldstart", "--cold-start-samples", "2", *arms)
    assert run.returncode == 0, run.stderr
    compare = rows(read(tmp_path / "out", "coldstart"), "compare")
    assert compare["slim, empty cache over embedded .mar, to READY"] == {
        "what": "slim, empty cache over embedded .mar, to READY", "model": "falcon-1g v1",
        "of": 1.23, "over": 15.4, "ratio": 0.0799, "times": 12.5}  # fmt: skip
    assert compare["one more worker over one more worker, stock, to READY"]["ratio"] == 0.05
    assert (tmp_path / "out" / "coldstart.html").stat().st_size < 1_500_000
    assert "one more worker over one more worker, stock, to READY" in run.stdout


def test_compare_asks_the_embedded_form_too_and_lets_it_go(tmp_path: Path) -> None:
    with fake_agent(tmp_path) as agent:
        run = loadtest(agent, tmp_path / "out", "--profile", "compare", "--seconds", "2")
        left = urllib.request.Request(f"{agent}/baseline/falcon-tiny", b"{}", method="POST")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(left)
    assert run.returncode == 0, run.stderr
    inference = rows(read(tmp_path / "out", "compare"), "inference")
    for turn in (1, 2):
        for name, known_s in (("generate (slim", fake.PREDICT_S), ("embedded (embedded", fake.EMBEDDED_S)):
            row = inference[f"falcon-tiny v1 {name} {turn})"]
            assert known_s * 1000 <= row["p50"] < known_s * 1000 + 80, row


def test_no_agent_says_what_to_do(tmp_path: Path) -> None:
    run = loadtest("http://127.0.0.1:9", tmp_path / "out")
    assert run.returncode == 2
    assert run.stderr.strip() == (
        "loadtest: required the agent at http://127.0.0.1:9, found: [Errno 111] Connection refused; start the stack with "
        "`make up`, or set AGENT_URL"
    )
    assert not (tmp_path / "out").exists()


def test_no_baseline_says_what_to_do(tmp_path: Path) -> None:
    with fake_agent(tmp_path, FAKE_WITHOUT_BASELINE="1") as agent:
        coldstart = loadtest(agent, tmp_path / "out", "--profile", "coldstart")
        quick = loadtest(agent, tmp_path / "out", "--profile", "quick", "--seconds", "1")
    assert coldstart.returncode == 2
    said = coldstart.stderr.splitlines()[-1]  # of the first arm in turn that needs the baseline
    assert said == f"loadtest: starting falcon-1g (one more worker, stock): {fake.NO_BASELINE}"
    assert not (tmp_path / "out" / "coldstart.json").exists(), "no result of half an experiment"
    assert quick.returncode == 0, "the quick profile does without, and says so"
    assert "`make baseline` starts it" in rows(read(tmp_path / "out", "quick"), "cold-start")["embedded .mar"]["note"]


def test_another_key_is_refused(tmp_path: Path) -> None:
    with fake_agent(tmp_path, API_KEY=KEY) as agent:
        run = loadtest(agent, tmp_path / "out", API_KEY="another")
    assert run.returncode == 2
    assert "wants another key" in run.stderr and "set API_KEY" in run.stderr


def test_a_model_that_is_not_served(tmp_path: Path) -> None:
    with fake_agent(tmp_path) as agent:
        run = loadtest(agent, tmp_path / "out", "--profile", "soak", "--seconds", "1", "--model", "falcon-7b")
    assert run.returncode == 2
    assert "required model 'falcon-7b' to be served (task text-generation), found falcon-tiny" in run.stderr


def test_a_release_that_the_model_has_not_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    with fake_agent(tmp_path) as agent:
        run = loadtest(agent, tmp_path / "out", "--profile", "quick", "--cold-start-release", "v9")
        assert json.loads(get(f"{agent}/status"))["served"] == 0
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == (
        "loadtest: cold_start_release: required a release of falcon-tiny (v2, v1), found 'v9'"
    )
    assert "Traceback" not in run.stderr


def test_open_loop_keeps_its_rate_and_counts_from_when_a_request_was_due(tmp_path: Path) -> None:
    """Twenty arrivals a second at a server that takes 150 ms: one closed-loop user could only send 6.7."""
    with fake_agent(tmp_path) as agent:
        arguments = ("--profile", "soak", "--seconds", "6", "--users", "2", "--arrival-rate", "10")
        run = loadtest(agent, tmp_path / "out", *arguments)
    assert run.returncode == 0, run.stderr
    row = rows(read(tmp_path / "out", "soak"), "inference")["falcon-tiny v1 generate (soak)"]
    assert 13 < row["rate"] < 27, row
    assert fake.PREDICT_S * 1000 <= row["p50"] < fake.PREDICT_S * 1000 + 80, row


def test_what_came_in_the_warm_up_is_not_counted(tmp_path: Path) -> None:
    """Two users at a server that takes 150 ms send some 53 requests in four seconds, half of them in the warm-up."""
    with fake_agent(tmp_path) as agent:
        arguments = ("--profile", "soak", "--seconds", "4", "--users", "2", "--warmup-seconds", "2")
        run = loadtest(agent, tmp_path / "out", *arguments)
    assert run.returncode == 0, run.stderr
    row = rows(read(tmp_path / "out", "soak"), "inference")["falcon-tiny v1 generate (soak)"]
    assert 5 < row["requests"] < 40, row


LATE = """
import json, sys, time
from locust.env import Environment
from loadtest.cli import parse
from loadtest.session import Session
from loadtest.settings import LoadtestSettings
from loadtest.users.inference import InferenceUser

settings = LoadtestSettings.load()
environment = Environment(user_classes=[InferenceUser], host=settings.url, parsed_options=parse([], settings))
session = Session(settings).attach(environment)
environment.create_local_runner()
user = InferenceUser(environment)
user.on_start()
for late in (0.0, 2.0):
    user.ask(time.perf_counter() - late)
(series,) = session.recorder.series.values()
stats = environment.stats.get("falcon-tiny generate", "POST")
json.dump([[series.latency.low, series.latency.high], [stats.min_response_time, stats.max_response_time]], sys.stdout)
"""


def test_latency_counts_from_when_a_request_was_due(tmp_path: Path) -> None:
    """By hand: at a server that takes 150 ms, one sent when it was due takes 150 ms, one sent two seconds late 2,150.

    Counted from the sending both would take 150 ms, and a stalled generator would hide a stalled server.
    """
    with fake_agent(tmp_path) as agent:
        environment = os.environ | {"AGENT_URL": agent}
        command = [sys.executable, "-c", LATE]
        run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    for low, high in json.loads(run.stdout):  # in our statistics, and in Locust's own
        assert fake.PREDICT_S * 1000 <= low < 1000
        assert fake.PREDICT_S * 1000 + 2000 <= high < 3000
