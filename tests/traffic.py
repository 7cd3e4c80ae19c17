"""Requests without a pause from a few threads, each on a connection of its own, while something is done to a server."""

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
    """Ask one model the same again and again. `failures` holds everything that was not a 200 within `timeout`."""

    port: int
    model: str
    body: dict[str, Any]
    clients: int = 2
    timeout: float = 30.0
    answers: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._threads = [threading.Thread(target=self._ask) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(self.timeout + 5)

    def wait_for_more(self, release: str, count: int = 5, timeout: float = 30) -> None:
        """Wait until this release has given some more answers."""
        before = self.releases[release]
        wait_for(lambda: self.releases[release] >= before + count, f"{count} more answers of {release}", timeout)

    def _ask(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=self.timeout)
        raw = json.dumps(self.body)
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                connection.request("POST", f"/predictions/{self.model}", raw)
                response = connection.getresponse()
                said = response.read().decode()
            except OSError as error:
                self.failures.append(repr(error))
                connection.close()
                continue
            self.slowest = max(self.slowest, time.monotonic() - began)
            if response.status == 200:
                self.answers[said] += 1
                self.releases[response.headers["X-Weightless-Release"]] += 1
            else:
                self.failures.append(f"{response.status} {said}")
        connection.close()
