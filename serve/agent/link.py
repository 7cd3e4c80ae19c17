"""A slower way to the store, to measure a cold start over: `python -m serve.agent.link HOST PORT RATE CUT_AT`.

Prints the port that it listens on, relays each connection to the store, and lets RATE bytes/s (0: as many as there are) come down
over all of them together. With CUT_AT, all connections end when that many bytes have come down, and for a second nobody is let
through. At the end of its standard input it prints what it carried, as JSON, and leaves. Latency is not shaped.

splice() moves the bytes from socket to socket inside the kernel: on two cores 10 Gb/s were kept within 1 % (1,256 MB/s of 1,250),
and without a bound 2,300 MB/s passed, for 0.7 s of processor time a GB (measured).
"""

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

from pydantic import AnyHttpUrl

from serve.agent.children import bound_to_us, stop
from serve.agent.errors import invalid
from serve.agent.settings import ROOT, child_environment, python
from weightless.errors import WeightlessError

RATES = {"1gbit": 125_000_000, "10gbit": 1_250_000_000, "cut": 0}
AWAY_S = 1.0  # how long a cut lasts: less than the attempts of a fetch go on, 3 s with the shortest pauses
_CHUNK = 256 << 10
_BURST_S = 0.005  # what a pause of the reader may be made up for; a longer one is lost, as on a wire
_PAUSE_S = 0.05  # a longer one is nobody asking, and does not count in the rate


@dataclass
class Carried:
    """What a link carried down: bytes, bytes/s while there were some to carry, and how often it was cut."""

    bytes: int = 0
    bytes_per_s: float = 0.0
    cuts: int = 0


class Link:
    """One link, used by one start. `url` is where the store is found through it; `carried` is filled in when it ends."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.carried = Carried()


@contextlib.asynccontextmanager
async def shaped(store: AnyHttpUrl, name: str, size: int) -> AsyncIterator[Link]:
    """A link of that name to the store, for a start that will fetch `size` bytes.

    Raises:
        ApiError: the store speaks TLS, whose certificate names another host than the link's.
        WeightlessError: the link did not come up.
    """
    if store.scheme != "http":
        raise invalid("link", f"required a store over http, found {store.scheme}: its certificate is for its own name")
    cut_at = size // 2 if name == "cut" else 0
    command = [python(), "-m", "serve.agent.link", str(store.host), str(store.port), str(RATES[name]), str(cut_at)]
    pipe = asyncio.subprocess.PIPE
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    process = await asyncio.create_subprocess_exec(*bound_to_us(command), stdin=pipe, stdout=pipe, env=environment)
    assert process.stdin is not None and process.stdout is not None
    try:
        port = (await process.stdout.readline()).decode().strip()
        if not port:
            raise WeightlessError(f"link {name}: required a port, found that the relay ended; its error is in the log")
        link = Link(f"http://127.0.0.1:{port}")
        yield link
        process.stdin.close()
        link.carried = Carried(**json.loads(await process.stdout.readline()))
    finally:
        await stop(process, grace_s=5)


# ---- in the process of its own


class Meter:
    """Shared by all connections: counts what comes down, holds it to the rate, and says when to cut."""

    def __init__(self, rate: float, cut_at: int) -> None:
        self._rate = rate
        self._cut_at = cut_at
        self._lock = threading.Lock()
        self._due = self._seconds = 0.0
        self._last = time.monotonic()
        self._bytes = 0
        self.cuts = 0

    def take(self, moved: int) -> bool:
        """Wait until these bytes may have passed; whether the link is cut now."""
        with self._lock:
            now = time.monotonic()
            self._seconds += min(now - self._last, _PAUSE_S)
            self._last = now
            self._bytes += moved
            wait = 0.0
            if self._rate:
                self._due = max(self._due, now - _BURST_S) + moved / self._rate
                wait = self._due - now
            cut = bool(self._cut_at) and not self.cuts and self._bytes >= self._cut_at
            self.cuts += cut
        if wait > 0:
            time.sleep(wait)
        return cut

    def carried(self) -> Carried:
        return Carried(self._bytes, round(self._bytes / self._seconds) if self._seconds else 0, self.cuts)


class Relay:
    """Accepts connections and moves their bytes, two threads each."""

    def __init__(self, upstream: tuple[str, int], meter: Meter) -> None:
        self._upstream = upstream
        self._meter = meter
        self._open: set[socket.socket] = set()
        self._away_until = 0.0
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)

    def run(self) -> None:
        while True:
            client, _ = self.listener.accept()
            if time.monotonic() < self._away_until:
                _reset(client)
                continue
            try:
                server = socket.create_connection(self._upstream)
            except OSError:
                _reset(client)
                continue
            self._open |= {client, server}
            for source, sink, down in ((client, server, False), (server, client, True)):
                threading.Thread(target=self._pump, args=(source, sink, down), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, down: bool) -> None:
        out, into = os.pipe()
        with contextlib.suppress(OSError):
            while moved := os.splice(source.fileno(), into, _CHUNK):
                if down and self._meter.take(moved):
                    self._cut()
                while moved:
                    moved -= os.splice(out, sink.fileno(), moved)
        for end in (out, into):
            os.close(end)
        for side in (source, sink):
            self._open.discard(side)
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)

    def _cut(self) -> None:
        self._away_until = time.monotonic() + AWAY_S
        for side in list(self._open):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


def _reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def main() -> None:
    host, port, rate, cut_at = sys.argv[1:]
    meter = Meter(float(rate), int(cut_at))
    relay = Relay((host, int(port)), meter)
    print(relay.listener.getsockname()[1], flush=True)
    threading.Thread(target=relay.run, daemon=True).start()
    sys.stdin.read()
    print(json.dumps(vars(meter.carried())), flush=True)


if __name__ == "__main__":
    main()
