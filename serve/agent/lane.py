"""One of the two things that a node may serve of a model, the current release or its canary, with all that came of it."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from serve.agent.desired import Wanted
from serve.agent.health import Health
from serve.agent.management import Management, TorchServeAway
from serve.agent.rollout import Rollout, StartTooSlow
from serve.agent.room import NotEnoughMemory
from serve.agent.routing import Target
from weightless.errors import AccessDenied, FetchFailed, NotEnoughDisk, StoreUnavailable, WeightlessError
from weightless.release import Release

log = logging.getLogger(__name__)

_RETRY_CAP_S: dict[type[WeightlessError], float] = {
    StoreUnavailable: 4.0,
    FetchFailed: 4.0,
    TorchServeAway: 4.0,
    AccessDenied: 30.0,
    NotEnoughDisk: 60.0,
    NotEnoughMemory: 60.0,
    StartTooSlow: 300.0,
}
_RECOVERY_CAP_S = 60.0


@dataclass(frozen=True)
class Refusal:
    """Why a wanted release does not serve. `retry_at` (monotonic seconds) None: not before something changes."""

    key: str
    release: str | None
    kind: str
    message: str
    since: datetime
    attempts: int
    retry_at: float | None

    @property
    def due(self) -> bool:
        return self.retry_at is not None and time.monotonic() >= self.retry_at


@dataclass(frozen=True)
class Served:
    """What a version was rolled out from."""

    target: Target
    wanted: Wanted
    release: Release


@dataclass(eq=False)
class Lane:
    """`lost` says why the version that serves needs another start. `good` is what served last, if anything did."""

    served: Served | None = None
    good: Served | None = None
    refusal: Refusal | None = None
    rollout: Rollout | None = None
    health: Health | None = None
    lost: str | None = None
    phases: dict[str, Any] | None = None
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    _watch: asyncio.Task[None] | None = None

    def serves(self, wanted: Wanted) -> bool:
        """Whether this is what serves, with nothing to be done about it."""
        return self.served is not None and self.served.wanted.key == wanted.key and self.lost is None

    def refused(self, wanted: Wanted) -> bool:
        """Whether this was refused, and it is not time for another try."""
        return self.refusal is not None and self.refusal.key == wanted.key and not self.refusal.due

    def known(self, wanted: Wanted) -> Release | None:
        """The manifest, where it has served before and needs no reading."""
        return self.good.release if self.good is not None and self.good.wanted.key == wanted.key else None

    def took_over(self, served: Served) -> None:
        self.served = self.good = served
        self.lost, self.since = None, datetime.now(UTC)

    def watch(self, management: Management, lost: Callable[[], None]) -> None:
        """Watch over the workers of what serves; `lost` is called when TorchServe will not bring them back."""
        assert self.served is not None
        self.stop_watching()
        node = self.served.wanted.node
        self.health = Health(self.served.target, node.workers, node.startup_timeout_s)
        self._watch = asyncio.create_task(self._watch_over(self.health, management, lost))

    async def _watch_over(self, health: Health, management: Management, lost: Callable[[], None]) -> None:
        self.lost = await health.watch(management)
        log.error("model %s: version %s is lost: %s", health.target.model, health.target.version, self.lost)
        if not health.workers:  # else the living serve on, until another version has taken over
            health.target.cut_off(self.lost)
        lost()

    def stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def forget(self) -> Target | None:
        """Nothing serves any more; the version that did."""
        self.stop_watching()
        target = self.served.target if self.served is not None else None
        self.served, self.lost, self.health, self.since = None, None, None, datetime.now(UTC)
        return target

    def refuse(self, wanted: Wanted | None, error: WeightlessError, recovering: bool) -> None:
        """Note why; with a time for another try where it may heal by itself, or where this release has served before."""
        key = wanted.key if wanted else ""
        before = self.refusal if self.refusal is not None and self.refusal.key == key else None
        attempts = before.attempts + 1 if before else 1
        cap = next((cap for kind, cap in _RETRY_CAP_S.items() if isinstance(error, kind)), None)
        cap = _RECOVERY_CAP_S if cap is None and recovering else cap
        self.refusal = Refusal(
            key=key,
            release=wanted.alias.release if wanted and wanted.alias else None,
            kind=type(error).__name__,
            message=str(error),
            since=before.since if before else datetime.now(UTC),
            attempts=attempts,
            retry_at=None if cap is None else time.monotonic() + min(2.0 ** min(attempts - 1, 10), cap),
        )
