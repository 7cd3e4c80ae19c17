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
from email.message import Message
from pathlib import Path
from typing import Any

from loadtest.bench.experiment import BenchFailed
from loadtest.bench.server import ROOT
from local.config import BASELINE, DOORS, INNER, known_settings
from weightless.settings import StoreSettings

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

    @property
    def management(self) -> str:
        """TorchServe's management port behind the door."""
        return f"http://127.0.0.1:{self.env['TORCHSERVE_MANAGEMENT_PORT']}"

    @property
    def store(self) -> StoreSettings:
        """The stack's MinIO, with the root user's keys: they may read its counters."""
        keys = self.run / "secrets" / "minio"
        access_key, secret_key = ((keys / name).read_text().strip() for name in ("access_key", "secret_key"))
        endpoint = f"http://127.0.0.1:{self.env['MINIO_PORT']}"
        return StoreSettings.model_validate(
            {"s3_endpoint": endpoint, "s3_access_key": access_key, "s3_secret_key": secret_key}
        )

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
        found: dict[str, Any] = json.loads(self._answer(method, path, body, timeout_s)[0])
        return found

    def _answer(self, method: str, path: str, body: object, timeout_s: float) -> tuple[bytes, Message]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.agent}{path}", data, headers, method=method)  # noqa: S310  # our own
        try:
            with _DIRECT.open(request, timeout=timeout_s) as answer:
                return answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            raise BenchFailed(f"{method} {path}: the agent answered {error.code}: {error.read()[:500]!r}") from None
        except OSError as error:
            raise BenchFailed(f"{method} {path}: no answer from the agent: {error}") from None

    def answered_by(self, model: str, prompt: str) -> str:
        """Ask the model for one token; the release that gave it.

        Raises:
            BenchFailed: no answer, or an error.
        """
        body = {"input": prompt, "parameters": {"max_new_tokens": 1, "do_sample": False}}
        return str(self._answer("POST", f"/predictions/{model}", body, 600)[1]["X-Weightless-Release"])

    def status(self) -> dict[str, Any]:
        return self.ask("GET", "/status", timeout_s=30)

    def wait_serving(
        self, model: str, release: str | None = None, *, timeout_s: float = 900, look_s: float = 0.05
    ) -> None:
        """Until the model answers, with that release if one is named; `look_s` passes between two looks."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self.status()["models"].get(model, {})
            if found.get("state") == "serving" and release in (None, found.get("serving")):
                return
            if found.get("state") == "failed" or time.monotonic() > deadline:
                raise BenchFailed(
                    f"{model}: required it serving {release or 'a release'}, found {json.dumps(found)[:600]}"
                )
            time.sleep(look_s)


@contextlib.contextmanager
def running_node(folder: Path, **settings: str) -> Iterator[Node]:
    """A stack with nothing in it but the built-in models; all of it is gone afterwards. `settings`: as in `.env`."""
    folder.mkdir(parents=True)
    node = Node(folder, own_settings(folder) | settings)
    try:
        node.make("up")
        yield node
    finally:
        node.make("down")


def own_settings(folder: Path) -> dict[str, str]:
    """The shipped settings on ports of its own, whatever .env says: the store and the cache that it names are not ours."""
    ports = dict(zip((*DOORS, *INNER, *BASELINE), map(str, _free_ports(len(DOORS | INNER | BASELINE))), strict=True))
    shipped = dict.fromkeys(known_settings(), "")
    return shipped | ports | {"ENGINE": "local", "RUN_DIR": str(folder), "BIND": "127.0.0.1"}


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on; all are held until the last is found, so that none comes twice."""
    with contextlib.ExitStack() as held:
        found = []
        for _ in range(count):
            probe = held.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(int(probe.getsockname()[1]))
    return found
