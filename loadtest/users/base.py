"""What every user of the front door shares: the host, the key, and one recorded request."""

import json
import time
from collections.abc import Callable
from random import Random
from typing import Any

from locust import FastHttpUser, constant
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS
from locust.exception import CatchResponseError

from loadtest.errors import LoadtestError
from loadtest.options import chosen
from loadtest.recorder import Outcome
from loadtest.session import Plan, Session, session_of
from loadtest.settings import LoadtestSettings


class DoorUser(FastHttpUser):  # type: ignore[misc]  # Locust ships no types for it
    """A user that sends predictions to the agent. One stays in one greenlet unless it has an arrival rate."""

    abstract = True
    host = LoadtestSettings.load().url
    wait_time = constant(0)
    connection_timeout = 5.0
    network_timeout = 120.0
    insecure = False
    path = "/predictions"
    session: Session
    plan: Plan
    model: str

    def choose(self, name: Callable[[Plan], str], task: str) -> None:
        """For on_start: take the run's plan and the model that it means.

        Raises:
            StopUser: no such model is served; the run ends.
        """
        self.session = session_of(self.environment)
        self.plan = self.session.plan(self.environment)
        self.random = Random()  # noqa: S311 (prompts and lengths, no secrets)
        try:
            self.model = chosen(name(self.plan), self.plan.status.ready(task), task, self.plan.agent.url)
        except LoadtestError as error:
            raise self.session.abort(self.environment, error) from error

    def predict_and_record(
        self,
        kind: str,
        body: dict[str, Any],
        read: Callable[["Exchange"], None],
        *,
        due: float | None = None,
        stream: bool = False,
    ) -> None:
        """POST a body and record the outcome once, in Locust's statistics and in ours.

        Args:
            read: takes the answer; raises ValueError if it is not what was asked for.
            due: `time.perf_counter()` of when the request should have gone out (open loop); latency counts from there.
        """
        due = time.perf_counter() if due is None else due
        headers = {**self.session.settings.headers(), "Accept": "text/event-stream" if stream else "application/json"}
        with self.client.post(
            f"{self.path}/{self.model}",
            json=body,
            headers=headers,
            name=f"{self.model} {kind}",
            catch_response=True,
            stream=stream,
        ) as response:
            exchange = Exchange(response, due)
            problem: str | None = None
            try:
                response.raise_for_status()
                read(exchange)
            except (*FAILURE_EXCEPTIONS, ValueError) as error:
                problem = _said(response) or f"{type(error).__name__}: {error}"
            latency_ms = (time.perf_counter() - due) * 1000
            response.request_meta["response_time"] = latency_ms
            if problem is None:
                response.success()
            else:
                response.failure(CatchResponseError(problem))
        release = (response.headers or {}).get("X-Weightless-Release") or self.plan.release(self.model)
        gaps = tuple(exchange.gaps_ms)
        outcome = Outcome(time.time(), latency_ms, problem is None, exchange.tokens, exchange.first_ms, gaps)
        self.session.recorder.record(kind, self.model, release, outcome)


class Exchange:
    """One answer while it is read: a user sets `tokens`, and marks tokens of a stream as they come."""

    def __init__(self, response: Any, began: float) -> None:
        self.response = response
        self.began = began
        self.tokens = 0
        self.first_ms: float | None = None
        self.gaps_ms: list[float] = []
        self._last = 0.0

    def json(self) -> Any:
        """The answer's body. Raises ValueError if it is not JSON."""
        return json.loads(self.response.content or b"")

    def token(self) -> None:
        """A token of a stream has arrived now."""
        now = time.perf_counter()
        if self.first_ms is None:
            self.first_ms = (now - self.began) * 1000
        else:
            self.gaps_ms.append((now - self._last) * 1000)
        self._last = now
        self.tokens += 1


def _said(response: Any) -> str | None:
    """The error that the agent wrote in its answer, `503 overloaded: …`, if there is one."""
    try:
        error = json.loads(response.content or b"")["error"]
        return f"{error['code']} {error['type']}: {error['message']}"
    except (*FAILURE_EXCEPTIONS, ValueError, KeyError, TypeError):
        return None
