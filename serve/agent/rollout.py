"""One rollout: a release becomes the one that answers, or nothing changes.

    RESOLVE ─► FETCH ─► ROOM ─► BUILD ─► (TAKE AWAY) ─► REGISTER ─► WAIT ─► SMOKE ─► SWITCH ─► done
       └────────┴────────┴────────┴────────────┴────────────┴─────────┴────────┴─► UNDO ─► the error is raised

RESOLVE    read the manifest that the alias names, checked against its digest; with the store away, the remembered one
FETCH      bring the release into the node's cache while the old one serves; nothing to do when it is there. Refused before the
           first byte when it does not fit on the disk beside what is in use
ROOM       where the old release stays, compare the memory that the new one takes with what is free
BUILD      write the slim MAR, pinned to release and digest
TAKE AWAY  only `rollout: recreate`, for a model that does not fit twice: requests are held, the old version is drained and
           unregistered first. When the new one then fails, the reconciler rolls the old one out again
REGISTER   a new version in TorchServe; no request is routed to it
WAIT       until all its workers are READY; the first that dies ends the rollout, with the exception it printed
SMOKE      one prediction to that version, checked
SWITCH     one assignment in the routing table: requests that come from now on go to the new version, or a canary's share
UNDO       unregister what was registered, delete the archive

Every step may be cancelled (the alias moved again) and leaves what UNDO removes. The old version is not touched here except by
TAKE AWAY: after SWITCH the reconciler drains it and unregisters it. Nothing survives TorchServe, so a rollout that is cut off by
its death or the agent's is simply begun again.
"""

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import aiohttp

from serve.agent.archive import SlimArchive, build_slim
from serve.agent.children import alive
from serve.agent.desired import Wanted
from serve.agent.management import Management, TorchServeAway
from serve.agent.memory import Memory
from serve.agent.prefetch import Report
from serve.agent.room import Free, check_room, needed
from serve.agent.routing import Route, Target
from serve.agent.settings import AgentSettings
from serve.agent.smoke import smoke_test
from serve.agent.starts import failure_reason, log_position, read_ledger
from weightless.cache import NodeCache
from weightless.errors import InvalidRelease, StoreUnavailable, WeightlessError
from weightless.release import Release
from weightless.store import Store

log = logging.getLogger(__name__)

_POLL_S = (0.02, 0.25)  # between two looks at a starting worker: the shortest pause, and the longest
_POLL_SHARE = 0.1  # of the time that passed: what a look that comes late can cost
_HOLD_DRAIN_S = 30.0


class StartFailed(WeightlessError):
    """A worker of the release ended, or was not READY in time."""


class StartTooSlow(StartFailed):
    """A worker was still loading when its time was up: a busy machine, or a timeout that is too short."""


class Step(StrEnum):
    RESOLVE = "resolve"
    FETCH = "fetch"
    ROOM = "memory"
    BUILD = "build"
    TAKE_AWAY = "take away"
    REGISTER = "register"
    WAIT = "wait"
    SMOKE = "smoke test"
    SWITCH = "switch"


@dataclass(frozen=True)
class Tools:
    """What every rollout on this node works with."""

    settings: AgentSettings
    store: Store
    cache: NodeCache
    memory: Memory
    management: Management
    session: aiohttp.ClientSession
    fetch: Callable[[Release, Report], Awaitable[dict[str, Any]]]  # bring a release into the cache
    warm: Callable[
        [Path, str], Awaitable[None]
    ]  # have the zygote import what the release in a folder needs, for its task
    hold: Callable[
        [str, Release | None], Awaitable[None]
    ]  # have it hold, for who is named, the tokenizer of a release that has answered
    free_memory: Callable[[], Free]


@dataclass
class Rollout:
    """One attempt. `step` and `progress` may be read while `run` is under way; `took` has the seconds of each step done."""

    tools: Tools
    wanted: Wanted
    route: Route
    version: str
    retire: Callable[[Target], Coroutine[Any, Any, None]]
    switch: Callable[[Target], None]
    known: Release | None = None  # the manifest, where it needs no reading
    step: Step = Step.RESOLVE
    progress: dict[str, Any] | None = None
    took: dict[str, float] = field(default_factory=dict)
    release: Release | None = None
    _registered: bool = False
    _took_away: bool = False

    @property
    def archive(self) -> Path:
        return self.tools.settings.model_store / f"{self.wanted.model}--{self.version}.mar"

    @property
    def ledger_dir(self) -> Path:
        return self.tools.settings.ledger_dir(self.wanted.model, self.version)

    async def run(self) -> Target:
        """Roll out; returns the version that answers now.

        Raises:
            WeightlessError: why not; nothing is left registered.
        """
        try:
            self.release = release = await self._timed(Step.RESOLVE, self._resolve())
            await self._timed(Step.FETCH, self._fetch(release))
            if self.route.current is not None and self.wanted.node.rollout == "blue-green":
                await self._timed(Step.ROOM, self._room(release))
            await self._timed(Step.BUILD, self._build(release))
            if self.wanted.node.rollout == "recreate" and self.route.current is not None:
                await self._timed(Step.TAKE_AWAY, self._take_away(self.route.current))
            position = log_position(self.tools.settings.log_dir)
            await self._timed(Step.REGISTER, self._register())
            await self._timed(Step.WAIT, self._wait(position))
            target = self._target(release)
            await self._timed(
                Step.SMOKE, smoke_test(self.tools.session, self.tools.settings.inference_url, target, release)
            )
            self.step = Step.SWITCH
            self.switch(target)
            return target
        except BaseException:
            await asyncio.shield(self._undo())
            raise
        finally:
            if self._took_away:
                self.route.release_hold()

    async def _timed(self, step: Step, work: Any) -> Any:
        self.step, began = step, time.monotonic()
        result = await work
        self.took[step.value] = round(time.monotonic() - began, 3)
        return result

    async def _resolve(self) -> Release:
        alias, model = self.wanted.alias, self.wanted.model
        if alias is None:
            raise InvalidRelease(self.wanted.error or f"alias of {model}: cannot be read")
        if self.known is not None:
            return self.known
        try:
            return await asyncio.to_thread(
                self.tools.store.release, model, alias.release, version_id=alias.manifest_version, digest=alias.digest
            )
        except StoreUnavailable:
            remembered = self.tools.memory.recall(model)
            if remembered is not None and (remembered.name, remembered.digest) == (alias.release, alias.digest):
                return remembered
            raise

    async def _fetch(self, release: Release) -> None:
        if not await asyncio.to_thread(self.tools.cache.is_complete, release):
            try:
                await self.tools.fetch(release, self._report)
            finally:
                self.progress = None
        await self.tools.warm(self.tools.cache.folder(release), release.content.settings.task)

    def _report(self, progress: dict[str, Any]) -> None:
        self.progress = progress

    async def _room(self, release: Release) -> None:
        folder, node = self.tools.cache.folder(release), self.wanted.node
        free = await asyncio.to_thread(self.tools.free_memory)
        check_room(release, await asyncio.to_thread(needed, folder, node, bool(free.gpus)), free)

    async def _build(self, release: Release) -> None:
        slim = SlimArchive(self.wanted.model, self.version, self.wanted.node, release, ledger_dir=self.ledger_dir)
        self.ledger_dir.mkdir(parents=True, exist_ok=True)
        await build_slim(slim, self.tools.settings.handler_dir, self.archive)

    async def _take_away(self, old: Target) -> None:
        self._took_away = True
        self.route.hold()
        await old.drained(min(_HOLD_DRAIN_S, old.response_timeout_s))
        self.route.current, self.route.why = None, "its release is being replaced"
        await asyncio.shield(
            asyncio.create_task(self.retire(old))
        )  # begun, it must be finished, or the old one stays registered

    async def _register(self) -> None:
        self._registered = True  # from here on it may be: the answer can be lost
        await self.tools.management.register(
            self.archive.name, self.wanted.model, self.wanted.node.workers, self.wanted.node.startup_timeout_s
        )

    async def _wait(self, position: int) -> None:
        """Poll until all workers are READY. A worker that was seen and is gone has failed, whatever TorchServe tries next."""
        node, began, seen = self.wanted.node, time.monotonic(), dict[str, int]()
        while True:
            workers = await self.tools.management.workers(self.wanted.model, self.version)
            if workers is None:
                raise StartFailed(self._why(position, "TorchServe dropped it"))
            if len(workers) >= node.workers and all(worker.ready for worker in workers):
                return
            for worker in workers:
                if worker.pid > 0 and (not alive(worker.pid) or seen.setdefault(worker.id, worker.pid) != worker.pid):
                    raise StartFailed(self._why(position, f"worker {worker.pid} ended while it loaded"))
            passed = time.monotonic() - began
            if passed > node.startup_timeout_s:
                raise StartTooSlow(
                    self._why(position, f"required READY within {node.startup_timeout_s} s, found it loading")
                )
            await asyncio.sleep(min(max(passed * _POLL_SHARE, _POLL_S[0]), _POLL_S[1]))

    def _why(self, position: int, otherwise: str) -> str:
        ledger = read_ledger(self.ledger_dir) or {}
        reason = ledger.get("error") or failure_reason(
            self.tools.settings.log_dir, self.wanted.model, self.version, position
        )
        return f"release {self.version} of {self.wanted.model} does not start: {reason or otherwise}"

    def _target(self, release: Release) -> Target:
        return Target(
            model=release.model,
            release=release.name,
            digest=release.digest,
            version=self.version,
            task=release.content.settings.task,
            response_timeout_s=self.wanted.node.response_timeout_s,
        )

    async def _undo(self) -> None:
        if self._registered:
            with contextlib.suppress(TorchServeAway):
                try:
                    await self.tools.management.unregister(self.wanted.model, self.version)
                except WeightlessError as error:
                    log.error("undoing the rollout of %s %s: %s", self.wanted.model, self.version, error)
        self.archive.unlink(missing_ok=True)
        shutil.rmtree(self.ledger_dir, ignore_errors=True)

    def phases(self) -> dict[str, Any]:
        """Seconds of each step, and the ledger of a worker's start where there is one."""
        return {"rollout": dict(self.took), "worker": read_ledger(self.ledger_dir)}
