"""The door: a prediction's way from the client to one named version in TorchServe and back.

What is refused here never reaches a worker: bad JSON, too many in flight, a model that is not served. What TorchServe would
leave hanging is cut by the door's own timeout, and every error has the JSON form of `errors`. Answers that come in chunks
go out chunk by chunk; a client that goes away closes its upstream connection.
"""

import asyncio
import json
import time
from typing import Protocol

from aiohttp import web

from serve.agent.bodies import checked_body
from serve.agent.errors import ApiError, from_torchserve, unavailable
from serve.agent.metrics import DoorMetrics
from serve.agent.routing import CUT_OFF, Route, RoutingTable, Target
from serve.agent.upstream import Exchange, Head, Upstream, UpstreamLost

TIMEOUT_SLACK_S = 2.0  # TorchServe's own timeout, which says more, may come first


class Form(Protocol):
    """How one client wants its answer worded. `task`: what the model must be for, None if the worker is to judge."""

    task: str | None

    def whole(self, status: int, body: bytes) -> bytes:
        """An answer that came in one, of a status that the handler chose: a prediction or, from 400, its own error."""
        ...

    def piece(self, chunk: bytes) -> bytes:
        """What goes out for a chunk of a stream; chunks may end anywhere in an event."""
        ...

    def broken(self, error: ApiError) -> bytes:
        """The event that ends a stream which cannot go on."""
        ...


class _AsItComes:
    """The form of `/predictions`, which is the handler's own."""

    task: str | None = None

    def whole(self, status: int, body: bytes) -> bytes:
        return body

    def piece(self, chunk: bytes) -> bytes:
        return chunk

    def broken(self, error: ApiError) -> bytes:
        return b"event: error\ndata: " + json.dumps(json.loads(error.body())).encode() + b"\n\n"


AS_IT_COMES: Form = _AsItComes()


class Door:
    """Proxies predictions to TorchServe's inference port, always as JSON: a form, which is what `curl -d` says, it would parse."""

    def __init__(self, table: RoutingTable, upstream: Upstream, metrics: DoorMetrics) -> None:
        self._table = table
        self._upstream = upstream
        self._metrics = metrics

    async def predict(self, request: web.BaseRequest, model: str, release: str | None) -> web.StreamResponse:
        """Answer one prediction, with the headers that name model and release.

        Raises:
            ApiError: for everything that is answered with an error.
        """
        began = time.perf_counter()
        try:
            self._table.find(model, release)  # an unknown model's body is not worth reading
            raw = await read_body(request)
            checked_body(raw)
        except ApiError as error:
            self.refused(model, error)
            raise
        return await self.answer(request, model, release, raw, AS_IT_COMES, began)

    async def answer(
        self, request: web.BaseRequest, model: str, release: str | None, raw: bytes, form: Form, began: float
    ) -> web.StreamResponse:
        """Send `raw`, a checked prediction body, to a worker and answer in the client's form. `began`: of perf_counter().

        Raises:
            ApiError: for everything that is answered with an error.
        """
        try:
            route = self._table.find(model, release)
            target = await self._table.admit(route, release)
            if form.task not in (None, target.task):
                message = f"required a model for {form.task}, found {model[:100]}, which is for {target.task}"
                raise ApiError(400, "wrong_task", message, field="model")
            with self._table.busy(route, target):
                response = await self._forward(request, raw, route, target, form)
        except ApiError as error:
            self.refused(model, error)
            raise
        self._metrics.answered(target, response.status, time.perf_counter() - began)
        return response

    def refused(self, model: str, error: ApiError) -> None:
        """Count a request that is answered with an error before, or instead of, a prediction."""
        self._metrics.refused(self._table, model, error.code)

    async def _forward(
        self, request: web.BaseRequest, raw: bytes, route: Route, target: Target, form: Form
    ) -> web.StreamResponse:
        limit_s = target.response_timeout_s + TIMEOUT_SLACK_S
        names = {"X-Weightless-Model": target.model, "X-Weightless-Release": target.release}
        exchange: Exchange | None = None
        try:
            exchange = await self._upstream.take()
            head = await exchange.request("POST", target.path, raw, limit_s)
            if head.chunked:
                return await _stream(request, head, exchange, target, names, form)
            body = await exchange.read()
            if head.status >= 400:
                error = from_torchserve(head.status, body, target.model, target.version)
                if error is not None:
                    raise error
            target.tally.errors += head.status >= 500
            kind = head.headers.get("content-type") or "application/json"
            told = form.whole(head.status, body)
            return web.Response(status=head.status, body=told, headers=names | {"Content-Type": kind})
        except TimeoutError:
            raise _timed_out(target, limit_s) from None
        except asyncio.CancelledError as cancelled:
            _only_if_cut_off(cancelled)
            raise unavailable(f"model {target.model}: {target.down}") from None
        except UpstreamLost as lost:
            why = target.down or (route.why if route.current is None else f"TorchServe is away: {lost}")
            raise unavailable(f"model {target.model}: {why}") from None
        finally:
            if exchange is not None:
                self._upstream.give_back(exchange)


async def read_body(request: web.BaseRequest) -> bytes:
    """The request's whole body; ApiError 413 if it is longer than MAX_BODY_BYTES."""
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise ApiError(
            413, "body_too_large", f"required a body within MAX_BODY_BYTES, found more ({error.text})"
        ) from None


async def _stream(
    request: web.BaseRequest, head: Head, exchange: Exchange, target: Target, names: dict[str, str], form: Form
) -> web.StreamResponse:
    """Pass chunks on as they come. A failure after the first byte can only be said in the stream: as an `error` event."""
    headers = names | {
        "Content-Type": head.headers.get("content-type", "text/event-stream"),
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",  # nginx would collect the tokens
    }
    response = web.StreamResponse(status=head.status, headers=headers)
    await response.prepare(request)
    failure: ApiError | None = None
    try:
        async for chunk in exchange.chunks():
            told = form.piece(chunk)
            if told:  # writing nothing would end the answer
                await response.write(told)
    except TimeoutError:
        failure = _timed_out(target, exchange.limit_s)
    except ConnectionResetError:
        raise asyncio.CancelledError from None  # the client went away while we wrote
    except asyncio.CancelledError as cancelled:
        _only_if_cut_off(cancelled)
        failure = unavailable(f"model {target.model}: {target.down}")
    except UpstreamLost:
        failure = unavailable(f"model {target.model}: the answer broke off, its worker died", "worker_died")
    if failure is not None:
        target.tally.errors += 1
        await response.write(form.broken(failure))
    await response.write_eof()
    return response


def _only_if_cut_off(cancelled: asyncio.CancelledError) -> None:
    """Go on only if the routing table cut this request off; a client that went away is nobody to answer."""
    task = asyncio.current_task()
    if cancelled.args != (CUT_OFF,) or task is None:
        raise cancelled
    task.uncancel()


def _timed_out(target: Target, limit_s: float) -> ApiError:
    return ApiError(504, "timeout", f"model {target.model}: required an answer within {limit_s:.0f} s, found none")
