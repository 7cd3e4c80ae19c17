"""The door in front of workers that behave badly: keys, bounds, timeouts, and errors that say what happened."""

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.agent_process import AgentProcess, Answer, running_agent
from tests.releases import publish
from tests.services import ROOT, MinioServer, free_port, running_minio, wait_for

KEY = "a key for tests"
BEARER = {"Authorization": f"Bearer {KEY}"}
MOODY = str(ROOT / "tests" / "handlers" / "moody")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """An agent with a key, two requests in flight at most, and a moody model that has 3 s for an answer."""
    folder = tmp_path_factory.mktemp("door")
    model = folder / "moody"
    model.mkdir()
    (model / "config.json").write_text("{}")
    settings = {"API_KEY": KEY, "BIND": "0.0.0.0", "MAX_INFLIGHT": "2", "HANDLER_DIR": MOODY}
    with running_minio(folder / "minio") as minio:
        minio.clean()
        publish(minio, "moody", model)
        (folder / "models").mkdir()
        (folder / "models" / "moody.yaml").write_text("node: {response_timeout_s: 3, batching: static}\n")
        with running_agent(folder, minio, **settings) as process:
            wait_for(lambda: process.call("GET", "/healthz").status == 200, "the agent", 90)
            yield process


def ask(agent: AgentProcess, text: str, **more: Any) -> Answer:
    return agent.call("POST", "/predictions/moody", {"input": text, **more}, headers=BEARER)


def kind(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json["error"]["type"]


def in_background(call: Callable[[], Answer]) -> tuple[threading.Thread, list[Answer]]:
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    return thread, answers


def recovered(agent: AgentProcess) -> None:
    wait_for(lambda: ask(agent, "say hello").status == 200, "the worker to be back", 30)


# ---- keys


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/predictions/moody"),
        ("GET", "/status"),
        ("GET", "/metrics"),
        ("GET", "/mar/moody"),
        ("POST", "/coldstart"),
    ],
)
def test_without_the_key_there_is_only_the_health_check(agent: AgentProcess, method: str, path: str) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}):
        answer = agent.call(method, path, {"input": "say x"} if method == "POST" else None, headers=headers)
        assert kind(answer) == (401, "unauthorized")
    assert agent.call("GET", "/healthz").status == 200


def test_with_the_key_there_is_an_answer(agent: AgentProcess) -> None:
    assert ask(agent, "say hello").json == [{"generated_text": "say hello"}]
    assert agent.call("GET", "/status", headers=BEARER).status == 200


# ---- bounds


def test_more_in_flight_than_allowed_is_refused_at_once(agent: AgentProcess) -> None:
    slow = [in_background(lambda: ask(agent, "sleep 1")) for _ in range(2)]
    wait_for(
        lambda: agent.call("GET", "/status", headers=BEARER).json["models"]["moody"]["inflight"] == 2,
        "two in flight",
        5,
    )
    began = time.monotonic()
    refused = ask(agent, "say hello")
    assert time.monotonic() - began < 0.5
    assert kind(refused) == (503, "overloaded")
    assert refused.headers["Retry-After"] == "1"
    for thread, answers in slow:
        thread.join()
        assert answers[0].status == 200
    assert ask(agent, "say hello").status == 200


# ---- workers that fail


def test_a_handler_that_raises_fails_one_request_only(agent: AgentProcess) -> None:
    assert kind(ask(agent, "nonsense 1")) == (500, "prediction_failed")
    assert ask(agent, "say hello").status == 200


def test_a_worker_out_of_memory_says_so(agent: AgentProcess) -> None:
    assert kind(ask(agent, "exhaust")) == (507, "out_of_memory")
    assert ask(agent, "say hello").status == 200


def test_a_worker_that_dies_on_a_request_is_a_503_and_comes_back(agent: AgentProcess) -> None:
    began = time.monotonic()
    answer = ask(agent, "die")
    assert time.monotonic() - began < 3
    assert kind(answer) == (503, "worker_died")
    assert answer.headers["Retry-After"]
    recovered(agent)


def test_a_worker_that_hangs_is_cut_off_and_replaced(agent: AgentProcess) -> None:
    began = time.monotonic()
    answer = ask(agent, "sleep 60")
    assert time.monotonic() - began < 3 + 2 + 2
    assert kind(answer) in {(503, "worker_died"), (504, "timeout")}
    recovered(agent)


# ---- streams


def stream(agent: AgentProcess, text: str) -> socket.socket:
    raw = json.dumps({"input": text, "stream": True}).encode()
    connection = socket.create_connection(("127.0.0.1", agent.ports["AGENT_PORT"]), timeout=20)
    head = f"POST /predictions/moody HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
    connection.sendall(f"{head}Content-Length: {len(raw)}\r\n\r\n".encode() + raw)
    return connection


def test_pieces_arrive_when_they_are_sent(agent: AgentProcess) -> None:
    arrivals: list[float] = []
    said = b""
    with stream(agent, "stream 8") as connection:
        while piece := connection.recv(65536):
            arrivals.append(time.monotonic())
            said += piece
    assert b"text/event-stream" in said
    assert said.count(b"data: ") == 9
    assert arrivals[-1] - arrivals[0] > 0.5, "all pieces came at once"


def test_a_worker_that_dies_in_the_middle_of_a_stream_is_told_in_the_stream(agent: AgentProcess) -> None:
    with stream(agent, "stream 100") as connection:
        said = connection.recv(65536)
        worker = agent.call("GET", "/status", headers=BEARER).json["models"]["moody"]["phases"]
        assert worker is not None
        kill_worker(agent)
        while piece := connection.recv(65536):
            said += piece
    assert b"event: error\ndata: " in said
    error = json.loads(said.split(b"event: error\ndata: ")[1].split(b"\n\n")[0])["error"]
    assert error["code"] == 503
    recovered(agent)


def kill_worker(agent: AgentProcess) -> None:
    for child in agent.descendants():
        with contextlib.suppress(psutil.NoSuchProcess):  # ended already, and not yet waited for
            if "model_service_worker" in " ".join(child.cmdline()):
                child.kill()


# ---- clients that leave


def upstream_connections(agent: AgentProcess) -> set[int]:
    """The agent's own ports of its connections to TorchServe's inference port."""
    assert agent.process is not None
    port = agent.ports["TORCHSERVE_INFERENCE_PORT"]
    connections = psutil.Process(agent.process.pid).net_connections("tcp")
    return {
        each.laddr.port
        for each in connections
        if each.raddr and each.raddr.port == port and each.status == "ESTABLISHED"
    }


@pytest.mark.parametrize("text", ["sleep 2", "stream 20"])
def test_the_connection_of_a_client_that_left_is_closed_at_once(agent: AgentProcess, text: str) -> None:
    """Else a worker would go on for nobody: it learns of it from its own side of that connection."""

    def inflight() -> int:
        count: int = agent.call("GET", "/status", headers=BEARER).json["models"]["moody"]["inflight"]
        return count

    before = Figures(agent)
    with stream(agent, text):
        wait_for(lambda: inflight() == 1, "the request to be in flight", 5)
        time.sleep(0.2)  # the worker has it by now
        during = upstream_connections(agent)
    left = time.monotonic()
    wait_for(lambda: len(during - upstream_connections(agent)) == 1, "its connection to be closed", 1, 0.01)
    assert time.monotonic() - left < 1
    wait_for(lambda: inflight() == 0, "nothing to be in flight", 1)
    grown = Figures(agent).since(before)
    assert grown("weightless_errors_total", type="client_gone") == 1
    assert grown("weightless_requests_total", code="499") == 1
    recovered(agent)


# ---- figures


class Figures:
    """What GET /metrics says now, by name and labels."""

    def __init__(self, agent: AgentProcess) -> None:
        text = agent.call("GET", "/metrics", headers=BEARER).raw.decode()
        self.values = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def of(self, name: str, **labels: str) -> float:
        wanted = {"model": "moody", "release": "v1"} | labels
        return self.values.get((name, frozenset(wanted.items())), 0.0)

    def since(self, before: "Figures") -> Callable[..., float]:
        return lambda name, **labels: self.of(name, **labels) - before.of(name, **labels)


def test_the_metrics_are_what_was_sent(agent: AgentProcess) -> None:
    before = Figures(agent)
    for _ in range(3):
        told = ask(agent, "tell")
        assert not [name for name in told.headers if name.lower() in ("x-weightless-queue-ms", "x-weightless-batch")]
    with stream(agent, "stream 5") as connection:
        while connection.recv(65536):
            pass
    ask(agent, "nonsense 1")
    agent.call("POST", "/predictions/moody", b"{", headers=BEARER)
    agent.call("POST", "/predictions/nobody", {"input": "x"}, headers=BEARER)
    grown = Figures(agent).since(before)

    assert grown("weightless_requests_total", code="200") == 4
    assert grown("weightless_requests_total", code="500") == 1
    assert grown("weightless_requests_total", code="400") == 1
    assert grown("weightless_requests_total", code="404", model="", release="") == 1
    assert grown("weightless_errors_total", type="prediction_failed") == 1
    assert grown("weightless_errors_total", type="invalid_json") == 1
    assert grown("weightless_errors_total", type="model_not_found", model="", release="") == 1
    assert grown("weightless_request_seconds_count") == 5

    assert grown("weightless_queue_seconds_count") == 3
    assert 0 < grown("weightless_queue_seconds_sum") < 3
    assert grown("weightless_prompt_tokens_sum") == 3 * 7 + 3
    assert grown("weightless_generated_tokens_sum") == 3 * 5 + 5
    assert grown("weightless_batch_size_sum") == 3 * 2
    assert grown("weightless_time_to_first_token_seconds_bucket", le="0.05") >= 3, (
        "40 ms were told, of each whole answer"
    )
    assert grown("weightless_time_to_first_token_seconds_sum") > 3 * 0.04
    assert grown("weightless_time_to_first_token_seconds_count") == 4
    assert grown("weightless_inter_token_seconds_count") == 4, "five pieces, and an end that is none"
    assert grown("weightless_inter_token_seconds_sum") == pytest.approx(0.4, abs=0.2)


def test_errors_are_counted_by_their_type(agent: AgentProcess) -> None:
    before = Figures(agent)
    assert kind(ask(agent, "exhaust")) == (507, "out_of_memory")
    assert kind(ask(agent, "late 504")) == (504, "timeout")
    grown = Figures(agent).since(before)
    assert grown("weightless_errors_total", type="out_of_memory") == 1
    assert grown("weightless_errors_total", type="timeout") == 1


def test_an_answer_whose_head_came_early_is_like_any_other(agent: AgentProcess) -> None:
    """So a worker learns that a client left before the answer is complete; the client sees the status of the end."""
    before = Figures(agent)
    told = ask(agent, "late 200")
    assert (told.status, told.json) == (200, [{"generated_text": "late"}])
    assert told.headers["Content-Type"] == "application/json"
    assert int(told.headers["Content-Length"]) == len(told.raw)
    assert kind(ask(agent, "late 507"))[0] == 507
    grown = Figures(agent).since(before)
    assert (grown("weightless_prompt_tokens_sum"), grown("weightless_generated_tokens_sum")) == (7, 5)


# ---- a start that cannot be


def refused_start(tmp_path: Path, minio_port: int, **env: str) -> tuple[int, str]:
    """Exit status and last words of an agent with these settings."""
    process = AgentProcess(
        tmp_path, {"S3_ENDPOINT": f"http://127.0.0.1:{minio_port}", "S3_ACCESS_KEY": "a", "S3_SECRET_KEY": "b"} | env
    )
    ended = subprocess.run(
        [sys.executable, "-m", "serve.agent"],
        cwd=ROOT,
        env=process.environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return ended.returncode, ended.stderr.strip().splitlines()[-1]


def test_beyond_this_machine_without_a_key_it_refuses_to_start(tmp_path: Path) -> None:
    status, said = refused_start(tmp_path, 9, BIND="0.0.0.0")
    assert status == 2
    assert said.startswith("error: ")
    assert "required API_KEY" in said


def test_without_credentials_it_refuses_to_start(tmp_path: Path) -> None:
    status, said = refused_start(tmp_path, 9, S3_ACCESS_KEY="", S3_SECRET_KEY="")
    assert status == 2
    assert "S3_ACCESS_KEY" in said


@pytest.mark.parametrize("variable", ["AGENT_PORT", "TORCHSERVE_INFERENCE_PORT"])
def test_a_port_in_use_is_named(tmp_path: Path, variable: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, said = refused_start(tmp_path, free_port(), **{variable: str(port)})
    assert status == 2
    assert f"{variable}: required a free port, found 127.0.0.1:{port}" in said


def test_a_required_gpu_that_is_not_there_is_said(tmp_path: Path) -> None:
    from serve.agent.gpu import nvml

    if nvml()[0]:
        pytest.skip("this machine has a GPU")
    status, said = refused_start(tmp_path, 9, REQUIRE_GPU="1")
    assert status == 3
    assert said.startswith("error: REQUIRE_GPU=1: required a usable NVIDIA GPU, found none")


def test_sigterm_ends_it_and_everything_that_it_started(minio_server: MinioServer, tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path, minio_server.environment).start()
    agent.wait_healthy()
    family = agent.descendants()
    assert family
    assert agent.stop() == 0
    assert not [process for process in family if process.is_running()]
