"""The HTTP API: one place that dispatches a request, checks the key, and turns every error into the JSON form.

Dispatched by hand instead of by aiohttp's router and middlewares: predictions pass here, and that saves them 40 µs each.
"""

import asyncio
import json
import logging
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from serve.agent.archive import FOLLOW_ALIAS, SlimArchive, build_slim
from serve.agent.auth import KeyCheck
from serve.agent.bodies import json_object
from serve.agent.coldstart import ColdStarts, Order
from serve.agent.door import Door
from serve.agent.errors import ApiError
from serve.agent.metrics import DoorMetrics
from serve.agent.openai.errors import respond as respond_openai
from serve.agent.openai.routes import OpenAiRoutes
from serve.agent.reconciler import Reconciler
from serve.agent.rollout import Tools
from serve.agent.status import Status
from weightless.errors import NotFound, SettingsError, StoreError, WeightlessError
from weightless.modelfile import load_model_file

log = logging.getLogger(__name__)

Handler = Callable[[web.BaseRequest, list[str]], Awaitable[web.StreamResponse]]


class Api:
    """Answers requests; `handle` is what the server calls."""

    def __init__(
        self,
        key: KeyCheck,
        door: Door,
        openai: OpenAiRoutes,
        status: Status,
        reconciler: Reconciler,
        refresh: Callable[[], None],
        coldstarts: ColdStarts,
        metrics: DoorMetrics,
        tools: Tools,
    ) -> None:
        self._key = key
        self._door = door
        self._openai = openai
        self._status = status
        self._reconciler = reconciler
        self._refresh = refresh
        self._coldstarts = coldstarts
        self._metrics = metrics
        self._tools = tools
        self._handlers: dict[tuple[str, str], Handler] = {
            ("GET", "status"): self._get_status,
            ("GET", "metrics"): self._get_metrics,
            ("GET", "mar"): self._get_mar,
            ("POST", "retry"): self._post_retry,
            ("POST", "refresh"): self._post_refresh,
            ("POST", "coldstart"): self._post_coldstart,
            ("GET", "coldstart"): self._get_coldstart,
            **{(method, "baseline"): self._baseline for method in ("PUT", "POST", "DELETE")},
        }

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; never raises but for cancellation."""
        parts = request.path.strip("/").split("/")
        try:
            if parts == ["healthz"]:
                return self._healthz()
            self._key.check(request.headers.get("Authorization"))
            if parts[0] == "predictions" and 2 <= len(parts) <= 3:
                _only(request, "POST")
                return await self._door.predict(request, parts[1], parts[2] if len(parts) == 3 else None)
            if parts[0] == "v1":
                return await self._openai.handle(request, parts[1:])
            return await self._other(request, parts)
        except ApiError as error:
            return _worded(parts, error)
        except (asyncio.CancelledError, ConnectionResetError):
            raise
        except Exception:
            log.exception("%s %s", request.method, request.path)
            failed = ApiError(500, "internal", "the agent failed on this request; `make logs` has the traceback")
            return _worded(parts, failed)

    async def _other(self, request: web.BaseRequest, parts: list[str]) -> web.StreamResponse:
        handler = self._handlers.get((request.method, parts[0]))
        if handler is not None:
            return await handler(request, parts[1:])
        known = [method for method, name in self._handlers if name == parts[0]]
        if known:
            _only(request, *known)
        raise ApiError(
            404,
            "no_such_path",
            f"{request.path[:100]}: required POST /predictions/<model>, GET /healthz, /status, /metrics or /mar/<model>, "
            "POST /retry/<model>, /refresh or /coldstart, or OpenAI's routes under /v1",
        )

    def _healthz(self) -> web.Response:
        said = self._status.healthz()
        return _json(said, 200 if said["status"] == "ok" else 503)

    async def _get_status(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        return _json(self._status.as_dict())

    async def _get_metrics(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        theirs = b""
        try:
            async with self._tools.session.get(f"{self._tools.settings.metrics_url}/metrics") as response:
                theirs = await response.read() if response.status == 200 else b""
        except (aiohttp.ClientError, TimeoutError):
            log.debug("TorchServe's metrics are not to be had now")
        return web.Response(
            body=self._metrics.exposition() + theirs, headers={"Content-Type": "text/plain; version=0.0.4"}
        )

    async def _post_retry(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        self._reconciler.retry(_model(rest))
        return _json({"status": "retrying"}, 202)

    async def _post_refresh(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        """An alias moved: look now, not at the next poll."""
        self._refresh()
        return _json({"status": "looking"}, 202)

    async def _get_mar(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        model, name = _model(rest), request.query.get("release")
        store = self._tools.settings.model_store
        store.mkdir(parents=True, exist_ok=True)
        try:
            with tempfile.TemporaryDirectory(prefix="mar-", dir=store) as temp:
                archive = await asyncio.to_thread(self._slim, model, name)
                built = Path(temp) / f"{model}.mar"
                await build_slim(archive, self._tools.settings.handler_dir, built)
                body = await asyncio.to_thread(built.read_bytes)
        except (NotFound, SettingsError) as error:
            raise ApiError(404, "not_found", str(error)) from None
        except StoreError as error:
            raise ApiError(503, "store_unavailable", str(error), retry_after_s=5) from None
        except WeightlessError as error:
            raise ApiError(502, "archive_failed", str(error)) from None
        headers = {
            "Content-Disposition": f'attachment; filename="{model}.mar"',
            "X-Weightless-Release": archive.version,
        }
        return web.Response(body=body, content_type="application/octet-stream", headers=headers)

    def _slim(self, model: str, name: str | None) -> SlimArchive:
        """What to take away: pinned to what is served now, or to the named release, or following the alias."""
        node = load_model_file(self._tools.settings.models_config_dir, model).node
        serving = self._tools.store.serving(model) if name in (None, FOLLOW_ALIAS) else None
        if name == FOLLOW_ALIAS:
            return SlimArchive(model, FOLLOW_ALIAS, node)
        release = serving or self._tools.store.release(model, str(name))
        return SlimArchive(model, release.name, node, release)

    async def _post_coldstart(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        return _json(await self._coldstarts.run(Order.of(json_object(await self._door.read(request)))))

    async def _get_coldstart(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        return _json(await self._coldstarts.progress())

    async def _baseline(self, request: web.BaseRequest, rest: list[str]) -> web.StreamResponse:
        return await self._coldstarts.held.answer(request.method, _model(rest), await self._door.read(request))


def _worded(parts: list[str], error: ApiError) -> web.Response:
    """An error in the form that clients of this path read."""
    return respond_openai(error) if parts[0] == "v1" else error.response()


def _only(request: web.BaseRequest, *methods: str) -> None:
    if request.method not in methods:
        raise ApiError(
            405,
            "method_not_allowed",
            f"{request.path[:100]}: required {' or '.join(methods)}, found {request.method}",
        )


def _model(rest: list[str]) -> str:
    if len(rest) != 1 or not rest[0]:
        raise ApiError(404, "no_such_path", "required the name of one model at the end of the path")
    return rest[0]


def _json(body: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(status=status, body=json.dumps(body).encode() + b"\n", content_type="application/json")
