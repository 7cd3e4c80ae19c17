"""Watches the workers of a version that serves, and says when TorchServe will not bring them back.

TorchServe starts a dead worker again for half a minute (after 1, 1, 2, 3, 5, 8 s) and then never; it stays listed, and requests
to it hang. Looking whether the processes live costs nothing, so TorchServe is asked only when one does not, or now and then.
"""

import asyncio
import time
from dataclasses import dataclass, field

from serve.agent.children import alive
from serve.agent.management import Management, TorchServeAway, Worker
from serve.agent.routing import Target

LOOK_S = 1.0  # between two looks at the processes
LOOK_CLOSER_S = 0.2  # while one is missing
ASK_S = 15.0  # between two questions to TorchServe while all is well
GRACE_S = 4.0  # how long requests may wait in TorchServe's queue for a worker that is coming back
GAVE_UP_S = 15.0  # longer than any pause between TorchServe's own attempts


@dataclass
class Health:
    """One version's workers. `workers` are those that are READY, by the last look."""

    target: Target
    expected: int
    startup_timeout_s: float
    workers: list[Worker] = field(default_factory=list)
    _none_since: float | None = None
    _fewer_since: float | None = None
    _dead_since: float | None = None

    async def watch(self, management: Management) -> str:
        """Watch until the version is lost; returns why. While no worker is READY the version takes no requests."""
        asked = float("-inf")
        while True:
            now = time.monotonic()
            complete = len(self.workers) >= self.expected and all(alive(worker.pid) for worker in self.workers)
            if not complete or now - asked > ASK_S:
                try:
                    found = await management.workers(self.target.model, self.target.version)
                except TorchServeAway:
                    found = []  # if it is gone for good, its supervisor says so
                asked = time.monotonic()
                if found is None:
                    self.workers = []
                    return "TorchServe does not know it any more"
                lost = self.look_at(found, asked)
                if lost:
                    return lost
            await asyncio.sleep(LOOK_S if self._fewer_since is None else LOOK_CLOSER_S)

    def look_at(self, found: list[Worker], now: float) -> str | None:
        """Take in what TorchServe says; returns why the version is lost, if it is."""
        self.workers = [worker for worker in found if worker.ready and alive(worker.pid)]
        if len(self.workers) >= self.expected:
            self._none_since = self._fewer_since = self._dead_since = None
            self.target.down = None
            return None
        self._fewer_since = self._fewer_since or now
        self._none_since = None if self.workers else self._none_since or now
        starting = any(not worker.ready and alive(worker.pid) for worker in found)
        self._dead_since = None if starting else self._dead_since or now
        if self.workers:
            self.target.down = None
        elif self._none_since is not None and now - self._none_since > GRACE_S and self.target.down is None:
            self.target.cut_off("its worker died and is being started again")
        if self._dead_since is not None and now - self._dead_since > GAVE_UP_S:
            return "its worker died, and TorchServe does not start it again"
        if now - self._fewer_since > self.startup_timeout_s + GAVE_UP_S:
            return f"its worker died, and another was not READY within {self.startup_timeout_s:.0f} s"
        return None
