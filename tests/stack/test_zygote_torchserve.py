"""A real TorchServe whose workers are forked: it must not be able to tell, whatever happens to them or to the zygote."""

import asyncio
import json
import os
import signal
import subprocess
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.agent.torchserve import java_command
from serve.zygote.imports import REQUIRED
from serve.zygote.supervisor import Zygote
from tests.services import free_port, wait_for
from tests.zygotes import alive

HANDLER = """
import os, sys
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.torch_handler.base_handler import BaseHandler

class EchoHandler(BaseHandler):
    def initialize(self, context):
        self.context, self.initialized = context, True
        self.start = context.metrics
        context.metrics.add_counter("EchoStarts", 1)
        print("the echo handler writes to standard error", file=sys.stderr)

    def handle(self, data, context):
        body = (data[0].get("body") or data[0].get("data") or b"").decode()
        if body == "die":
            os.kill(os.getpid(), 9)
        if body == "stream":
            for number in range(3):
                send_intermediate_predict_response([f"{number} "], context.request_ids, "Intermediate", 200, context)
        import torch
        context.metrics.add_counter("EchoRequests", 1)
        return [f"{os.getpid()} {os.getppid()} {float(torch.rand(1))} {WHICH}" for _ in data]
"""
CONFIG = """
minWorkers: 1
maxWorkers: 4
startupTimeout: 60
responseTimeout: 30
maxRetryTimeoutInSec: 120
"""


class Node:
    """TorchServe's Java server and a supervised zygote, as the agent has them: the supervisor on an event loop of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, folder / "store"
        self.store.mkdir()
        (folder / "t").mkdir()
        self.inference, self.management, self.metrics = (free_port() for _ in range(3))
        properties = folder / "config.properties"
        lines = [
            f"{name}_address=http://127.0.0.1:{getattr(self, name)}" for name in ("inference", "management", "metrics")
        ]
        more = [
            "grpc_inference_port=0",
            "grpc_management_port=0",
            f"initial_worker_port={free_port()}",
            "metrics_mode=prometheus",
        ]
        more += ["disable_system_metrics=true", "model_metrics_auto_detect=true"]
        properties.write_text("\n".join([*lines, *more]))
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()
        self.zygote = Zygote(folder / "z", REQUIRED)
        without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        self.environment = self.zygote.environment(without | {"TEMP": str(folder / "t"), "LOG_LOCATION": str(folder)})
        self.call(self.zygote.start(self.environment))
        self.log = (folder / "torchserve.log").open("wb")
        self.java = subprocess.Popen(
            java_command([], self.zygote.interpreter, properties, self.store, folder / "t"),
            env=self.environment, cwd=folder, stdout=self.log, stderr=self.log,
        )  # fmt: skip
        assert self.call(self.zygote.ready()), self.zygote.status
        wait_for(lambda: self.ask("GET", self.inference, "/ping")[0] == 200, "TorchServe to answer", 90)

    def call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(120)

    def ask(self, method: str, port: int, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/octet-stream"}
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def register(self, name: str, which: str = "first", more: dict[str, str] | None = None) -> None:
        manifest = {
            "runtime": "python",
            "model": {
                "modelName": name,
                "handler": "echo_handler.py",
                "modelVersion": "1.0",
                "configFile": "model-config.yaml",
            },
            "archiverVersion": "0.12.0",
        }
        files = {"MAR-INF/MANIFEST.json": json.dumps(manifest), "model-config.yaml": CONFIG}
        files |= {"echo_handler.py": f"WHICH = {which!r}\n{HANDLER}", **(more or {})}
        with zipfile.ZipFile(self.store / f"{name}.mar", "w") as archive:
            for path, text in files.items():
                archive.writestr(path, text)
        status, said = self.ask("POST", self.management, f"/models?url={name}.mar&initial_workers=1&synchronous=true")
        assert status == 200, said

    def workers(self, name: str) -> list[dict[str, Any]]:
        status, said = self.ask("GET", self.management, f"/models/{name}")
        return json.loads(said)[0]["workers"] if status == 200 else []

    def ready_pids(self, name: str, count: int = 1) -> list[int]:
        pids = [int(worker["pid"]) for worker in self.workers(name) if worker["status"] == "READY"]
        return pids if len(pids) == count and all(map(alive, pids)) else []

    def predict(self, name: str, body: bytes = b"hello") -> list[str]:
        status, said = self.ask("POST", self.inference, f"/predictions/{name}", body)
        assert status == 200, said
        return said.decode().split()

    def processes(self) -> list[int]:
        """All running worker processes of this TorchServe, forked or stock, without launchers."""
        found = []
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            words = process.read_bytes().replace(b"\0", b" ")
            if (
                str(self.folder / "t").encode() in words
                and b"model_service_worker" in words
                and b"launcher.py" not in words
            ):
                found.append(int(process.parent.name))
        return [pid for pid in found if alive(pid)]

    def stop(self) -> None:
        self.java.terminate()
        try:
            self.java.wait(30)
        finally:
            self.java.kill()
            self.call(self.zygote.stop())
            self.loop.call_soon_threadsafe(self.loop.stop)
            self.log.close()


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    running = Node(tmp_path_factory.mktemp("n"))
    try:
        yield running
    finally:
        running.stop()
    wait_for(lambda: not running.processes(), "all workers to be gone with TorchServe", 20)


@pytest.fixture
def echo(node: Node) -> Iterator[Node]:
    node.register("echo")
    yield node
    node.ask("DELETE", node.management, "/models/echo")
    wait_for(lambda: not node.processes(), "no worker to be left of an unregistered model", 20)


def test_it_is_forked_answers_streams_and_counts(echo: Node) -> None:
    pid, parent, *_ = echo.predict("echo")
    assert echo.ready_pids("echo") == [int(pid)]
    assert int(parent) == echo.zygote.status.pid
    assert echo.predict("echo", b"stream")[:3] == ["0", "1", "2"]

    def counted() -> bool:
        lines = echo.ask("GET", echo.metrics, "/metrics")[1].decode().splitlines()
        ends = {line.partition("{")[0]: line.split()[-1] for line in lines if line.startswith("Echo")}
        return ends == {"EchoStarts": "1.0", "EchoRequests": "2.0"}

    wait_for(counted, "the worker's metrics", 20)
    logged = (echo.folder / "torchserve.log").read_bytes() + b"".join(f.read_bytes() for f in echo.folder.glob("*.log"))
    assert b"the echo handler writes to standard error" in logged


def test_scaled_up_the_workers_draw_different_numbers_and_scaled_down_one_is_left(echo: Node) -> None:
    echo.ask("PUT", echo.management, "/models/echo?min_worker=3&max_worker=3&synchronous=true")
    pids = wait_for(lambda: echo.ready_pids("echo", 3), "three workers", 30)
    drawn: dict[str, str] = {}
    for _ in range(60):
        pid, _, number, _ = echo.predict("echo")
        drawn.setdefault(pid, number)
    assert len(set(drawn.values())) == len(drawn) >= 2
    echo.ask("PUT", echo.management, "/models/echo?min_worker=1&max_worker=1&synchronous=true")
    wait_for(lambda: len(echo.processes()) == 1, "two workers to leave", 20)
    assert set(echo.processes()) <= set(pids)


def test_a_killed_worker_is_followed_by_another(echo: Node) -> None:
    (first,) = echo.ready_pids("echo")
    status, _ = echo.ask("POST", echo.inference, "/predictions/echo", b"die")
    assert status in (500, 507)  # 507 is TorchServe's reading of exit code 137, if that comes before it looks
    wait_for(lambda: (echo.ready_pids("echo") or [first]) != [first], "another worker", 30)
    assert echo.predict("echo")[0] != str(first)
    assert len(echo.processes()) == 1


def test_an_edited_handler_is_used_by_the_next_registration(node: Node) -> None:
    for which in ("first", "second"):
        node.register("edited", which)
        assert node.predict("edited")[3] == which
        node.ask("DELETE", node.management, "/models/edited")
        wait_for(lambda: not node.processes(), "the worker to leave", 20)


def test_a_model_with_packages_of_its_own_has_a_worker_of_its_own(node: Node) -> None:
    """What `pip install -t` leaves in the model's folder."""
    package = {
        "tiny.py": "VERSION = 99",
        "tiny-99.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 99\n",
    }
    refused = node.zygote.status.refused
    node.register("own", more=package)
    assert int(node.predict("own")[1]) == node.java.pid
    assert node.zygote.status.refused == refused + 1
    assert "own packages" in str(node.zygote.status.reason)
    node.ask("DELETE", node.management, "/models/own")
    wait_for(lambda: not node.processes(), "the worker to leave", 20)


def test_the_zygote_killed_every_worker_comes_back_and_none_twice(echo: Node) -> None:
    echo.ask("PUT", echo.management, "/models/echo?min_worker=2&max_worker=2&synchronous=true")
    before = wait_for(lambda: echo.ready_pids("echo", 2), "two workers", 30)
    restarts = echo.zygote.status.restarts
    os.kill(echo.zygote.status.pid or 0, signal.SIGKILL)
    most = 0

    def back() -> bool:
        nonlocal most
        most = max(most, len(echo.processes()))
        pids = echo.ready_pids("echo", 2)
        return bool(pids) and not set(pids) & set(before)

    wait_for(back, "two new workers", 60, 0.02)
    assert most <= 2
    assert not any(alive(pid) for pid in before)
    wait_for(
        lambda: echo.zygote.status.restarts == restarts + 1 and echo.zygote.status.state == "running",
        "a new zygote",
        60,
    )
    assert echo.predict("echo")
