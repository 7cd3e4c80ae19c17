"""Bodies and bytes that are wrong by chance, at a handler that reads them itself: a 4xx in JSON each time, and no worker lost."""

import json
import os
import random
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.agent_process import MOODY, running_agent
from tests.releases import publish
from tests.services import MinioServer


def test_300_malformed_requests_are_4xx_in_json_and_cost_no_worker(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    malformed(minio_server, moody_model, tmp_path, 300)


@pytest.mark.long
def test_10000_malformed_requests_are_4xx_in_json_and_cost_no_worker(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    malformed(minio_server, moody_model, tmp_path, 10_000)


def malformed(minio: MinioServer, folder: Path, tmp_path: Path, count: int) -> None:
    chance = random.Random(7)
    right = json.dumps({"input": "say x", "parameters": {"top_k": 5}, "stream": False}).encode()
    publish(minio, "moody", folder)
    with running_agent(tmp_path, minio, HANDLER_DIR=MOODY) as agent:
        agent.wait_serving("moody", "v1")
        before = [worker.pid for worker in agent.workers()]
        for _ in range(count):
            answer = agent.call("POST", "/predictions/moody", damaged(right, chance))
            assert answer.status in (400, 413)
            assert answer.json["error"]["code"] == answer.status
        assert [worker.pid for worker in agent.workers()] == before
        assert agent.predict("moody", "say x").status == 200


def damaged(right: bytes, chance: random.Random) -> bytes:
    """A body that is certainly wrong: cut short, garbage, or of wrong types."""
    match chance.randrange(4):
        case 0:
            return right[: chance.randrange(1, len(right) - 1)]
        case 1:
            return chance.randbytes(chance.randrange(0, 300)) + b"\xff"
        case 2:
            wrong: Any = chance.choice([None, 3, {}, [], [None], True, 1.5, ["x", {}]])
            return json.dumps({"input": wrong}).encode()
        case _:
            field = chance.choice(["parameters", "stream", "details"])
            return json.dumps({"input": "x", field: chance.choice([3, "yes", [1], 0.5])}).encode()


def test_bytes_that_are_no_http_do_no_harm(minio_server: MinioServer, moody_model: Path, tmp_path: Path) -> None:
    publish(minio_server, "moody", moody_model)
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY) as agent:
        agent.wait_serving("moody", "v1")
        for raw in (
            b"\0" * 100,
            b"GET",
            b"POST /predictions/moody HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            os.urandom(2000),
        ):
            with socket.create_connection(("127.0.0.1", agent.ports["AGENT_PORT"]), timeout=10) as connection:
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
        half = socket.create_connection(("127.0.0.1", agent.ports["AGENT_PORT"]), timeout=10)
        half.sendall(b"POST /predictions/moody HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert agent.model("moody")["inflight"] == 0, "a body that does not come is not in flight"
        half.close()
        assert agent.predict("moody", "say x").status == 200
