"""The agent's HTTP API, as the commands use it."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import urllib3
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ReadTimeoutError

from commands.errors import AgentRefused, AgentUnavailable, RolloutFailed
from commands.settings import CommandSettings

POLL_SECONDS = 0.2
PATIENCE = 660.0  # seconds for an answer: what a model may take, and more
SETTLED = ("serving", "failed", "stopped")


@dataclass(frozen=True)
class Served:
    """What came of waiting: the release that is served, and after how many seconds."""

    release: str
    seconds: float


class Door:
    """A client of one agent. Raises AgentUnavailable when it does not answer, AgentRefused with its own message else."""

    def __init__(self, settings: CommandSettings) -> None:
        self.url = settings.url
        key = settings.key()
        # No proxy: those of the environment are for the outside world, never for the stack's own door.
        self._http = urllib3.PoolManager(headers={"Authorization": f"Bearer {key}"} if key else {}, retries=False)

    def status(self) -> dict[str, Any]:
        """The whole of GET /status."""
        found = self._json(self._request("GET", "/status", patience=10))
        if not isinstance(found, dict) or "models" not in found:
            raise self._stranger("/status")
        return found

    def predict(self, model: str, release: str | None, body: dict[str, Any]) -> tuple[Any, str]:
        """The answer, and the release that gave it."""
        answer = self._request("POST", _prediction(model, release), body)
        return self._json(answer), answer.headers.get("X-Weightless-Release", "")

    def stream(self, model: str, release: str | None, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The events of a streamed answer as they come."""
        with self._reached():
            answer = self._request("POST", _prediction(model, release), body, whole=False)
            for line in _lines(answer):
                if not line.startswith(b"data:"):
                    continue
                event = json.loads(line.removeprefix(b"data:"))
                if "error" in event:
                    raise AgentRefused(_message(event) or str(event))
                yield event

    def mar(self, model: str, release: str | None) -> bytes:
        """A slim MAR: pinned to the release (None: the one being served), or "serving" to follow the alias."""
        return self._request("GET", f"/mar/{model}", fields={"release": release} if release else None).data

    def retry(self, model: str) -> None:
        """Ask for another try of what was refused."""
        self._request("POST", f"/retry/{model}", patience=10)

    def wait(self, model: str, release: str, tell: Callable[[dict[str, Any]], None], timeout: float) -> Served:
        """Wait until the node serves a release; `tell` gets the model's entry of /status while it goes on.

        Raises:
            RolloutFailed: the node could not serve it, and says why; or it took longer than `timeout` seconds.
        """
        began = time.monotonic()
        while True:
            entry = self.status()["models"].get(model) or {}
            passed = time.monotonic() - began
            if entry.get("serving") == release and entry.get("wanted") in (release, None):
                return Served(release, passed)
            error = entry.get("error")
            if error and entry.get("wanted") == release and entry.get("state") in SETTLED:
                still = f"{entry['serving']} is still served" if entry.get("serving") else "nothing is served"
                raise RolloutFailed(f"{model} {release} is not served: {describe(error)}; {still}")
            if passed > timeout:
                raise RolloutFailed(
                    f"{model} {release} is not served after {timeout:.0f} s; make status shows what it waits for"
                )
            tell(entry)
            time.sleep(POLL_SECONDS)

    # ---- below

    def _request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        fields: Any = None,
        patience: float = PATIENCE,
        whole: bool = True,
    ) -> urllib3.BaseHTTPResponse:
        options: dict[str, Any] = {"timeout": urllib3.Timeout(connect=5, read=patience), "preload_content": whole}
        if body is not None:
            options["json"] = body
        with self._reached():
            answer = self._http.request(method, f"{self.url}{path}", fields=fields, **options)
            if answer.status < 400:
                return answer
            raw = answer.data
        if answer.status == 401:
            raise AgentRefused(f"the agent at {self.url} requires its API key; set API_KEY as in its .env")
        with contextlib.suppress(ValueError):
            if message := _message(json.loads(raw)):
                raise AgentRefused(message)
        raise self._stranger(path)

    def _json(self, answer: urllib3.BaseHTTPResponse) -> Any:
        try:
            return json.loads(answer.data)
        except ValueError:
            raise self._stranger("") from None

    def _stranger(self, path: str) -> AgentUnavailable:
        return AgentUnavailable(f"{self.url}{path}: something answered, but not like the agent; is AGENT_URL right?")

    @contextlib.contextmanager
    def _reached(self) -> Iterator[None]:
        """Turn urllib3's errors into ours."""
        try:
            yield
        except (NewConnectionError, ConnectTimeoutError):
            raise AgentUnavailable(f"no agent answers at {self.url}; start the stack with make up") from None
        except ReadTimeoutError:
            raise AgentUnavailable(f"the agent at {self.url} did not answer in time; make logs shows why") from None
        except HTTPError as error:
            raise AgentUnavailable(
                f"the connection to the agent at {self.url} broke ({error}); make logs shows why"
            ) from None


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[bytes]:
    """Lines of a streamed body as soon as they are whole."""
    rest = b""
    for chunk in answer.stream():
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines


def describe(error: Any) -> str:
    """The agent's word for what is wrong, from an entry of /status."""
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)


def _message(body: Any) -> str | None:
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict) or "message" not in error:
        return None
    field = error.get("field")
    return f"{field}: {error['message']}" if field and field not in str(error["message"]) else str(error["message"])


def _prediction(model: str, release: str | None) -> str:
    return f"/predictions/{model}/{release}" if release else f"/predictions/{model}"
