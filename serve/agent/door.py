"""The door: a prediction's way from the client to one named version in TorchServe and back.

What is refused here never reaches a worker: bad JSON, too many in flight, a model that is not served. What TorchServe would
leave hanging is cut by the door's own timeout, and every error has the JSON form of `errors`. Answers that come in chunks
go out chunk by chunk; a client that goes away closes its upstream connection.
"""

import asyncio
import json
import time
from typing import NamedTuple, Protocol

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestPayloadError

from serve.agent.bodies import checked_body
from serve.agent.errors import ApiError, from_torchserve, kind_of, unavailable
from serve.agent.listener import too_slow
from serve.agent.metrics import DoorMetrics, ReleaseMetrics, StreamClock
from serve.agent.routing import CUT_OFF, Route, RoutingTable, Target
from serve.agent.upstream import Exchange, Head, Upstream, UpstreamLost

CLIENT_GONE = 499  # what nginx logs for a client that did not wait for its answer
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


class _Passage(NamedTuple):
    """One prediction on its way. `began`: of perf_counter(), when its head had come."""

    request: web.BaseRequest
    raw: bytes
    route: Route
    target: Target
    form: Form
    figures: ReleaseMetrics
    began: float

    def names(self) -> dict[str, str]:
        return {"X-Weightless-Model": self.target.model, "X-Weightless-Release": self.target.release}


class Door:
    """Proxies predictions to TorchServe's inference port, always as JSON: a form, which is what `curl -d` says, it would parse."""

    def __init__(self, table: RoutingTable, upstream: Upstream, metrics: DoorMetrics, client_seconds: float) -> None:
        self._table = table
        self._upstream = upstream
        self._metrics = metrics
        self._client_seconds = client_seconds

    async def predict(self, request: web.BaseRequest, model: str, release: str | None) -> web.StreamResponse:
        """Answer one prediction, with the headers that name model and release.

        Raises:
            ApiError: for everything that is answered with an error.
        """
        began = time.perf_counter()
        try:
            self._table.find(model, release)  # an unknown model's body is not worth reading
            raw = await self.read(request)
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
        figures: ReleaseMetrics | None = None
        try:
            route = self._table.find(model, release)
            target = await self._table.admit(route, release)
            if form.task not in (None, target.task):
                message = f"required a model for {form.task}, found {model[:100]}, which is for {target.task}"
                raise ApiError(400, "wrong_task", message, field="model")
            figures = self._metrics.of(target)
            with self._table.busy(route, target):
                response = await self._forward(_Passage(request, raw, route, target, form, figures, began))
        except ApiError as error:
            if figures is None:
                self.refused(model, error)
            else:
                figures.failed(error.type)
                figures.answered(error.code, time.perf_counter() - began)
            raise
        except asyncio.CancelledError:
            if figures is not None:
                figures.failed("client_gone")
                figures.answered(CLIENT_GONE, time.perf_counter() - began)
            raise
        figures.answered(response.status, time.perf_counter() - began)
        return response

    async def read(self, request: web.BaseRequest) -> bytes:
        """The request's whole body.

        Raises:
            ApiError: it is longer than MAX_BODY_BYTES, not what its headers say, or takes the client longer than CLIENT_SECONDS.
        """
        try:
            if request.content.is_eof():
                return await request.read()
            if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
                request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            async with asyncio.timeout(self._client_seconds):
                return await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            message = f"required a body within MAX_BODY_BYTES, found more ({error.text})"
            raise ApiError(413, "body_too_large", message) from None
        except TimeoutError:
            raise too_slow("the request's body", self._client_seconds) from None
        except (RequestPayloadError, HttpProcessingError) as error:
            message = f"required a body as its headers say, found: {str(error).splitlines()[0][:100]}"
            raise ApiError(400, "bad_request", message) from None

    def refused(self, model: str, error: ApiError) -> None:
        """Count a request that is answered with an error before, or instead of, a prediction."""
        self._metrics.refused(model, error.code, error.type)

    async def _forward(self, passage: _Passage) -> web.StreamResponse:
        target, route = passage.target, passage.route
        limit_s = target.response_timeout_s + TIMEOUT_SLACK_S
        exchange: Exchange | None = None
        try:
            exchange = await self._upstream.take()
            head = await exchange.request("POST", target.path, passage.raw, limit_s)
            if head.chunked and not head.early:
                return await _stream(passage, head, exchange)
            body = await exchange.read()
            if head.early:
                head, body = _late(head, body)
            if head.status >= 400:
                error = from_torchserve(head.status, body, target.model, target.version)
                if error is not None:
                    raise error
                passage.figures.failed(kind_of(body))
            else:
                passage.figures.told(head.headers, stream=False)
            target.tally.errors += head.status >= 500
            kind = head.headers.get("content-type") or "application/json"
            told = passage.form.whole(head.status, body)
            return web.Response(status=head.status, body=told, headers=passage.names() | {"Content-Type": kind})
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


async def _stream(passage: _Passage, head: Head, exchange: Exchange) -> web.StreamResponse:
    """Pass chunks on as they come. A failure after the first byte can only be said in the stream: as an `error` event."""
    target, form, figures = passage.target, passage.form, passage.figures
    figures.told(head.headers, stream=True)
    headers = passage.names() | {
        "Content-Type": head.headers.get("content-type", "text/event-stream"),
        "Cache-Control": "no-cache",
        "X-Accel-Buffering": "no",  # nginx would collect the tokens
    }
    response = web.StreamResponse(status=head.status, headers=headers)
    await response.prepare(passage.request)
    failure: ApiError | None = None
    chunk, clock = b"", StreamClock(figures, passage.began)
    try:
        async for chunk in exchange.chunks():
            clock.piece()
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
    if failure is None:
        figures.ended(chunk)
    else:
        figures.failed(failure.type)
        target.tally.errors += 1
        await response.write(form.broken(failure))
    await response.write_eof()
    return response


def _late(head: Head, raw: bytes) -> tuple[Head, bytes]:
    """Head and body of an answer whose head was sent before they were known, to notice a client that goes away."""
    line, _, body = raw.partition(b"\n")
    told = json.loads(line)
    headers = {name.lower(): value for name, value in told["headers"].items()}
    return Head(told["status"], head.headers | headers), body


def _only_if_cut_off(cancelled: asyncio.CancelledError) -> None:
    """Go on only if the routing table cut this request off; a client that went away is nobody to answer."""
    task = asyncio.current_task()
    if cancelled.args != (CUT_OFF,) or task is None:
        raise cancelled
    task.uncancel()


def _timed_out(target: Target, limit_s: float) -> ApiError:
    return ApiError(504, "timeout", f"model {target.model}: required an answer within {limit_s:.0f} s, found none")
