"""Starts a model on purpose, to measure it: `POST /coldstart`. One at a time, next to what is served, and taken away again.

What is started is registered under the name `<model>--coldstart`, a name that no model can have. The slim form: on this node, with
a cache of its own that is empty (cold) or with the node's cache made complete before (warm). The embedded forms: on the stock
baseline, or on this node as well, where their workers are forked by the zygote as the slim form's are. `worker`: one more worker
beside the first. A start runs from the trigger to READY (`ready_s`) and to the answer with the prompt's first token (`first_s`).
"""

import asyncio
import contextlib
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from serve.agent.archive import SlimArchive, build_slim
from serve.agent.embedded import FORMS, Baseline, Forms, written
from serve.agent.errors import ApiError, invalid
from serve.agent.grounds import BaselineGround, Ground, NodeGround
from serve.agent.held import Held
from serve.agent.link import RATES, Link, shaped
from serve.agent.pagecache import drop
from serve.agent.rollout import Tools
from serve.agent.starting import Registered, Starting
from weightless.errors import NotFound, SettingsError, WeightlessError
from weightless.modelfile import NodeSettings, load_model_file
from weightless.release import Release

CHOICES = {
    "variant": ("slim", *FORMS, "worker"),
    "cache": ("cold", "warm"),
    "on": ("zygote", "baseline"),
    "page_cache": ("warm", "dropped"),
    "link": tuple(RATES),
}
SUFFIX = "--coldstart"
STOCK_WORKER = "no-archive"  # the form whose second worker is measured; all forms lie unpacked by then
_EMBEDDED_START_S = 3600


@dataclass(frozen=True)
class Order:
    """A cold start that was asked for."""

    model: str
    release: str | None = None
    variant: str = "slim"
    cache: str = "cold"
    on: str = ""
    page_cache: str = "warm"
    link: str | None = None
    prompt: str = "Hello"

    @classmethod
    def of(cls, body: Any) -> "Order":
        """Check the request's body; ApiError 400 naming the field."""
        if not isinstance(body, dict) or not isinstance(body.get("model"), str):
            raise invalid("model", "required the name of a model")
        given = {k: v for k, v in body.items() if v is not None and k in cls.__dataclass_fields__}
        for name, value in given.items():
            if not isinstance(value, str):
                raise invalid(name, f"required a string, found {value!r:.40}")
            if name in CHOICES and value not in CHOICES[name]:
                raise invalid(name, f"required one of {', '.join(CHOICES[name])}, found {value!r:.40}")
        order = cls(**{"on": "baseline" if given.get("variant") in FORMS else "zygote"} | given)
        if order.variant == "slim" and order.on == "baseline":
            raise invalid("on", "required zygote for the slim form (the stock baseline has no store), found baseline")
        if order.link is not None and not order.cold:
            raise invalid("link", "required the slim form with a cold cache, which alone fetches over the network")
        return order

    @property
    def form(self) -> str:
        """What is registered."""
        if self.variant == "worker":
            return "slim" if self.on == "zygote" else STOCK_WORKER
        return self.variant

    @property
    def cold(self) -> bool:
        """Whether it starts from an empty cache of its own, as on a node that has never had the release."""
        return self.variant == "slim" and self.cache == "cold"


@dataclass
class Doing:
    """What is under way, for who asks meanwhile."""

    order: Order
    step: str = "preparing"
    since: float = field(default_factory=time.monotonic)
    store: Path | None = None  # where an archive is being built,
    total: int = 0  # and about how many bytes will have been written for it


class ColdStarts:
    """Runs one order at a time."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools
        self._forms = Forms(tools)
        self._busy = asyncio.Lock()
        self._doing: Doing | None = None
        self._count = 0
        self.held = Held(tools, self._forms)

    async def run(self, order: Order) -> dict[str, Any]:
        """Start, measure, take away.

        Raises:
            ApiError: 409 when another is under way, 404 for what does not exist, 502 with the reason when it does not start.
        """
        if self._busy.locked():
            raise ApiError(409, "busy", "another cold start is under way; one at a time, or neither would be measured")
        async with self._busy:
            self._count += 1
            self._doing = doing = Doing(order)
            try:
                release = await asyncio.to_thread(self._forms.release, order.model, order.release)
                node = load_model_file(self._tools.settings.models_config_dir, order.model).node
                measured = await self._measured(order, release, node, doing)
            except (NotFound, SettingsError) as error:
                raise ApiError(404, "not_found", str(error)) from None
            except WeightlessError as error:
                raise ApiError(502, "start_failed", str(error)) from None
            finally:
                self._doing = None
        asked = {name: value for name, value in asdict(order).items() if name != "prompt"}
        return asked | {"release": release.name, "digest": release.digest} | measured

    async def progress(self) -> dict[str, Any]:
        """What is under way: a large archive takes minutes to build before its start. If nothing is: what could be started."""
        doing = self._doing
        if doing is None:
            return {"busy": False, "releases": await asyncio.to_thread(self._releases)}
        building = None
        if doing.store is not None:
            building = {"done": await asyncio.to_thread(written, doing.store), "total": doing.total}
        seconds = round(time.monotonic() - doing.since, 1)
        return {
            "busy": True,
            "doing": doing.step,
            "order": asdict(doing.order),
            "seconds": seconds,
            "progress": building,
        }

    def _releases(self) -> dict[str, list[str]]:
        """By model, newest first; empty while the store is away."""
        store = self._tools.store
        try:
            return {model: store.releases(model)[::-1] for model in store.models()}
        except WeightlessError:
            return {}

    async def _measured(self, order: Order, release: Release, node: NodeSettings, doing: Doing) -> dict[str, Any]:
        async with contextlib.AsyncExitStack() as stack:
            ground = await stack.enter_async_context(self._ground(order))
            making = self._slim if order.form == "slim" else self._embedded
            registered, link = await stack.enter_async_context(making(order, release, node, ground, doing))
            if order.page_cache == "dropped":
                await asyncio.to_thread(drop, registered.pages)
            doing.step = "starting"
            starting = Starting(ground, registered, release, node, self._tools, order.prompt)
            stack.push_async_callback(starting.take_away)
            measured = await starting.start()
            if order.form == "slim" and not order.cold:
                await self._tools.hold(SUFFIX, release)
            if order.variant == "worker":
                measured = await starting.one_more()
            else:
                if order.form != "slim" and ground.here and not measured["forked"]:
                    raise WeightlessError(
                        f"cold start of {order.model}: required a worker forked by the zygote, found one started the stock way; "
                        "`make status` says why"
                    )
        # The link says what it carried when it has ended.
        rate, cuts = (link.carried.bytes_per_s, link.carried.cuts) if link else (None, None)
        return measured | {"link_bytes_per_s": rate, "cuts": cuts}

    @contextlib.asynccontextmanager
    async def _ground(self, order: Order) -> AsyncIterator[Ground]:
        if order.on == "zygote":
            yield NodeGround(self._tools)
            return
        baseline = await Baseline.of(self._tools.settings)
        async with baseline.management() as management:
            yield BaselineGround(baseline, management, self._tools.session)

    # ---- what is registered

    @contextlib.asynccontextmanager
    async def _slim(
        self, order: Order, release: Release, node: NodeSettings, ground: Ground, doing: Doing
    ) -> AsyncIterator[tuple[Registered, Link | None]]:
        settings = self._tools.settings
        name, version = order.model + SUFFIX, f"{release.name}.{self._count}"
        archive, ledgers = settings.model_store / f"{name}.mar", settings.ledger_dir(name, version)
        async with contextlib.AsyncExitStack() as stack:
            cache_dir = stack.enter_context(self._empty_cache()) if order.cold else None
            if cache_dir is None:
                await self._forms.complete(release)
            link = None
            if order.link is not None:
                through = shaped(self._tools.store.settings.s3_endpoint, order.link, release.content.size)
                link = await stack.enter_async_context(through)
            began = time.monotonic()
            ledgers.mkdir(parents=True, exist_ok=True)
            stack.callback(shutil.rmtree, ledgers, ignore_errors=True)
            one = node.model_copy(update={"workers": 1})
            slim = SlimArchive(order.model, version, one, release, cache_dir, ledgers, link.url if link else None)
            size = await build_slim(slim, settings.handler_dir, archive)
            stack.callback(archive.unlink, missing_ok=True)
            seconds = round(time.monotonic() - began, 3)
            folder = self._tools.cache.folder(release)
            files = [] if cache_dir else [(folder / file.path).resolve() for file in release.content.files]
            yield (
                Registered(
                    archive.name, name, version, seconds, size, archive, [cache_dir] if cache_dir else files, files,
                    ledgers, node.startup_timeout_s,
                ),
                link,
            )  # fmt: skip

    @contextlib.contextmanager
    def _empty_cache(self) -> Any:
        """An empty cache that is removed afterwards."""
        folder = self._tools.settings.state_dir.resolve() / "coldstart"
        folder.mkdir(parents=True, exist_ok=True)
        cache_dir = Path(tempfile.mkdtemp(prefix="cache-", dir=folder))
        try:
            yield cache_dir
        finally:
            shutil.rmtree(cache_dir, ignore_errors=True)

    @contextlib.asynccontextmanager
    async def _embedded(
        self, order: Order, release: Release, node: NodeSettings, ground: Ground, doing: Doing
    ) -> AsyncIterator[tuple[Registered, Link | None]]:
        store = self._tools.settings.baseline_store
        if store is None:
            raise ApiError(503, "no_baseline", "required BASELINE_STORE, where embedded archives are kept, found none")
        doing.step, doing.store, doing.total = "building the archive", store, 2 * release.content.size
        built = await self._forms.embedded(release, order.form, store)
        doing.store = None
        archive = built.path.resolve()
        with ground.offered(archive) as url:
            name = order.model + SUFFIX
            yield (
                Registered(
                    url, name, release.name, built.seconds, built.bytes, archive, [], [archive], None, _EMBEDDED_START_S
                ),
                None,
            )
