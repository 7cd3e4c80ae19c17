"""Requests from a few threads while something is done to a server: without a pause, or at a rate that waits for no answer."""

import http.client
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.services import wait_for


@dataclass
class Traffic:
    """Ask one model the same again and again. `failures` holds everything that was not a whole 200 within `timeout`.

    `every`: begin a request each so many seconds, whether those before it are answered or not (open loop).
    """

    port: int
    model: str
    body: dict[str, Any]
    clients: int = 2
    timeout: float = 30.0
    every: float | None = None
    answers: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        work = [self._ask] * self.clients if self.every is None else [self._begin_each]
        self._threads = [threading.Thread(target=target) for target in work]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in list(self._threads):
            thread.join(self.timeout + 5)
        for thread in self._threads:  # begun before the stop
            thread.join(self.timeout + 5)

    def wait_for_more(self, release: str, count: int = 5, timeout: float = 30) -> None:
        """Wait until this release has given some more answers."""
        before = self.releases[release]
        wait_for(lambda: self.releases[release] >= before + count, f"{count} more answers of {release}", timeout)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        while not self._stop.is_set():
            self._one(connection)
        connection.close()

    def _begin_each(self) -> None:
        assert self.every is not None
        while not self._stop.wait(self.every):
            self._threads.append(threading.Thread(target=self._alone))
            self._threads[-1].start()

    def _alone(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        self._one(connection)
        connection.close()

    def _one(self, connection: http.client.HTTPConnection) -> None:
        began = time.monotonic()
        try:
            connection.request("POST", f"/predictions/{self.model}", json.dumps(self.body))
            response = connection.getresponse()
            said = response.read().decode()
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(repr(error))
            connection.close()
            return
        self.slowest = max(self.slowest, time.monotonic() - began)
        if response.status == 200 and "event: error" not in said:
            self.answers[said] += 1
            self.releases[response.headers["X-Weightless-Release"]] += 1
        else:
            self.failures.append(f"{response.status} {said}")
