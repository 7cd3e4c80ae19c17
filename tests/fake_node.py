"""A fake TorchServe, store and cache in virtual time, for tests of what the agent decides, not of what those parts do.

An hour passes in a second: the loop's clock jumps to the next timer, and threads' work is done on the spot. What TorchServe 0.12
does and the agent relies on is kept: a dead worker stays listed, the default version goes last, a version that is unregistered
leaves its requests hanging, and a server that dies forgets everything.
"""

import asyncio
import selectors
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from serve.agent.archive import SlimArchive
from serve.agent.management import ManagementError, TorchServeAway, Worker
from serve.agent.memory import Memory
from serve.agent.room import Free
from serve.agent.routing import Target
from serve.agent.smoke import SmokeTestFailed
from weightless.errors import FetchFailed, InvalidRelease, StoreUnavailable
from weightless.release import Content, FileEntry, Location, Release, ReleaseSettings

#: where a bad release fails
BAD = ("resolve", "fetch", "build", "register", "dies", "hangs", "smoke")


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock costs no time."""

    def __init__(self) -> None:
        self.now = 0.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:  # type: ignore[override]
        done = self.create_future()
        try:
            done.set_result(func(*args))
        except BaseException as error:
            done.set_exception(error)
        return done


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        assert timeout is not None, "everything waits for something that nobody will do"
        self._loop.now += max(timeout, 0.0)
        return super().select(0)


def release(name: str) -> Release:
    """A release of the model `m`, different from all others."""
    digit = name[1:] * 64
    file = FileEntry(path="config.json", size=2, blake3=digit[:64], sha256=digit[:64])
    content = Content(
        model="m",
        created="2026-11-22T16:10:03Z",
        source={"folder": name},
        files=(file,),
        settings=ReleaseSettings(task="text-generation"),
    )
    made = Release.make(name, content, Location(bucket="models", versions={"m/config.json": name}))
    return made.model_copy(update={"manifest_version": f"manifest of {name}"})


@dataclass
class Registered:
    """A version in the fake TorchServe; its worker is READY from `ready_at` on."""

    release: str
    pid: int
    ready_at: float


@dataclass
class FakeNode:
    """`bad` says of a release where it fails; `inflight` counts the requests that are with each version."""

    loop: VirtualLoop
    folder: Path
    releases: dict[str, Release]
    bad: dict[str, str] = field(default_factory=dict)
    away: bool = False
    up: bool = False
    versions: dict[str, Registered] = field(default_factory=dict)
    default: str | None = None
    inflight: dict[str, int] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    holds: str | None = None  # the release whose tokenizer new workers find
    dead: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)  # what the agent must never do; an exception it would take for ours
    _archives: dict[str, SlimArchive] = field(default_factory=dict)
    _pids: int = 1000

    def tools(self) -> Any:
        settings = SimpleNamespace(
            model_store=self.folder,
            log_dir=self.folder / "logs",
            handler_dir=self.folder,
            inference_url="http://fake",
            ledger_dir=lambda model, version: self.folder / "ledger" / model / version,
        )
        return SimpleNamespace(
            settings=settings,
            store=SimpleNamespace(release=self._read),
            cache=SimpleNamespace(
                is_complete=lambda release: release.name in self.cached,
                folder=lambda release: self.folder / "cache" / release.name,
            ),
            memory=Memory(self.folder / "served"),
            management=self,
            session=None,
            fetch=self._fetch,
            warm=self._warm,
            hold=self._hold,
            free_memory=lambda: Free(1 << 40),
        )

    # ---- the store and the cache

    def _read(self, model: str, name: str, version_id: str, digest: str) -> Release:
        if self.away:
            raise StoreUnavailable("the fake store is away")
        if self.bad.get(name) == "resolve":
            raise InvalidRelease(f"{name}: the manifest was replaced")
        return self.releases[name]

    async def _fetch(self, release: Release, report: Callable[[dict[str, Any]], None]) -> None:
        await asyncio.sleep(1)
        if self.away or self.bad.get(release.name) == "fetch":
            raise FetchFailed(f"{release.name}: the bytes do not come")
        self.cached.add(release.name)

    async def _warm(self, folder: Path, task: str) -> None:
        await asyncio.sleep(0.1)

    async def _hold(self, owner: str, release: Release | None) -> None:
        await asyncio.sleep(0.1)
        self.holds = release.name if release else None

    # ---- the archiver, the workers' processes, the smoke test

    async def build_slim(self, slim: SlimArchive, handler_dir: Path, destination: Path) -> None:
        await asyncio.sleep(0.2)
        assert slim.release is not None
        if self.bad.get(slim.release.name) == "build":
            raise OSError("no space left on the device")
        self._archives[destination.name] = slim

    def alive(self, pid: int) -> bool:
        return pid not in self.dead

    async def smoke_test(self, session: Any, url: str, target: Target, release: Release) -> None:
        await asyncio.sleep(0.1)
        if not self.up:
            raise SmokeTestFailed("nobody answers")
        version = self.versions.get(target.version)
        if version is not None and version.pid in self.dead:
            raise SmokeTestFailed("its worker died after it was ready")
        if not self.answers(target.version):
            self.wrong.append(f"{target.version} was tested before it was ready")
        if self.bad.get(release.name) == "smoke":
            raise SmokeTestFailed(f"{release.name} talks nonsense")

    # ---- TorchServe

    def start(self) -> None:
        self.up = True

    def die(self) -> None:
        self.dead |= {found.pid for found in self.versions.values()}
        self.up, self.default = False, None
        self.versions.clear()

    def answers(self, version: str) -> bool:
        found = self.versions.get(version)
        return self.up and found is not None and self.loop.now >= found.ready_at and self.alive(found.pid)

    async def register(self, archive: str, model: str, workers: int, timeout_s: float) -> None:
        await self._call()
        slim = self._archives[archive]
        assert slim.release is not None
        if slim.version in self.versions:
            self.wrong.append(f"{slim.version} is registered twice")
        bad = self.bad.get(slim.release.name)
        if bad == "register":
            raise ManagementError("registering", 400, "it does not like it")
        self._pids += 1
        ready_at = float("inf") if bad == "hangs" else self.loop.now + 0.5
        self.versions[slim.version] = Registered(slim.release.name, self._pids, ready_at)
        self.default = self.default or slim.version
        if bad == "dies":
            self.dead.add(self._pids)

    async def workers(self, model: str, version: str) -> list[Worker] | None:
        await self._call()
        found = self.versions.get(version)
        return None if found is None else [Worker("9500", found.pid, self.answers(version))]

    async def set_default(self, model: str, version: str) -> None:
        await self._call()
        if version not in self.versions:
            raise ManagementError("set-default", 404, "no such version")
        self.default = version

    async def unregister(self, model: str, version: str) -> None:
        await self._call()
        if version not in self.versions:
            return
        if version == self.default and len(self.versions) > 1:
            raise ManagementError("unregistering", 403, "cannot remove the default version")
        if self.inflight.get(version):
            self.wrong.append(f"{version} was unregistered with requests in flight")
        self.dead.add(self.versions.pop(version).pid)
        if self.default == version:
            self.default = None

    async def _call(self) -> None:
        await asyncio.sleep(0.01)
        if not self.up:
            raise TorchServeAway("the fake TorchServe is away")
