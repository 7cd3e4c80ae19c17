"""One start, measured: from the trigger to READY and to the first token, with its phases, bytes and memory."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp

from serve.agent.children import alive
from serve.agent.grounds import Ground, forked
from serve.agent.rollout import Tools
from serve.agent.smoke import request_body
from serve.agent.starts import failure_reason, log_position, read_ledger
from serve.agent.usage import on_disk
from serve.embedded import START_HEADER
from weightless.errors import WeightlessError
from weightless.modelfile import NodeSettings
from weightless.release import Release

# What looks must not be what is measured. At a worker: a hundredth of the time spent, and at its ledger in between, which takes
# 10 us where TorchServe and this process need 2 ms. At memory: a hundredth of the time; a look takes 20 ms where 1 GB is mapped.
_LOOK_S, _LOOK_SHARE = 0.01, 0.01
_ASK_S = 0.1  # between two questions to TorchServe while there is no ledger
_SAYS_PID_S = 150.0  # TorchServe gives a worker 120 s to say its process id, and then ends it and tries again
_TURNS = 20  # TorchServe gives a request to the worker that has waited longest, so two do
_SAMPLE_S, _SAMPLE_SHARE = 1.0, 0.01


@dataclass(frozen=True)
class Registered:
    """What will be registered. `keeps`: what it keeps on disk beside the archive; `pages`: what its start reads from the disk."""

    url: str
    name: str
    version: str
    build_s: float | None
    archive_bytes: int
    archive: Path
    keeps: list[Path]
    pages: list[Path]
    ledgers: Path | None
    timeout_s: float


@dataclass
class Peak:
    """The highest sum of Pss of Java and `workers`, whenever it was looked at."""

    ground: Ground
    workers: list[int] = field(default_factory=list)
    highest: int | None = None

    async def look(self) -> None:
        found = await self.ground.usage(self.workers, False)
        if found is not None:
            now = found.server + sum(worker.memory for worker in found.workers.values())
            self.highest = max(self.highest or 0, now)

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        async def watch() -> None:
            took = 0.0
            while True:
                await asyncio.sleep(max(_SAMPLE_S, took / _SAMPLE_SHARE))
                began = time.monotonic()
                await self.look()
                took = time.monotonic() - began

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.look()


class Starting:
    """Registers once, with one worker; then, if asked, starts one more."""

    def __init__(
        self,
        ground: Ground,
        registered: Registered,
        release: Release,
        node: NodeSettings,
        tools: Tools,
        prompt: str,
    ) -> None:
        self._ground = ground
        self._it = registered
        self._release = release
        self._node = node
        self._tools = tools
        self._prompt = prompt
        self._peak = Peak(ground)
        self._position = log_position(tools.settings.log_dir)

    async def start(self) -> dict[str, Any]:
        """Register, and wait for the first token.

        Raises:
            WeightlessError: it does not start, or does not answer.
        """
        await self.take_away()  # what an agent left on the baseline that was killed in a start
        it, sent = self._it, await self._sent()
        async with self._peak.watching():
            at, began = time.time(), time.monotonic()
            await self._ground.management.register(it.url, it.name, 1, it.timeout_s)
            triggered_s = time.monotonic() - began
            pid = (await self._until_ready(1))[0]
            ready_s = time.monotonic() - began
            told = await self._first()
            first_s = time.monotonic() - began
        ledger = self._ledger(pid) or told
        return self._figures(at + triggered_s, [pid], ledger, {"register": triggered_s}, sent, await self._sent()) | {
            "build_s": it.build_s,
            "archive_bytes": it.archive_bytes,
            "ready_s": round(ready_s, 3),
            "first_s": round(first_s, 3),
            "disk_bytes": await self._disk([pid]),
        }

    async def one_more(self) -> dict[str, Any]:
        """One more worker beside the one that answers; the first token is not measured, since no one can be asked for it."""
        it, sent = self._it, await self._sent()
        before = set(self._peak.workers)
        disk = await self._disk(list(before))
        self._peak = Peak(self._ground, list(before))
        async with self._peak.watching():
            at, began = time.time(), time.monotonic()
            await self._ground.management.scale(it.name, it.version, 2, it.timeout_s, wait=False)
            pids = await self._until_ready(2)
            ready_s = time.monotonic() - began
        new = [pid for pid in pids if pid not in before]
        ledger = None
        if new:
            ledger = await self._told_by(new[0]) if it.ledgers is None else self._ledger(new[0])
        after = await self._disk(pids)
        return self._figures(at, new, ledger or {}, {}, sent, await self._sent()) | {
            "build_s": None,
            "archive_bytes": 0,
            "ready_s": round(ready_s, 3),
            "first_s": None,
            "disk_bytes": None if disk is None or after is None else after - disk,
        }

    async def take_away(self) -> None:
        """Unregister, whatever happened."""

        async def unregister() -> None:
            with contextlib.suppress(WeightlessError):
                await self._ground.management.unregister(self._it.name, self._it.version)

        await asyncio.shield(unregister())

    # ---- what is told of a start

    def _figures(
        self,
        at: float,
        pids: list[int],
        ledger: dict[str, Any],
        phases: dict[str, float],
        sent: int | None,
        sent_after: int | None,
    ) -> dict[str, Any]:
        """`at`: the wall clock when TorchServe had the archive unpacked and could start the worker."""
        if "began" in ledger:
            began = datetime.fromisoformat(ledger["began"]).timestamp()
            phases = phases | {"start": max(0.0, began - at), **ledger["phases"]}
        return {
            "bytes_from_store": ledger.get("bytes_from_store", 0),
            "store_sent_bytes": None if sent is None or sent_after is None else sent_after - sent,
            "retries": ledger.get("retries"),
            "phases": {name: round(seconds, 4) for name, seconds in phases.items()},
            "forked": self._ground.here and all(map(forked, pids)),
            "peak_memory_bytes": self._peak.highest,
        }

    def _ledger(self, pid: int) -> dict[str, Any] | None:
        return read_ledger(self._it.ledgers, pid) if self._it.ledgers is not None else None

    async def _told_by(self, pid: int) -> dict[str, Any] | None:
        """What a stock worker's answer tells of its start. Nobody chooses which worker answers: asked until it is its turn."""
        for _ in range(_TURNS):
            if (told := await self._first()).get("pid") == pid:
                return told
        return None

    async def _sent(self) -> int | None:
        """MinIO's own counter; None for a store that has none."""
        try:
            return await asyncio.to_thread(self._tools.store.bytes_sent)
        except WeightlessError:
            return None

    async def _disk(self, workers: list[int]) -> int | None:
        """The archive, what it keeps, and TorchServe's unpacked copy: one folder for all workers, and for a folder itself none."""
        found = await self._ground.usage(workers, True)
        if found is None:
            return None
        kept = await asyncio.to_thread(lambda: sum(map(on_disk, [self._it.archive, *self._it.keeps])))
        copies = {worker.folder: worker.disk for worker in found.workers.values()}
        return kept + sum(disk for folder, disk in copies.items() if Path(folder) != self._it.archive)

    # ---- waiting

    async def _until_ready(self, count: int) -> list[int]:
        """Process ids of the workers. A worker that ended has failed, whatever TorchServe tries next."""
        it, began, seen, asked = self._it, time.monotonic(), dict[str, int](), -_ASK_S
        while (spent := time.monotonic() - began) < it.timeout_s:
            await asyncio.sleep(max(_LOOK_S, spent * _LOOK_SHARE))
            if it.ledgers is not None and spent - asked < _ASK_S and len(list(it.ledgers.iterdir())) < count:
                continue  # a worker of ours writes its ledger just before it is READY
            asked = spent
            workers = await self._ground.management.workers(it.name, it.version) or []
            self._peak.workers = pids = [worker.pid for worker in workers if worker.pid > 0]
            if len(workers) >= count and all(worker.ready for worker in workers):
                return pids
            if any(seen.setdefault(w.id, w.pid) != w.pid for w in workers if w.pid > 0):
                break
            if self._ground.here and not all(map(alive, pids)):
                break
            if spent > _SAYS_PID_S and len(pids) < count:
                break
        raise WeightlessError(f"cold start of {it.name} {it.version}: {self._why()}")

    def _why(self) -> str:
        if not self._ground.here:
            return "its worker ended, or was not READY in time; the baseline's log says why"
        it, log_dir = self._it, self._tools.settings.log_dir
        ledger = (read_ledger(it.ledgers) if it.ledgers is not None else None) or {}
        reason = ledger.get("error") or failure_reason(log_dir, it.name, it.version, self._position)
        return reason or "its worker ended, or was not READY in time"

    async def _first(self) -> dict[str, Any]:
        """The answer that has the prompt's first token (for another task, the first answer); what its worker tells of its start."""
        model, settings = self._release.model, self._release.content.settings
        body: dict[str, Any] = {"input": self._prompt, "parameters": {"max_new_tokens": 1, "do_sample": False}}
        if settings.task != "text-generation":
            example = request_body(settings.task, settings.golden)  # a query and texts have no input
            body = example | ({"input": self._prompt} if "input" in example else {})
        timeout = aiohttp.ClientTimeout(total=max(self._node.response_timeout_s, 600))
        url = f"{self._ground.inference_url}/predictions/{self._it.name}/{self._it.version}"
        try:
            async with self._tools.session.post(url, json=body, timeout=timeout) as response:
                said = await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise WeightlessError(f"cold start of {model}: READY, but no answer to the prompt: {error!r}") from None
        if response.status != 200:
            raise WeightlessError(
                f"cold start of {model}: READY, but the prompt was answered {response.status}: {said[:300]}"
            )
        told = response.headers.get(START_HEADER)
        return dict(json.loads(told)) if told else {}
