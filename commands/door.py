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
class Wish:
    """What the alias says now, to be found in the model's entry of /status: a release, and its canary if it has one."""

    release: str
    canary: str | None = None
    percent: int = 0

    def granted(self, entry: dict[str, Any]) -> bool:
        """Whether it is served: the canary with its share, or the release and no canary."""
        canary = entry.get("canary")
        if self.canary is not None:
            return canary is not None and (canary.get("serving"), canary.get("share")) == (self.canary, self.percent)
        return entry.get("serving") == self.release and entry.get("wanted") in (self.release, None) and canary is None

    def refused(self, entry: dict[str, Any]) -> Any:
        """Why it is not served and will not be, None while it may."""
        canary = entry.get("canary") or {}
        settled = entry.get("wanted") == self.release and entry.get("state") in SETTLED
        if canary.get("release") != self.canary:
            return None  # the node does not know yet
        if self.canary is not None and entry.get("serving"):
            return canary.get("error") if not canary.get("step") else None
        return entry.get("error") if settled else None


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

    def refresh(self) -> None:
        """Say that an alias moved. An agent that cannot be told finds it at its next look, so nothing is raised."""
        with contextlib.suppress(AgentUnavailable, AgentRefused):
            self._request("POST", "/refresh", patience=2)

    def wait(self, model: str, wish: Wish, tell: Callable[[dict[str, Any]], None], timeout: float) -> float:
        """Wait until the node serves what was wished, and return the seconds; `tell` gets what is going on meanwhile.

        Raises:
            RolloutFailed: the node could not serve it, and says why; or it took longer than `timeout` seconds.
        """
        began = time.monotonic()
        what = f"{model} {wish.canary or wish.release}" + (" as canary" if wish.canary else "")
        while True:
            entry = self.status()["models"].get(model) or {}
            passed = time.monotonic() - began
            if wish.granted(entry):
                return passed
            if error := wish.refused(entry):
                still = f"{entry['serving']} is still served" if entry.get("serving") else "nothing is served"
                raise RolloutFailed(f"{what} is not served: {describe(error)}; {still}")
            if passed > timeout:
                raise RolloutFailed(f"{what} is not served after {timeout:.0f} s; make status shows what it waits for")
            tell((entry.get("canary") or {}) if wish.canary else entry)
            time.sleep(min(POLL_SECONDS, 0.02 + passed / 10))

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
            raise AgentRefused(
                f"the agent at {self.url} requires its API key; set API_KEY or API_KEY_FILE to the key that it was started with"
            )
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
