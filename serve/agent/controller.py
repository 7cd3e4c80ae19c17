"""One model, kept as the alias says: the release that it names, and beside it the canary, if it names one. The states in `/status`:

    stopped   no alias, or TorchServe is away: nothing serves
    fetching  a rollout is bringing the release into the cache      (an old release may be serving all the while)
    starting  a rollout is past that: building, registering, testing; or TorchServe brings a dead worker back
    serving   a release answers; `error` says whether the wanted one was refused
    failed    no release answers, and `error` says why

What is done is decided from what is wanted and what serves, every time something changed (the alias, the node's file, a worker's
end, TorchServe's return, `retry`), so that any of it may be repeated or cut off:

    wanted nothing                       → drain what serves, unregister it
    wanted = canary, workers live        → one assignment: the canary becomes the current one
    wanted = serving, workers live       → nothing
    wanted was refused, not yet to retry → nothing; if nothing serves (any more), roll out what this node served last
    else                                 → roll out; a change meanwhile cancels the rollout

and then, where a release serves, the same for its canary, which takes nothing from it but its share of the requests: a canary
that is refused or lost leaves everything to the current one.

A refusal stands until the alias or the node's file changes or somebody asks to retry. Only what may heal by itself is tried again
unasked, with a pause that doubles: the store away, a full disk, a machine too busy to load in time, workers of a release that
served before.
"""

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Callable
from typing import Any

from serve.agent.desired import Wanted
from serve.agent.lane import Lane, Served
from serve.agent.management import ManagementError, TorchServeAway
from serve.agent.metrics import DoorMetrics
from serve.agent.rollout import Rollout, Step, Tools
from serve.agent.routing import Route, Target
from weightless.errors import WeightlessError
from weightless.release import Alias, Release

log = logging.getLogger(__name__)

_UNREGISTER_S = 60.0  # for others to be gone first, which may be waiting for this one
_MAX_RETIRING = 2  # old versions draining at once; a third rollout waits, or memory would fill with releases


class CanaryRefused(WeightlessError):
    """A model that does not fit twice cannot have a canary."""


class Controller:
    """Drives one model. `tell` is given what is wanted; `torchserve` says whether TorchServe is up."""

    def __init__(self, model: str, tools: Tools, route: Route, slots: asyncio.Semaphore, metrics: DoorMetrics) -> None:
        self.model = model
        self.route = route
        self.current = Lane()
        self.canary = Lane()
        self._tools = tools
        self._slots = slots
        self._metrics = metrics
        self._wanted: Wanted | None = None
        self._up = False
        self._life = 0  # TorchServe's: what was registered in another is gone
        self._fallback = Lane()  # why what served before a refused release did not come back
        self._versions: dict[str, int] = {}
        self._wake = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()
        self._starting: asyncio.Task[Target] | None = None  # the rollout under way

    # ---- what others tell it

    def tell(self, wanted: Wanted | None) -> None:
        self._wanted = wanted
        self._wake.set()

    def torchserve(self, up: bool) -> None:
        """TorchServe came up with nothing registered, or went away and everything with it."""
        self._up = up
        self._life += 1
        for target in self.route.targets:
            target.cut_off("TorchServe is starting again")
        self.canary.forget()
        self.current.forget()
        self.route.current, self.route.canary, self.route.why = None, None, "TorchServe is starting"
        for task in self._retiring:
            task.cancel()
        self._versions.clear()
        self._fallback = Lane()
        self._wake.set()

    def retry(self) -> None:
        """Try again what was refused."""
        self.current.refusal = self.canary.refusal = self._fallback.refusal = None
        self._wake.set()

    # ---- what it says

    @property
    def wanted(self) -> Wanted | None:
        return self._wanted

    @property
    def state(self) -> str:
        rollout = self.current.rollout
        if rollout is not None:
            return "fetching" if rollout.step in (Step.RESOLVE, Step.FETCH) else "starting"
        if self.route.answering is not None:
            return "serving"
        if self.current.refusal is not None:
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
                except Exception as error:  # what no step expected: say it, and look again in a while
                    log.exception("model %s", self.model)
                    self._refuse(self.current, self._wanted, _ours(error), recovering=True)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), self._pause())
        finally:
            self.current.stop_watching()
            self.canary.stop_watching()
            for task in self._retiring:
                task.cancel()

    def _pause(self) -> float | None:
        """Seconds until a refusal may be tried again, None if none is."""
        times = [
            lane.refusal.retry_at for lane in (self.current, self.canary, self._fallback) if lane.refusal is not None
        ]
        due = [at for at in times if at is not None]
        return max(min(due) - time.monotonic(), 0.05) if due else None

    async def _decide(self) -> None:
        wanted = self._wanted
        if not self._up:
            return
        if wanted is None:
            self.current.refusal = self.canary.refusal = None
            self._end_canary()
            await self._take_out("its alias was removed")
            return
        if self.canary.serves(wanted):
            await self._promote_canary(wanted)
        elif not self._may_stay(wanted):
            self._end_canary()
        await self._settle_current(wanted)
        if not self._wake.is_set() and wanted.canary is not None and self.route.current is not None:
            await self._settle_canary(wanted.canary)

    # ---- the release that the alias names

    async def _settle_current(self, wanted: Wanted) -> None:
        lane = self.current
        if lane.serves(wanted):
            lane.refusal = None
        elif lane.refused(wanted):
            await self._fall_back(wanted)
        else:
            known = lane.known(wanted)
            error = await self._roll_out(lane, wanted, known, lambda: self._still(wanted))
            if error is not None:
                self._refuse(lane, wanted, error, recovering=known is not None)
                self._wake.set()  # decide anew: what to fall back to, or when to retry
            elif lane.serves(wanted):
                lane.refusal = None

    async def _fall_back(self, wanted: Wanted) -> None:
        """With nothing serving, bring back what served before the refused release: since the start, or on this node at all."""
        if self.current.served is not None and self.current.lost is None:
            return
        last = self.current.good
        good = last.release if last else await asyncio.to_thread(self._tools.memory.recall, self.model)
        if good is None or good.manifest_version is None or (wanted.alias and good.digest == wanted.alias.digest):
            return
        before = Wanted(self.model, Alias.of(good), last.wanted.node if last else wanted.node)
        if self._fallback.refused(before):
            return
        log.info("model %s: falling back to %s", self.model, good.name)
        refusal = self.current.refusal
        error = await self._roll_out(
            self.current, before, good, lambda: self._still(wanted) and self.current.refusal is refusal
        )
        if error is not None:
            log.error("model %s: %s did not come back: %s", self.model, good.name, error)
            self._fallback.refuse(before, error, recovering=True)
        else:
            self._fallback.refusal = None

    def _still(self, wanted: Wanted) -> bool:
        return self._wanted is not None and self._wanted.key == wanted.key

    # ---- its canary

    def _may_stay(self, wanted: Wanted) -> bool:
        """Whether the canary that serves, if one does, is of the release that should be tried. What cannot be read ends nothing."""
        served, tried = self.canary.served, wanted.canary
        if wanted.alias is None:
            return True
        if tried is None or tried.alias is None:
            return served is None and self.canary.refusal is None
        return served is None or (tried.alias.same_as(served.wanted.alias) and wanted.node.rollout != "recreate")

    async def _settle_canary(self, tried: Wanted) -> None:
        lane = self.canary
        self._share()
        if lane.serves(tried) or lane.refused(tried):
            return
        if tried.node.rollout == "recreate":
            refused = CanaryRefused(
                f"model {self.model}: a canary runs beside the release that serves, and this node says rollout: recreate, "
                "for a model that does not fit twice; end the canary with PERCENT=0, and promote"
            )
            self._refuse(lane, tried, refused, recovering=False)
            return
        current, known = self.current.served, lane.known(tried)

        def still() -> bool:
            wanted = self._wanted
            same = wanted is not None and wanted.canary is not None and wanted.canary.key == tried.key
            return same and self.current.served is current and self.current.lost is None

        error = await self._roll_out(lane, tried, known, still)
        if error is not None:
            self._refuse(lane, tried, error, recovering=known is not None)
        elif lane.serves(tried):
            lane.refusal = None

    def _share(self) -> None:
        """Give the canary the share that is wanted now."""
        self.route.percent = self._wanted.percent if self._wanted is not None else 0

    async def _promote_canary(self, wanted: Wanted) -> None:
        """The canary is what is wanted now: no start, no smoke test, it has answered clients."""
        old, promoted = self.current.forget(), self.canary
        assert promoted.served is not None
        self.route.current, self.route.canary = promoted.served.target, None
        self.current, self.canary = promoted, Lane()
        self._retire_later(old)
        log.info("model %s: the canary %s serves alone", self.model, promoted.served.target.release)
        await self._note(promoted.served.release)

    def _end_canary(self) -> None:
        self.route.canary = None
        ended, self.canary = self.canary.forget(), Lane()
        self._retire_later(ended)

    # ---- a rollout

    async def _roll_out(
        self, lane: Lane, wanted: Wanted, known: Release | None, still: Callable[[], bool]
    ) -> WeightlessError | None:
        """Roll out into a lane, unless it is not wanted `still`; then the loop decides anew. Returns why it was refused."""
        while len(self._retiring) >= _MAX_RETIRING:
            await asyncio.wait(self._retiring, return_when=asyncio.FIRST_COMPLETED)
        version, life = self._next_version(wanted.alias.release if wanted.alias else "?"), self._life

        def switch(target: Target) -> None:
            if life != self._life:  # registered with a TorchServe that is gone
                raise TorchServeAway(f"{self.model} {version}: TorchServe ended meanwhile")
            if lane is self.canary:
                self.route.canary = target
                self._share()
            else:
                self.route.current = target

        rollout = Rollout(self._tools, wanted, self.route, version, self._retire, switch, known)
        async with self._slots:
            lane.rollout = rollout
            self._starting = work = asyncio.create_task(rollout.run())
            try:
                if not await self._undisturbed(work, lambda: still() and life == self._life) or life != self._life:
                    self._metrics.rollout(self.model, "superseded")
                else:
                    await self._took_over(lane, rollout, work.result())
                return None
            except Exception as error:
                self._metrics.rollout(self.model, "refused")
                return _ours(error)
            finally:
                lane.rollout = self._starting = None
                work.cancel()
                if (
                    self.route.current is None and self.current.served is not None
                ):  # taken away for what did not come up
                    self.current.forget()

    async def _undisturbed(self, work: asyncio.Task[Target], still: Callable[[], bool]) -> bool:
        """Wait for the rollout; False, and cancelled, as soon as it is not wanted `still`. What woke us is decided on after."""
        awake = False
        while not work.done():
            woken = asyncio.create_task(self._wake.wait())
            await asyncio.wait({work, woken}, return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            awake = awake or self._wake.is_set()
            self._wake.clear()
            if not still() and not work.done():
                work.cancel()
                await asyncio.wait({work})
        if awake:
            self._wake.set()
        return not work.cancelled() and (work.exception() is None or still())

    async def _took_over(self, lane: Lane, rollout: Rollout, target: Target) -> None:
        assert rollout.release is not None
        old = lane.served.target if lane.served is not None else None
        lane.took_over(Served(target, rollout.wanted, rollout.release))
        lane.watch(self._tools.management, self._wake.set)
        self._retire_later(old)
        self._metrics.rollout(self.model, "serving")
        log.info("model %s: %s serves (version %s)", self.model, target.release, target.version)
        lane.phases = await asyncio.to_thread(rollout.phases)
        if lane is self.current:
            await self._note(rollout.release)

    async def _note(self, release: Release) -> None:
        """What serves: to come back to it after a refusal, and for workers that start to find its tokenizer."""
        await asyncio.to_thread(self._tools.memory.remember, release)
        await self._tools.hold(self.model, release)

    def _refuse(self, lane: Lane, wanted: Wanted | None, error: WeightlessError, recovering: bool) -> None:
        lane.refuse(wanted, error, recovering)
        if lane is self.current and self.route.current is None:
            self.route.why = str(error)
        release = wanted.alias.release if wanted and wanted.alias else None
        log.error(
            "model %s: %s%s refused: %s", self.model, release, "" if lane is self.current else " as canary", error
        )

    # ---- the way out

    async def _take_out(self, why: str) -> None:
        old, self.current = self.current.forget(), Lane()
        self.route.current, self.route.why = None, why
        if old is not None:
            await asyncio.to_thread(self._tools.memory.forget, self.model)
            await self._tools.hold(self.model, None)
            self._retire_later(old)

    def _retire_later(self, old: Target | None) -> None:
        if old is None:
            return
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
            await self._unregister(old)
        except WeightlessError as error:
            log.warning("unregistering %s %s: %s", old.model, old.version, error)
        (self._tools.settings.model_store / f"{old.model}--{old.version}.mar").unlink(missing_ok=True)
        shutil.rmtree(self._tools.settings.ledger_dir(old.model, old.version), ignore_errors=True)

    async def _unregister(self, old: Target) -> None:
        """TorchServe lets its default version go last, so another is made that; where none stays, the others must be gone first.

        One that is starting comes to stay, or goes by itself: it is waited for, unless it waits for this (`recreate`).
        """
        until = asyncio.get_running_loop().time() + _UNREGISTER_S
        while True:
            current = self.route.current
            if current is not None and current is not old:
                await self._tools.management.set_default(current.model, current.version)
            try:
                await self._tools.management.unregister(old.model, old.version)
                return
            except ManagementError:
                left = until - asyncio.get_running_loop().time()
                others: set[asyncio.Task[Any]] = self._retiring - {asyncio.current_task()} if left > 0 else set()
                rollout = self.current.rollout
                if self._starting is not None and rollout is not None and rollout.step is not Step.TAKE_AWAY:
                    others.add(self._starting)
                if not others:
                    raise
                await asyncio.wait(others, timeout=max(left, 1.0), return_when=asyncio.FIRST_COMPLETED)

    def _next_version(self, release: str) -> str:
        count = self._versions[release] = self._versions.get(release, 0) + 1
        return release if count == 1 else f"{release}.{count}"


def _ours(error: Exception) -> WeightlessError:
    """An error that no step expected (a full disk under the archive, say), as one that can be shown."""
    if isinstance(error, WeightlessError):
        return error
    log.error("unexpected", exc_info=error)
    return WeightlessError(f"{type(error).__name__}: {error}; `make logs` has the traceback")
