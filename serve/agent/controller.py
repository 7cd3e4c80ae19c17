"""One model, kept as the alias says. The states that `/status` shows:

    stopped   no alias, or TorchServe is away: nothing serves
    fetching  a rollout is bringing the release into the cache      (an old release may be serving all the while)
    starting  a rollout is past that: building, registering, testing; or TorchServe brings a dead worker back
    serving   a release answers; `error` says whether the wanted one was refused
    failed    no release answers, and `error` says why

What is done is decided from what is wanted and what serves, every time something changed (the alias, the node's file, a worker's
end, TorchServe's return, `retry`), so that any of it may be repeated or cut off:

    wanted nothing                       → drain what serves, unregister it
    wanted = serving, workers live       → nothing
    wanted was refused, not yet to retry → nothing; if nothing serves, roll out what this node served last
    else                                 → roll out; a change meanwhile cancels the rollout

A refusal stands until the alias or the node's file changes or somebody asks to retry. Only what may heal by itself is tried again
unasked, with a pause that doubles: the store away, a full disk, a machine too busy to load in time, workers of a release that
served before.
"""

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from serve.agent.desired import Wanted
from serve.agent.health import Health
from serve.agent.management import TorchServeAway
from serve.agent.metrics import DoorMetrics
from serve.agent.rollout import Rollout, StartTooSlow, Step, Tools
from serve.agent.routing import Route, Target
from weightless.errors import AccessDenied, FetchFailed, NotEnoughDisk, StoreUnavailable, WeightlessError
from weightless.release import Alias, Release

log = logging.getLogger(__name__)

_RETRY_CAP_S: dict[type[WeightlessError], float] = {
    StoreUnavailable: 4.0,
    FetchFailed: 4.0,
    TorchServeAway: 4.0,
    AccessDenied: 30.0,
    NotEnoughDisk: 60.0,
    StartTooSlow: 300.0,
}
_RECOVERY_CAP_S = 60.0
_MAX_RETIRING = 2  # old versions draining at once; a third rollout waits, or memory would fill with releases


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


@dataclass(frozen=True)
class Served:
    """What a version was rolled out from."""

    target: Target
    wanted: Wanted
    release: Release


class Controller:
    """Drives one model. `tell` is given what is wanted; `torchserve` says whether TorchServe is up."""

    def __init__(self, model: str, tools: Tools, route: Route, slots: asyncio.Semaphore, metrics: DoorMetrics) -> None:
        self.model = model
        self.route = route
        self.refusal: Refusal | None = None
        self.since = datetime.now(UTC)
        self.phases: dict[str, Any] | None = None
        self.rollout: Rollout | None = None
        self.health: Health | None = None
        self._tools = tools
        self._slots = slots
        self._metrics = metrics
        self._wanted: Wanted | None = None
        self._served: Served | None = None
        self._last_good: Served | None = None
        self._up = False
        self._lost: str | None = None
        self._fell_back_from: str | None = None  # the key of the refused thing
        self._versions: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._watch: asyncio.Task[None] | None = None
        self._retiring: set[asyncio.Task[None]] = set()

    # ---- what others tell it

    def tell(self, wanted: Wanted | None) -> None:
        self._wanted = wanted
        self._wake.set()

    def torchserve(self, up: bool) -> None:
        """TorchServe came up with nothing registered, or went away and everything with it."""
        self._up = up
        if self._served is not None:
            self._served.target.cut_off("TorchServe is starting again")
        self._forget_served("TorchServe is starting")
        for task in self._retiring:
            task.cancel()
        self._versions.clear()
        self._fell_back_from = None
        self._wake.set()

    def retry(self) -> None:
        """Try again what was refused."""
        self.refusal = None
        self._wake.set()

    # ---- what it says

    @property
    def wanted(self) -> Wanted | None:
        return self._wanted

    @property
    def state(self) -> str:
        if self.rollout is not None:
            return "fetching" if self.rollout.step in (Step.RESOLVE, Step.FETCH) else "starting"
        if self.route.answering is not None:
            return "serving"
        if self.refusal is not None:
            return "failed"
        return "starting" if self._wanted is not None and self._up else "stopped"

    # ---- the loop

    async def run(self) -> None:
        """Decide and act until cancelled."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self._decide()
                except WeightlessError as error:  # what no step expected: say it, and look again in a while
                    log.exception("model %s", self.model)
                    self._refuse(self._wanted, error, recovering=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._pause())
        finally:
            self._stop_watching()
            for task in self._retiring:
                task.cancel()

    def _pause(self) -> float | None:
        at = self.refusal.retry_at if self.refusal is not None else None
        return None if at is None else max(at - time.monotonic(), 0.05)

    async def _decide(self) -> None:
        wanted, served = self._wanted, self._served
        if not self._up:
            return
        if wanted is None:
            self.refusal = None
            await self._take_out("its alias was removed")
            return
        if served is not None and served.wanted.key == wanted.key and self._lost is None:
            self.refusal = None
            return
        if self.refusal is not None and self.refusal.key == wanted.key and not self._due(self.refusal):
            await self._fall_back(wanted)
            return
        good = self._last_good
        known = good.release if good is not None and good.wanted.key == wanted.key else None
        await self._roll_out(wanted, known, recovering=known is not None)

    @staticmethod
    def _due(refusal: Refusal) -> bool:
        return refusal.retry_at is not None and time.monotonic() >= refusal.retry_at

    async def _roll_out(self, wanted: Wanted, known: Release | None, recovering: bool) -> None:
        """Roll out, unless something changes meanwhile; then the loop decides anew."""
        while len(self._retiring) >= _MAX_RETIRING:
            await asyncio.wait(self._retiring, return_when=asyncio.FIRST_COMPLETED)
        name = wanted.alias.release if wanted.alias else "?"
        rollout = Rollout(self._tools, wanted, self.route, self._next_version(name), self._retire, known)
        async with self._slots:
            self.rollout = rollout
            work = asyncio.create_task(rollout.run())
            try:
                if not await self._undisturbed(work, wanted):
                    self._metrics.rollout(self.model, "superseded")
                    return
                await self._took_over(rollout, work.result())
            except WeightlessError as error:
                self._metrics.rollout(self.model, "refused")
                self._refuse(wanted, error, recovering)
                self._wake.set()  # decide anew: what to fall back to, or when to retry
            finally:
                self.rollout = None
                work.cancel()
                if self.route.current is None and self._served is not None:
                    self._forget_served("its release was taken away for another, which did not come up")

    async def _undisturbed(self, work: asyncio.Task[Target], wanted: Wanted) -> bool:
        """Wait for the rollout; False, and cancelled, as soon as another thing is wanted or TorchServe went away."""
        while not work.done():
            woken = asyncio.create_task(self._wake.wait())
            await asyncio.wait({work, woken}, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            self._wake.clear()
            other = self._wanted is None or self._wanted.key != wanted.key
            if (other or not self._up) and not work.done():
                work.cancel()
                await asyncio.wait({work})
                self._wake.set()
                return work.done() and not work.cancelled() and work.exception() is None
        return True

    async def _took_over(self, rollout: Rollout, target: Target) -> None:
        assert rollout.release is not None
        old = self._served.target if self._served is not None else None
        was_lost, self._lost = self._lost is not None, None
        self._served = self._last_good = Served(target, rollout.wanted, rollout.release)
        self.refusal, self.since = None, datetime.now(UTC)
        self.phases = await asyncio.to_thread(rollout.phases)
        await asyncio.to_thread(self._tools.memory.remember, rollout.release)
        self._metrics.rollout(self.model, "serving")
        log.info("model %s: %s serves (version %s)", self.model, target.release, target.version)
        self._stop_watching()
        node = rollout.wanted.node
        self.health = Health(target, node.workers, node.startup_timeout_s)
        self._watch = asyncio.create_task(self._watch_over(self.health))
        if old is not None and old is not target:
            if was_lost:
                old.cut_off("its worker died")
            self._retire_later(old)

    # ---- failure

    def _refuse(self, wanted: Wanted | None, error: WeightlessError, recovering: bool) -> None:
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
            retry_at=None if cap is None else time.monotonic() + min(2.0 ** (attempts - 1), cap),
        )
        if self.route.current is None:
            self.route.why = str(error)
        log.error("model %s: %s refused: %s", self.model, self.refusal.release, error)

    async def _fall_back(self, wanted: Wanted) -> None:
        """With nothing serving, bring back what served before the refused release: since the start, or on this node at all."""
        if self.route.current is not None:
            return
        if self._fell_back_from == wanted.key:
            return  # once: if that fails too, it is not tried again and again
        self._fell_back_from = wanted.key
        good = (
            self._last_good.release
            if self._last_good
            else await asyncio.to_thread(self._tools.memory.recall, self.model)
        )
        alias = wanted.alias
        if good is None or good.manifest_version is None or (alias and good.digest == alias.digest):
            return
        refusal = self.refusal
        node = self._last_good.wanted.node if self._last_good else wanted.node
        log.info("model %s: falling back to %s", self.model, good.name)
        await self._roll_out(Wanted(self.model, Alias.of(good), node), good, recovering=False)
        self.refusal = refusal

    async def _watch_over(self, health: Health) -> None:
        self._lost = await health.watch(self._tools.management)
        log.error("model %s: version %s is lost: %s", self.model, health.target.version, self._lost)
        health.target.cut_off(self._lost)
        self._wake.set()

    # ---- the way out

    async def _take_out(self, why: str) -> None:
        served = self._served
        if served is None:
            return
        self._forget_served(why)
        await asyncio.to_thread(self._tools.memory.forget, self.model)
        self._retire_later(served.target)

    def _forget_served(self, why: str) -> None:
        self._stop_watching()
        self._served, self._lost, self.health = None, None, None
        self.route.current, self.route.why = None, why
        self.since = datetime.now(UTC)

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def _retire_later(self, old: Target) -> None:
        task = asyncio.create_task(self._retire(old))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def _retire(self, old: Target) -> None:
        """Drain a version that no request is routed to any more, within its response timeout, and unregister it."""
        if not await old.drained(old.response_timeout_s):
            log.warning(
                "model %s: %s still had %d requests in flight when its time was up",
                old.model,
                old.version,
                old.inflight,
            )
            old.cut_off("its release was replaced")
        try:
            current = self.route.current
            if current is not None and current is not old:
                await self._tools.management.set_default(current.model, current.version)  # else the old may not go
            await self._tools.management.unregister(old.model, old.version)
        except WeightlessError as error:
            log.warning("unregistering %s %s: %s", old.model, old.version, error)
        (self._tools.settings.model_store / f"{old.model}--{old.version}.mar").unlink(missing_ok=True)

    def _next_version(self, release: str) -> str:
        count = self._versions[release] = self._versions.get(release, 0) + 1
        return release if count == 1 else f"{release}.{count}"
