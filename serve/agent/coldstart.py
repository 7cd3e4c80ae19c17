"""Starts a model on purpose, to measure it: `POST /coldstart`. One at a time, next to what is served, and taken away again.

slim: registered here under the name `<model>--coldstart`, a name that no model can have, with a cache of its own that is empty
(cold) or with the node's cache made complete before (warm). The embedded forms: registered with the baseline's TorchServe.
A start runs from the registration to READY (`ready_s`) and to the answer with the first token of the prompt (`first_s`).
"""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from serve.agent.archive import SlimArchive, build_slim
from serve.agent.children import alive
from serve.agent.embedded import FORMS, Baseline, build_embedded
from serve.agent.errors import ApiError, invalid
from serve.agent.management import Management
from serve.agent.prefetch import prefetch
from serve.agent.rollout import Tools
from serve.agent.starts import failure_reason, log_position, read_ledger
from weightless.errors import NotFound, SettingsError, WeightlessError
from weightless.modelfile import NodeSettings, load_model_file
from weightless.release import Release

VARIANTS = ("slim", *FORMS)
CACHES = ("cold", "warm")
SUFFIX = "--coldstart"
_LOOK_S = 0.01
_BASELINE_START_S = 3600.0


@dataclass(frozen=True)
class Order:
    """A cold start that was asked for."""

    model: str
    release: str | None
    variant: str
    cache: str
    prompt: str

    @classmethod
    def of(cls, body: Any) -> "Order":
        """Check the request's body; ApiError 400 naming the field."""
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            raise invalid("model", "required the name of a model")
        values = {"release": None, "variant": "slim", "cache": "cold", "prompt": "Hello"} | {
            k: v for k, v in body.items() if v is not None
        }
        for field, allowed in (("variant", VARIANTS), ("cache", CACHES)):
            if values[field] not in allowed:
                raise invalid(field, f"required one of {', '.join(allowed)}, found {values[field]!r:.40}")
        for field in ("release", "prompt"):
            if not isinstance(values[field], str | None):
                raise invalid(field, f"required a string, found {values[field]!r:.40}")
        return cls(values["model"], values["release"], values["variant"], values["cache"], values["prompt"])


class ColdStarts:
    """Runs one order at a time."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._busy = asyncio.Lock()
        self._count = 0

    async def run(self, order: Order) -> dict[str, Any]:
        """Start, measure, take away.

        Raises:
            ApiError: 409 when another is under way, 404 for what does not exist, 502 with the reason when it does not start.
        """
        if self._busy.locked():
            raise ApiError(409, "busy", "another cold start is under way; one at a time, or neither would be measured")
        async with self._busy:
            self._count += 1
            try:
                release = await asyncio.to_thread(self._release, order)
                node = load_model_file(self._tools.settings.models_config_dir, order.model).node
                run = self._slim if order.variant == "slim" else self._embedded
                result = await run(order, release, node)
            except (NotFound, SettingsError) as error:
                raise ApiError(404, "not_found", str(error)) from None
            except WeightlessError as error:
                raise ApiError(502, "start_failed", str(error)) from None
        said = {
            "model": order.model,
            "release": release.name,
            "digest": release.digest,
            "variant": order.variant,
            "cache": order.cache,
        }
        return said | result

    def _release(self, order: Order) -> Release:
        store = self._tools.store
        if order.release is not None:
            return store.release(order.model, order.release)
        alias = store.alias(order.model)
        published = store.releases(order.model) if alias is None or alias.alias is None else []
        # A model that was published to be measured, not to be served, has no alias: its newest release is meant.
        return store.release(order.model, published[-1]) if published else store.serving(order.model)

    # ---- slim, here

    async def _slim(self, order: Order, release: Release, node: NodeSettings) -> dict[str, Any]:
        settings, management = self._tools.settings, self._tools.management
        name, version = order.model + SUFFIX, f"{release.name}.{self._count}"
        archive, ledgers = settings.model_store / f"{name}.mar", settings.ledger_dir(name, version)
        async with self._cache(order, release) as cache_dir:
            one = node.model_copy(update={"workers": 1})
            began = time.monotonic()
            ledgers.mkdir(parents=True, exist_ok=True)
            size = await build_slim(
                SlimArchive(order.model, version, one, release, cache_dir, ledgers), settings.handler_dir, archive
            )
            build_s = time.monotonic() - began
            position = log_position(settings.log_dir)
            try:
                started = time.monotonic()
                await management.register(archive.name, name, 1, node.startup_timeout_s)
                await self._until_ready(name, version, node, position)
                ready_s = time.monotonic() - started
                await self._first(f"{settings.inference_url}/predictions/{name}/{version}", order, release, node)
                first_s = time.monotonic() - started
            finally:
                await asyncio.shield(self._take_away(management, name, version))
                archive.unlink(missing_ok=True)
        ledger = read_ledger(ledgers) or {}
        shutil.rmtree(ledgers, ignore_errors=True)
        return _figures(build_s, size, ready_s, first_s, ledger.get("bytes_from_store"), ledger.get("phases"))

    @contextlib.asynccontextmanager
    async def _cache(self, order: Order, release: Release) -> AsyncIterator[Path | None]:
        """An empty cache that is removed afterwards, or None: the node's own, complete."""
        if order.cache == "warm":
            await self._complete(release)
            yield None
            return
        folder = self._tools.settings.state_dir.resolve() / "coldstart"
        folder.mkdir(parents=True, exist_ok=True)
        cache_dir = Path(tempfile.mkdtemp(prefix="cache-", dir=folder))
        assert not any(cache_dir.iterdir())
        try:
            yield cache_dir
        finally:
            await asyncio.to_thread(shutil.rmtree, cache_dir, ignore_errors=True)

    async def _complete(self, release: Release) -> None:
        if not await asyncio.to_thread(self._tools.cache.is_complete, release):
            await prefetch(release, lambda progress: None)

    async def _until_ready(self, name: str, version: str, node: NodeSettings, position: int) -> None:
        deadline = time.monotonic() + node.startup_timeout_s
        while time.monotonic() < deadline:
            workers = await self._tools.management.workers(name, version) or []
            if workers and all(worker.ready for worker in workers):
                return
            if any(worker.pid > 0 and not alive(worker.pid) for worker in workers):
                break
            await asyncio.sleep(_LOOK_S)
        ledger = read_ledger(self._tools.settings.ledger_dir(name, version)) or {}
        reason = ledger.get("error") or failure_reason(self._tools.settings.log_dir, name, version, position)
        raise WeightlessError(
            f"cold start of {name} {version}: {reason or 'its worker ended, or was not READY in time'}"
        )

    @staticmethod
    async def _take_away(management: Management, name: str, version: str) -> None:
        with contextlib.suppress(WeightlessError):
            await management.unregister(name, version)

    # ---- embedded, at the baseline

    async def _embedded(self, order: Order, release: Release, node: NodeSettings) -> dict[str, Any]:
        baseline = await Baseline.of(self._tools.settings)
        await self._complete(release)
        with self._tools.cache.use(release):
            built = await build_embedded(release, self._tools.cache.folder(release), order.variant, baseline.store)
        name = order.model + SUFFIX
        async with baseline.management() as management:
            try:
                started = time.monotonic()
                await management.register(built.path.name, name, 1, _BASELINE_START_S, wait=True)
                ready_s = time.monotonic() - started
                await self._first(f"{baseline.inference_url}/predictions/{name}/{release.name}", order, release, node)
                first_s = time.monotonic() - started
            finally:
                await asyncio.shield(self._take_away(management, name, release.name))
        return _figures(built.seconds, built.bytes, ready_s, first_s, 0, None)

    # ---- both

    async def _first(self, url: str, order: Order, release: Release, node: NodeSettings) -> None:
        """The answer that has the prompt's first token; for another task, the first answer."""
        body: dict[str, Any] = {"input": order.prompt}
        if release.content.settings.task == "text-generation":
            body["parameters"] = {"max_new_tokens": 1, "do_sample": False}
        timeout = aiohttp.ClientTimeout(total=max(node.response_timeout_s, 600))
        try:
            async with self._tools.session.post(url, json=body, timeout=timeout) as response:
                said = await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise WeightlessError(
                f"cold start of {order.model}: READY, but no answer to the prompt: {error!r}"
            ) from None
        if response.status != 200:
            raise WeightlessError(
                f"cold start of {order.model}: READY, but the prompt was answered {response.status}: {said[:300]}"
            )


def _figures(
    build_s: float | None,
    size: int,
    ready_s: float,
    first_s: float,
    from_store: int | None,
    phases: dict[str, Any] | None,
) -> dict[str, Any]:
    return {
        "build_s": None if build_s is None else round(build_s, 3),
        "archive_bytes": size,
        "ready_s": round(ready_s, 3),
        "first_s": round(first_s, 3),
        "bytes_from_store": from_store,
        "phases": phases,
    }
