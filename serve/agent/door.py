"""The door: a prediction's way from the client to one named version in TorchServe and back.

What is refused here never reaches a worker: bad JSON, too many in flight, a model that is not served. What TorchServe would
leave hanging is cut by the door's own timeout, and every error has the JSON form of `errors`. Answers that come in chunks
go out chunk by chunk; a client that goes away closes its upstream connection.
"""

import asyncio
import json
import time

from aiohttp import web

from serve.agent.bodies import checked_body
from serve.agent.errors import ApiError, from_torchserve, unavailable
from serve.agent.metrics import DoorMetrics
from serve.agent.routing import CUT_OFF, Route, RoutingTable, Target
from serve.agent.upstream import Exchange, Head, Upstream, UpstreamLost

TIMEOUT_SLACK_S = 2.0  # TorchServe's own timeout, which says more, may come first


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
            route = self._table.find(model, release)
            raw = await _read(request)
            checked_body(raw)
            target = await self._table.admit(route)
            with self._table.busy(route, target):
                response = await self._forward(request, raw, route, target)
        except ApiError as error:
            self._metrics.refused(self._table, model, error.code)
            raise
        self._metrics.answered(target, response.status, time.perf_counter() - began)
        return response

    async def _forward(self, request: web.BaseRequest, raw: bytes, route: Route, target: Target) -> web.StreamResponse:
        limit_s = target.response_timeout_s + TIMEOUT_SLACK_S
        names = {"X-Weightless-Model": target.model, "X-Weightless-Release": target.release}
        exchange: Exchange | None = None
        try:
            exchange = await self._upstream.take()
            head = await exchange.request("POST", target.path, raw, limit_s)
            if head.chunked:
                return await _stream(request, head, exchange, target, names)
            body = await exchange.read()
            if head.status >= 400:
                error = from_torchserve(head.status, body, target.model, target.version)
                if error is not None:
                    raise error
            kind = head.headers.get("content-type") or "application/json"
            return web.Response(status=head.status, body=body, headers=names | {"Content-Type": kind})
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


async def _read(request: web.BaseRequest) -> bytes:
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise ApiError(
            413, "body_too_large", f"required a body within MAX_BODY_BYTES, found more ({error.text})"
        ) from None


async def _stream(
    request: web.BaseRequest, head: Head, exchange: Exchange, target: Target, names: dict[str, str]
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
            await response.write(chunk)
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
        await response.write(b"event: error\ndata: " + json.dumps(json.loads(failure.body())).encode() + b"\n\n")
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
