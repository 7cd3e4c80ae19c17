"""Requests to TorchServe's inference port: HTTP/1.1 over kept connections, and no more of it than TorchServe speaks.

aiohttp's client does the same and much that is not needed here (redirects, cookies, proxies, URLs). Without it a request costs the
agent 0.42 ms of CPU instead of 0.81 (one client), and the door adds 0.5 ms to an answer at p50 instead of 1.0, on two cores that
were busy with other things. What comes is a head, and then either a body of Content-Length bytes or chunks.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import cast

_HIGH_WATER = 256 << 10  # bytes of a stream that wait for a slow client; then TorchServe has to wait too
_CONNECT_S = 5.0


class UpstreamLost(Exception):
    """TorchServe cannot be reached, ended the connection, or sent what is not HTTP."""


@dataclass(frozen=True)
class Head:
    """Status and headers (names in lower case) of an answer."""

    status: int
    headers: dict[str, str]

    @property
    def chunked(self) -> bool:
        return self.headers.get("transfer-encoding", "").lower() == "chunked"

    @property
    def early(self) -> bool:
        """Whether it came before the answer was known, whose status and headers are then the first line of the body, in JSON."""
        return "x-weightless-late" in self.headers


class Exchange(asyncio.Protocol):
    """One connection, and the one request that is on it. Each wait is bounded by `limit_s` seconds: TimeoutError."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._raw = bytearray()  # not parsed yet
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._head: Head | None = None
        self._left: int | None = None  # bytes of the body, or of the chunk, still to come
        self._done = True
        self._lost: str | None = None
        self._waiter: asyncio.Future[None] | None = None
        self.limit_s = 0.0

    @property
    def reusable(self) -> bool:
        keep = self._head is None or self._head.headers.get("connection", "").lower() != "close"
        return self._done and keep and self._lost is None and not self._raw

    async def request(self, method: str, path: str, body: bytes, limit_s: float) -> Head:
        """Send a request and wait for the answer's head.

        With it a worker is told when it was sent (ms since 1970), for its queue time, and that a head may come before its answer.
        """
        assert self._done and self._transport is not None
        self._head, self._left, self._done, self.limit_s = None, None, False, limit_s
        ours = f"x-weightless-early: 1\r\nx-weightless-sent: {time.time() * 1000:.1f}\r\n"
        head = f"{method} {path} HTTP/1.1\r\nhost: torchserve\r\n{ours}"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self._transport.write(head.encode() + body)
        while self._head is None:
            await self._more()
        return self._head

    async def read(self) -> bytes:
        """The whole body."""
        while not self._done:
            await self._more()
        return self._take()

    async def chunks(self) -> AsyncIterator[bytes]:
        """What has come, as it comes, joined only where several chunks came together."""
        while True:
            if self._chunks:
                yield self._take()
            elif self._done:
                return
            else:
                await self._more()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    # ---- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = f"it closed the connection ({exc})" if exc else "it closed the connection"
        self._wake()

    def data_received(self, data: bytes) -> None:
        self._raw += data
        try:
            while self._parse():
                pass
        except (ValueError, IndexError):
            self._lost = f"it sent what is not HTTP: {bytes(self._raw[:60])!r}"
            self.abort()
        if self._buffered > _HIGH_WATER and self._transport is not None:
            self._transport.pause_reading()
        self._wake()

    # ---- below

    def _parse(self) -> bool:
        """Take one piece off what came; False when more must come first."""
        if self._done:
            if self._raw:
                raise ValueError("bytes after the end of an answer")
            return False
        if self._head is None:
            return self._parse_head()
        if self._left is None:
            return self._parse_chunk_size()
        if not self._head.chunked:
            return self._parse_body(self._head)
        return self._parse_chunk()

    def _parse_head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            return False
        status, *lines = self._raw[:end].decode("latin-1").split("\r\n")
        del self._raw[: end + 4]
        pairs = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        version, code = status.split(" ", 2)[:2]
        if not version.startswith("HTTP/1."):
            raise ValueError(status)
        self._head = Head(int(code), headers)
        if not self._head.chunked:
            self._left = int(headers["content-length"]) if "content-length" in headers else 0
            self._done = not self._left
        return bool(self._raw)

    def _parse_body(self, head: Head) -> bool:
        assert self._left is not None
        if len(self._raw) < self._left:
            return False
        self._keep(bytes(self._raw[: self._left]))
        del self._raw[: self._left]
        self._done = True
        return bool(self._raw)

    def _parse_chunk_size(self) -> bool:
        end = self._raw.find(b"\r\n")
        if end < 0:
            return False
        self._left = int(self._raw[:end].split(b";")[0], 16)
        del self._raw[: end + 2]
        return True

    def _parse_chunk(self) -> bool:
        assert self._left is not None
        if len(self._raw) < self._left + 2:
            return False
        if self._raw[self._left : self._left + 2] != b"\r\n":
            raise ValueError("a chunk that does not end")
        self._done = self._left == 0  # TorchServe sends no trailers
        self._keep(bytes(self._raw[: self._left]))
        del self._raw[: self._left + 2]
        self._left = None
        return bool(self._raw)

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._chunks.append(piece)
            self._buffered += len(piece)

    def _take(self) -> bytes:
        taken = self._chunks.popleft() if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        if self._buffered > _HIGH_WATER and self._transport is not None:
            self._transport.resume_reading()
        self._buffered = 0
        return taken

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _more(self) -> None:
        """Wait until something came. A timer of the loop costs a third of asyncio.timeout."""
        if self._lost is not None:
            raise UpstreamLost(self._lost)
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(self.limit_s, self._expire)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _expire(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(TimeoutError())


class Upstream:
    """Connections to one server. `exchange()` lends one; what is broken or unread when it comes back is closed."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: list[Exchange] = []

    async def take(self) -> Exchange:
        """A connection with nothing on it, which the caller must `give_back`; UpstreamLost if none can be made."""
        while self._idle:
            exchange = self._idle.pop()
            if exchange.reusable:
                return exchange
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, exchange = await loop.create_connection(Exchange, self._host, self._port)
        except (OSError, TimeoutError) as error:
            raise UpstreamLost(f"it cannot be reached ({error})") from None
        return exchange

    def give_back(self, exchange: Exchange) -> None:
        if exchange.reusable:
            self._idle.append(exchange)
        else:
            exchange.abort()

    def close(self) -> None:
        for exchange in self._idle:
            exchange.abort()
        self._idle.clear()
