"""Requests one after another on each of so many connections, with as little client around them as there can be.

A client that takes as much of the processor as what it measures would make any door look fast: this one writes bytes that are
made once, and reads no more of an answer than its length. Arguments: HOST PORT PATH CONNECTIONS REQUESTS; it prints
{"seconds", "p50"}.
"""

import asyncio
import json
import statistics
import sys
import time
from typing import cast

import uvloop

LIMIT_S = 120  # a request that is never answered must not hold up the benchmark
BODY = json.dumps({"input": "the falcon circles above a quiet harbour"}).encode()


class Connection(asyncio.Protocol):
    """Sends its next request when the last one is answered, as long as `budget` has some left."""

    def __init__(self, path: str, budget: "list[int]", latencies: "list[float]", done: "asyncio.Future[None]") -> None:
        lines = f"POST {path} HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {len(BODY)}\r\n\r\n"
        self._request = lines.encode() + BODY
        self._budget, self._latencies, self._done = budget, latencies, done
        self._raw = b""
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def data_received(self, data: bytes) -> None:
        self._raw += data
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._raw[:end].lower()
        if not head.startswith(b"http/1.1 200"):
            self._fail(f"required 200, found {self._raw[:300]!r}")
            return
        length = int(head.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(self._raw) < end + 4 + length:
            return
        self._latencies.append(time.perf_counter() - self._began)
        self._raw = b""
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"the connection was closed ({exc})")

    def _next(self) -> None:
        if not self._budget[0]:
            if not self._done.done():
                self._done.set_result(None)
            self._transport.abort()
            return
        self._budget[0] -= 1
        self._began = time.perf_counter()
        self._transport.write(self._request)

    def _fail(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(ValueError(why))


async def run(host: str, port: int, path: str, connections: int, requests: int) -> dict[str, float]:
    """Send so many requests over all connections together."""
    loop = asyncio.get_running_loop()
    budget, latencies = [requests], list[float]()
    done: list[asyncio.Future[None]] = [loop.create_future() for _ in range(connections)]
    began = time.perf_counter()
    for future in done:
        await loop.create_connection(lambda future=future: Connection(path, budget, latencies, future), host, port)  # type: ignore[misc]
    async with asyncio.timeout(LIMIT_S):
        await asyncio.gather(*done)
    return {"seconds": time.perf_counter() - began, "p50": statistics.median(latencies)}


if __name__ == "__main__":
    host, port, path, connections, requests = sys.argv[1:]
    print(json.dumps(uvloop.run(run(host, int(port), path, int(connections), int(requests)))))
