"""The server towards clients: aiohttp's low-level one, with its own refusals in JSON and a bound on clients that never finish.

What aiohttp refuses itself (a head that is not HTTP, two lengths, a header that is too long) it would answer as plain text and log
with a traceback; a head that arrives a byte a minute it would wait for as long as for an idle connection.
"""

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from serve.agent.errors import ApiError
from serve.agent.settings import AgentSettings

log = logging.getLogger(__name__)

_CLIENTS_GRACE_S = 10.0
_BACKLOG = 1024


async def listen(settings: AgentSettings, handle: Any) -> web.ServerRunner:
    """Take requests on AGENT_HOST and AGENT_PORT; `handle(request)` answers each. Ends with the runner's `cleanup`."""
    loop = asyncio.get_running_loop()

    def make_request(*arguments: object) -> web.BaseRequest:
        return web.BaseRequest(*arguments, loop, client_max_size=settings.max_body_bytes)  # type: ignore[arg-type, misc]

    server = _Server(handle, request_factory=make_request, handler_cancellation=True, access_log=None)
    server.client_seconds = settings.client_seconds
    runner = web.ServerRunner(server, shutdown_timeout=_CLIENTS_GRACE_S)
    await runner.setup()
    await web.TCPSite(runner, settings.agent_host, settings.agent_port, backlog=_BACKLOG).start()
    return runner


def too_slow(what: str, limit_s: float) -> ApiError:
    """408: the client did not send the rest of its request in time."""
    return ApiError(408, "request_timeout", f"required {what} within {limit_s:g} s, found it unfinished")


class _Server(web.Server):
    client_seconds = 0.0

    def __call__(self) -> RequestHandler:
        return _Connection(self, self.client_seconds, loop=self._loop, **self._kwargs)


class _Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_client_seconds", "_patience")

    def __init__(self, server: web.Server, client_seconds: float, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._client_seconds = client_seconds
        self._patience: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._in_a_head():
            if self._patience is None:
                self._patience = self._loop.call_later(self._client_seconds, self._give_up)
        elif self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._patience is not None:
            self._patience.cancel()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what the server cannot read as a request, or to a handler that raised; the connection ends with it."""
        if status >= 500:
            log.error("a request failed in the server", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("the answer had begun")
        found = (message or "what it cannot read").splitlines()[0][:100]
        response = ApiError(status, "bad_request", f"required a request in HTTP/1.1, found: {found}").response()
        response.force_close()
        return response

    def _give_up(self) -> None:
        self._patience = None
        if self.transport is not None and self._in_a_head():
            body = too_slow("the request's head", self._client_seconds).body()
            head = f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\n" + head.encode() + body)
            self.force_close()

    def _in_a_head(self) -> bool:
        """Whether what has come is not a whole head yet: no request is being answered, and none has come of it."""
        return self._request_count == 0 or (self._waiter is not None and not self._waiter.done())
