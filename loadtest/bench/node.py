"""The stack that is measured: the processes of `make up` in a folder and on ports of their own, driven by the make commands."""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest.bench.experiment import BenchFailed
from loadtest.bench.server import ROOT
from local.config import BASELINE, DOORS, INNER

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Node:
    """`run`: the folder that holds all of the stack. `env`: what make is told; it says where everything listens."""

    run: Path
    env: Mapping[str, str]

    @property
    def agent(self) -> str:
        return f"http://127.0.0.1:{self.env['AGENT_PORT']}"

    @property
    def torchserve(self) -> str:
        """The inference port behind the door."""
        return f"http://127.0.0.1:{self.env['TORCHSERVE_INFERENCE_PORT']}"

    @property
    def baseline(self) -> str:
        """The inference port of the stock TorchServe, which `make("baseline")` starts."""
        return f"http://127.0.0.1:{self.env['BASELINE_INFERENCE_PORT']}"

    def make(self, *words: str, **more: str) -> str:
        """A make command, and what it printed.

        Raises:
            BenchFailed: it ended with an error; its words are in the message.
        """
        env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | dict(self.env) | more
        done = subprocess.run(["make", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise BenchFailed(
                f"make {' '.join(words)} ended with status {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def ask(self, method: str, path: str, body: object = None, *, timeout_s: float = 3600) -> dict[str, Any]:
        """The agent's answer in JSON.

        Raises:
            BenchFailed: no answer, or an error.
        """
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.agent}{path}", data, headers, method=method)  # noqa: S310  # our own
        try:
            with _DIRECT.open(request, timeout=timeout_s) as answer:
                found: dict[str, Any] = json.loads(answer.read())
                return found
        except urllib.error.HTTPError as error:
            raise BenchFailed(f"{method} {path}: the agent answered {error.code}: {error.read()[:500]!r}") from None
        except OSError as error:
            raise BenchFailed(f"{method} {path}: no answer from the agent: {error}") from None

    def status(self) -> dict[str, Any]:
        return self.ask("GET", "/status", timeout_s=30)

    def wait_serving(self, model: str, release: str | None = None, *, timeout_s: float = 900) -> None:
        """Until the model answers, with that release if one is named."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.status()["models"].get(model, {})
            if found.get("state") == "serving" and release in (None, found.get("serving")):
                return
            if found.get("state") == "failed" or time.monotonic() > deadline:
                raise BenchFailed(
                    f"{model}: required it serving {release or 'a release'}, found {json.dumps(found)[:600]}"
                )
            time.sleep(0.05)


@contextlib.contextmanager
def running_node(folder: Path) -> Iterator[Node]:
    """A stack with nothing in it but the built-in models; all of it is gone afterwards."""
    folder.mkdir(parents=True)
    ports = dict(zip((*DOORS, *INNER, *BASELINE), map(str, _free_ports(len(DOORS | INNER | BASELINE))), strict=True))
    node = Node(folder, ports | {"ENGINE": "local", "RUN_DIR": str(folder), "BIND": "127.0.0.1", "API_KEY": ""})
    try:
        node.make("up")
        yield node
    finally:
        node.make("down")


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held until the last is found, so that none comes twice."""
    with contextlib.ExitStack() as held:
        found = []
        for _ in range(count):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
    return found
