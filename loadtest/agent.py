"""The agent's HTTP API as a load test sees it: what is served, and starts made on demand.

Speaks through geventhttpclient, as Locust's fast user does: it never blocks the hub, and no proxy of the environment comes
between the test and what it measures.
"""

import contextlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import gevent
from geventhttpclient import HTTPClient
from geventhttpclient.url import URL

from loadtest.coldstart import Arm, ColdStart
from loadtest.errors import (
    AgentBusy,
    AgentRefused,
    AgentUnreachable,
    BaselineNotRunning,
    ColdStartFailed,
    LoadtestError,
    ModelNotServed,
)

CONNECT_SECONDS = 5.0
STATUS_SECONDS = 5.0
COLD_START_SECONDS = 3600.0  # an archive of 14 GB takes 20 minutes to build before it starts


@dataclass(frozen=True)
class Served:
    """A model as /status tells it."""

    name: str
    state: str
    task: str | None
    release: str | None
    digest: str | None

    @property
    def ready(self) -> bool:
        return self.state == "serving" and self.release is not None


@dataclass(frozen=True)
class Status:
    """The agent's /status, with what a load test needs picked out of it; `raw` is all of it."""

    version: str
    models: tuple[Served, ...]
    raw: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> "Status":
        models = tuple(
            Served(name, m.get("state", "unknown"), m.get("task"), m.get("serving"), m.get("digest"))
            for name, m in sorted(raw.get("models", {}).items())
        )
        return cls(str(raw.get("version", "unknown")), models, raw)

    def ready(self, task: str) -> list[str]:
        """Names of the models of that task that answer now."""
        return [model.name for model in self.models if model.ready and model.task == task]

    def model(self, name: str) -> Served | None:
        return next((model for model in self.models if model.name == name), None)


class Agent:
    """One agent. Cheap to make; each call opens a connection of its own."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self.url = url.rstrip("/")
        self._headers = dict(headers)

    def status(self, timeout: float = STATUS_SECONDS) -> Status:
        """What is served now.

        Raises:
            AgentUnreachable, AgentRefused, LoadtestError: with what to do.
        """
        code, answer = self._call("GET", "/status", None, timeout)
        if code != HTTPStatus.OK:
            raise self._error(code, answer, "GET /status")
        return Status.of(answer)

    def cold_start(self, arm: Arm, model: str, release: str | None, number: int, prompt: str) -> ColdStart:
        """Start `model` once in the way of `arm` and wait for its first token.

        Raises:
            AgentBusy, BaselineNotRunning, ModelNotServed, ColdStartFailed, AgentUnreachable, AgentRefused.
        """
        body = {"model": model, "release": release, "prompt": prompt, **arm.order()}
        at = time.time()
        code, answer = self._call("POST", "/coldstart", body, COLD_START_SECONDS)
        if code != HTTPStatus.OK:
            raise self._error(code, answer, f"starting {model} ({arm.title})")
        return ColdStart(
            arm=arm.name,
            model=answer["model"],
            round=number,
            at=at,
            release=answer["release"],
            digest=answer.get("digest"),
            ready_s=answer["ready_s"],
            first_s=answer.get("first_s"),
            build_s=answer.get("build_s"),
            archive_bytes=answer.get("archive_bytes"),
            bytes_from_store=answer.get("bytes_from_store"),
            store_sent_bytes=answer.get("store_sent_bytes"),
            disk_bytes=answer.get("disk_bytes"),
            peak_memory_bytes=answer.get("peak_memory_bytes"),
            link_bytes_per_s=answer.get("link_bytes_per_s"),
            retries=answer.get("retries"),
            forked=answer.get("forked"),
            phases={name: float(seconds) for name, seconds in (answer.get("phases") or {}).items()},
        )

    def cold_start_progress(self) -> str:
        """What the agent is at, in words; empty where it cannot be asked now."""
        try:
            code, told = self._call("GET", "/coldstart", None, STATUS_SECONDS)
        except AgentUnreachable:
            return ""
        if code != HTTPStatus.OK or not told.get("busy"):
            return ""
        progress = told.get("progress")
        written = (
            f", {progress['done'] / 1e6:,.0f} of about {progress['total'] / 1e6:,.0f} MB written" if progress else ""
        )
        return f"{told['doing']}{written}"

    def releases(self, timeout: float = STATUS_SECONDS) -> dict[str, list[str]]:
        """Models that could be started, each with its releases, newest first; empty while a start is under way.

        Raises:
            AgentUnreachable.
        """
        _, told = self._call("GET", "/coldstart", None, timeout)
        return dict(told.get("releases") or {})

    def hold(self, model: str) -> str:
        """Have an embedded form of the model registered on the baseline, to be asked at /baseline/<model>; its release.

        Raises:
            BaselineNotRunning, ModelNotServed, ColdStartFailed, AgentUnreachable, AgentRefused.
        """
        code, answer = self._call("PUT", f"/baseline/{model}", {}, COLD_START_SECONDS)
        if code != HTTPStatus.OK:
            raise self._error(code, answer, f"registering {model} on the baseline")
        return str(answer["release"])

    def let_go(self, model: str) -> None:
        """End that; an agent that is away has nothing to end."""
        with contextlib.suppress(AgentUnreachable):
            self._call("DELETE", f"/baseline/{model}", None, STATUS_SECONDS)

    def _call(self, method: str, path: str, body: Any, timeout: float) -> tuple[int, dict[str, Any]]:
        url = URL(self.url)
        client = HTTPClient.from_url(url, connection_timeout=min(CONNECT_SECONDS, timeout), network_timeout=timeout)
        payload = b"" if body is None else json.dumps(body).encode()
        headers = {**self._headers, "Content-Type": "application/json", "Accept": "application/json"}
        try:
            response = client.request(method, url.path.rstrip("/") + path, body=payload, headers=headers)
            code, raw = int(response.status_code), bytes(response.read())
        except (OSError, ValueError, gevent.Timeout) as error:
            raise AgentUnreachable(
                f"required the agent at {self.url}, found: {error or type(error).__name__}; start the stack with "
                "`make up`, or set AGENT_URL"
            ) from error
        finally:
            client.close()
        try:
            answer = json.loads(raw or b"{}")
        except ValueError:
            answer = {"error": {"message": raw[:200].decode(errors="replace")}}
        return code, answer if isinstance(answer, dict) else {"error": {"message": str(answer)[:200]}}

    def _error(self, code: int, answer: Mapping[str, Any], doing: str) -> LoadtestError:
        error = answer.get("error")
        details = error if isinstance(error, dict) else {"message": error}
        kind, said = str(details.get("type", "")), str(details.get("message") or HTTPStatus(code).phrase)
        if code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return AgentRefused(f"{doing}: the agent at {self.url} wants another key: {said}; set API_KEY")
        if kind == "no_baseline":
            return BaselineNotRunning(f"{doing}: {said}")
        if code == HTTPStatus.CONFLICT:
            return AgentBusy(f"{doing}: {said}")
        if code == HTTPStatus.NOT_FOUND:
            return ModelNotServed(f"{doing}: {said}")
        return ColdStartFailed(f"{doing}: the agent answered {code}: {said}")
