"""Malformed and hostile requests to a real agent with real models: a 4xx in JSON each time, and no worker lost.

Which requests: tests/faults/hostile.py makes them from a seed. Here: how they are sent, and what must be true of every answer.
"""

import gzip
import json
import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from seeding.samples import KNOWN

from tests.agent_process import AgentProcess, running_agent
from tests.faults.hostile import MODEL, OTHER, Hostile, hostile, request
from tests.releases import publish
from tests.services import running_minio, wait_for

CLIENT_S = 2.0
CLIENTS = 8


@pytest.fixture(scope="module")
def agent(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    folder = tmp_path_factory.mktemp("hostile")
    with running_minio(folder / "minio") as minio:
        minio.clean()
        publish(minio, MODEL, samples / MODEL)
        publish(minio, OTHER, samples / OTHER, task="embeddings")
        with running_agent(folder, minio, CLIENT_SECONDS=str(CLIENT_S)) as process:
            process.wait_healthy()
            yield process


def connect(agent: AgentProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", agent.ports["AGENT_PORT"]), timeout=30)


def answer(connection: socket.socket) -> tuple[int, dict[str, str], bytes] | None:
    """Status, headers (names in lower case) and body of one answer; None if the connection ended first."""
    with connection.makefile("rb") as reader:
        line = reader.readline()
        if not line:
            return None
        headers = {}
        while (header := reader.readline().strip()) != b"":
            name, _, value = header.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(reader.readline(), 16):
                body += reader.read(size)
                reader.readline()
        else:
            body = reader.read(int(headers["content-length"]))
        return int(line.split()[1]), headers, body


def send(agent: AgentProcess, request: Hostile) -> str | None:
    """What is wrong with the answer, or None."""
    with connect(agent) as connection:
        try:
            connection.sendall(request.raw)
            if request.ends:
                connection.shutdown(socket.SHUT_WR)
            told = answer(connection)
        except (ConnectionResetError, BrokenPipeError):
            told = None  # the server refused while we still sent: its answer may be lost with the connection
            if len(request.raw) < 1 << 20 and not request.ends:
                return "the connection was reset"
        except TimeoutError:
            return "no answer"
    if told is None:
        return None if request.ends or len(request.raw) >= 1 << 20 else "no answer before the connection ended"
    status, headers, body = told
    if status == 200 and not request.refused:
        return None
    if not 400 <= status < 500:
        return f"status {status}: {body[:200]!r}"
    if not headers.get("content-type", "").startswith("application/json"):
        return f"status {status} as {headers.get('content-type')}"
    error = json.loads(body)["error"]
    return None if error["message"] and error["code"] else f"an error that says nothing: {error}"


def workers(agent: AgentProcess) -> set[int]:
    """The process ids of the workers, children of the zygote."""
    return {child.pid for child in psutil.Process(agent.status()["zygote"]["pid"]).children()}


def storm(agent: AgentProcess, seeds: range) -> None:
    before = workers(agent)
    assert len(before) == 2
    requests = [hostile(seed) for seed in seeds]
    with ThreadPoolExecutor(CLIENTS) as pool:
        wrong = list(pool.map(lambda request: send(agent, request), requests))
    failures = Counter(f"{one.kind}: {what}" for one, what in zip(requests, wrong, strict=True) if what)
    assert not failures, "\n".join(f"{count} x {what}" for what, count in failures.most_common(20))
    assert workers(agent) == before, "a worker was lost"
    told = agent.predict(MODEL, KNOWN[MODEL].prompt, do_sample=False)
    assert told.json == [{"generated_text": KNOWN[MODEL].sentence}]
    assert len(agent.predict(OTHER, "Hello").json["embedding"]) == 384


def test_hundreds_of_hostile_requests_are_refused_one_by_one(agent: AgentProcess) -> None:
    storm(agent, range(400))


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_thousand_hostile_requests_are_refused_one_by_one(agent: AgentProcess) -> None:
    storm(agent, range(1000, 11000))


def test_a_client_that_never_finishes_is_told_so_and_keeps_nobody_waiting(agent: AgentProcess) -> None:
    """Slow loris: a head without an end, and a body that stays away."""
    head = f"POST /predictions/{MODEL} HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n".encode()
    slow = [connect(agent) for _ in range(100)]
    for number, connection in enumerate(slow):
        connection.sendall(head + (b"\r\n{" if number % 2 else b"X-A: b"))
    assert agent.predict(MODEL, "x", max_new_tokens=1).status == 200
    for connection in slow:
        with connection:
            told = answer(connection)
            assert told is not None
            status, headers, body = told
            assert (status, json.loads(body)["error"]["type"]) == (408, "request_timeout")
            assert headers["content-type"].startswith("application/json")


def test_a_head_that_comes_in_pieces_is_waited_for(agent: AgentProcess) -> None:
    body = b'{"input": "x", "parameters": {"max_new_tokens": 1}}'
    raw = f"POST /predictions/{MODEL} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with connect(agent) as connection:
        for _ in range(2):  # on a kept connection, too
            for start in range(0, len(raw), 7):
                connection.sendall(raw[start : start + 7])
            told = answer(connection)
            assert told is not None
            assert told[0] == 200


def test_a_client_that_asks_before_it_sends_is_told_to_go_on(agent: AgentProcess) -> None:
    """curl does so for a body of more than a megabyte, and waits a second if it is told nothing."""
    body = b'{"input": "x", "parameters": {"max_new_tokens": 1}}'
    head = (
        f"POST /predictions/{MODEL} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with connect(agent) as connection:
        connection.sendall(head.encode())
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        told = answer(connection)
        assert told is not None
        assert told[0] == 200


def test_memory_stays_bounded_when_bodies_unpack_to_more_than_is_taken(agent: AgentProcess) -> None:
    """8 MiB a request that came as 8 KiB: refused while it unpacks."""
    assert agent.process is not None
    process = psutil.Process(agent.process.pid)
    bomb = Hostile("bomb", request(f"/predictions/{MODEL}", gzip.compress(b" " * (8 << 20)), "Content-Encoding: gzip"))
    before = process.memory_info().rss
    with ThreadPoolExecutor(CLIENTS) as pool:
        assert list(pool.map(lambda _: send(agent, bomb), range(50))) == [None] * 50
    wait_for(lambda: process.memory_info().rss - before < 64 << 20, "memory to be given back", 10)
