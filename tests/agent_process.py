"""A real agent as a process on free ports, with TorchServe behind it, for the tests of whatever talks to one."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.services import ROOT, MinioServer, free_port, wait_for

MOODY = str(ROOT / "tests" / "handlers" / "moody")  # HANDLER_DIR of a handler that does what it is told
START_S = 150.0  # on a machine that does other things too; on a quiet one it takes 6


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)


@dataclass
class AgentProcess:
    """An agent in `folder` (state, cache, log). `env` adds to or overrides what it is told."""

    folder: Path
    env: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def __post_init__(self) -> None:
        names = ("AGENT_PORT", "TORCHSERVE_INFERENCE_PORT", "TORCHSERVE_MANAGEMENT_PORT", "TORCHSERVE_METRICS_PORT")
        self.ports = {name: free_port() for name in (*names, "TORCHSERVE_WORKER_PORT")} | self.ports

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ports['AGENT_PORT']}"

    @property
    def log(self) -> str:
        path = self.folder / "agent.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def environment(self) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "TMPDIR", "JAVA_HOME")}
        return clean | {
            "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "handler", "minio-init")),
            "STATE_DIR": str(self.folder / "state"),
            "CACHE_DIR": str(self.folder / "cache"),
            "MODELS_CONFIG_DIR": str(self.folder / "models"),
            **{name: str(port) for name, port in self.ports.items()},
            **self.env,
        }

    def start(self) -> "AgentProcess":
        """Start it; returns at once."""
        (self.folder / "models").mkdir(parents=True, exist_ok=True)
        with (self.folder / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "serve.agent"], cwd=ROOT, env=self.environment, stdout=log, stderr=log
            )
        return self

    def stop(self, timeout: float = 40) -> int:
        """SIGTERM, and its exit status."""
        assert self.process is not None
        self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def descendants(self) -> list[psutil.Process]:
        assert self.process is not None
        found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return found

    def java(self) -> psutil.Process:
        return next(child for child in self.descendants() if "ModelServer" in " ".join(child.cmdline()))

    def workers(self) -> list[psutil.Process]:
        """The forked workers themselves: children of the zygote."""
        found: list[psutil.Process] = psutil.Process(self.status()["zygote"]["pid"]).children()
        return found

    # ---- asking it

    def call(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 60
    ) -> Answer:
        """One request. `body`: bytes as they are, anything else as JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as response:
                return Answer(response.status, dict(response.headers), response.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, dict(error.headers), error.read())

    def predict(self, model: str, text: str, **parameters: Any) -> Answer:
        """One prediction; `model` may be model/release."""
        path = f"/predictions/{model}"
        body: dict[str, Any] = {"input": text} | ({"parameters": parameters} if parameters else {})
        return self.call("POST", path, body)

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.call("GET", "/status").json
        return answer

    def model(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.status()["models"][name]
        return found

    def registered(self, model: str) -> list[str]:
        """The model's versions that TorchServe itself knows."""
        url = f"http://127.0.0.1:{self.ports['TORCHSERVE_MANAGEMENT_PORT']}/models/{model}/all"
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return [str(entry["modelVersion"]) for entry in json.loads(answer.read())]
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return []
            raise

    def wait_healthy(self, timeout: float = START_S) -> None:
        self._wait(lambda: self.call("GET", "/healthz").status == 200, "the agent to be healthy", timeout)

    def wait_serving(self, model: str, release: str, timeout: float = START_S) -> None:
        """Wait until this release answers and nothing is going on any more."""

        def serving() -> bool:
            found = self.model(model)
            return bool(found["serving"] == release and found["state"] == "serving")

        self._wait(serving, f"{model} {release} to be served", timeout)

    def wait_refused(self, model: str, release: str, timeout: float = START_S) -> dict[str, Any]:
        """Wait until this release is refused; the error that the status shows."""

        def refused() -> dict[str, Any] | None:
            found = self.model(model)
            error: dict[str, Any] | None = found["error"]
            return error if error and error["release"] == release and found["step"] is None else None

        error = self._wait(refused, f"{model} {release} to be refused", timeout)
        assert isinstance(error, dict)
        return error

    def _wait(self, condition: Any, what: str, timeout: float) -> Any:
        def checked() -> Any:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"the agent ended with {self.process.returncode}:\n{self.log[-4000:]}")
            return condition()

        try:
            return wait_for(checked, what, timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log[-4000:]}") from None


@contextlib.contextmanager
def running_agent(folder: Path, minio: MinioServer, **env: str) -> Iterator[AgentProcess]:
    """An agent on this MinIO, started and, whatever happened, stopped with all that it started."""
    agent = AgentProcess(folder, minio.environment | env).start()
    try:
        yield agent
    finally:
        if agent.process is not None and agent.process.poll() is None:
            family = agent.descendants()
            try:
                agent.stop()
            finally:
                for left in family:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        left.kill()
