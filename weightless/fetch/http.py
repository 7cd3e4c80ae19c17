"""As much of HTTP/1.1 as reading objects needs: one kept-alive connection, GETs one after the other, bodies with a length.

`http.client` reads headers with the parser that e-mail needs; for 3,000 small objects that was a fifth of the fetch's CPU time. A
head is read with what comes behind it, in one call: for a small object that is all of its body.
"""

import contextlib
import socket
import ssl
import time
from collections.abc import Mapping
from typing import NamedTuple

_READ = 64 << 10
_MAX_HEAD = 64 << 10
_MAX_HEADERS = 200


class BadAnswer(Exception):
    """What came is not an answer that this module can read."""


class Head(NamedTuple):
    """Version, status and headers of an answer; names in lower case, of repeated ones the last."""

    version: str
    status: int
    headers: Mapping[str, str]

    @property
    def closing(self) -> bool:
        """Whether the server will not read another request on this connection."""
        return self.version == "HTTP/1.0" or self.headers.get("connection", "").lower() == "close"

    @property
    def length(self) -> int | None:
        """Bytes of the body; None if the answer does not say."""
        text = self.headers.get("content-length", "")
        if "transfer-encoding" in self.headers or not text.isascii() or not text.isdigit():
            return None
        return int(text)


class HttpConnection:
    """Connects when it is first needed, and again after `close`. Every method may raise OSError."""

    def __init__(self, host: str, port: int, timeout: float, tls: ssl.SSLContext | None) -> None:
        self._address = (host, port)
        self._timeout = timeout
        self._tls = tls
        self._socket: socket.socket | None = None
        self._ahead = b""  # came with a head, and stands behind it
        self._closing = False

    def send(self, target: str, headers: Mapping[str, str]) -> None:
        """Send a GET. All of the last one's body must have been read, or the connection closed."""
        if self._closing:
            self.close()  # the server said that it would not read another request
        if self._socket is None:
            self._connect()
        assert self._socket is not None
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode("ascii"))

    def head(self) -> Head:
        """Wait for the head of the answer to what was sent."""
        head = self._read_head()
        while 100 <= head.status < 200:
            head = self._read_head()
        self._closing = head.closing
        return head

    def readinto(self, buffer: memoryview) -> int:
        """What is there of the body, after waiting for some of it. The buffer must not be larger than what the body still
        has. 0: the other side closed."""
        if self._ahead:
            count = min(len(buffer), len(self._ahead))
            buffer[:count], self._ahead = self._ahead[:count], self._ahead[count:]
            return count
        if self._socket is None:
            raise ConnectionError("the connection was closed")
        return self._socket.recv_into(buffer)

    def close(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
        self._socket, self._ahead, self._closing = None, b"", False

    def abort(self) -> None:
        """End what another thread waits for in `head` or `readinto`."""
        if (opened := self._socket) is not None:
            with contextlib.suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> None:
        opened = socket.create_connection(self._address, self._timeout)
        try:
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                opened = self._tls.wrap_socket(opened, server_hostname=self._address[0])
        except BaseException:
            opened.close()
            raise
        self._socket = opened

    def _read_head(self) -> Head:
        if self._socket is None:
            raise ConnectionError("the connection was closed")
        read, began = self._ahead, time.monotonic()
        while (end := read.find(b"\r\n\r\n", 0, _MAX_HEAD)) < 0:
            if len(read) >= _MAX_HEAD:
                raise BadAnswer(f"required a head of at most {_MAX_HEAD} bytes, found more")
            if time.monotonic() - began > self._timeout:
                # The socket's own timeout notices silence; this, a byte now and then.
                raise BadAnswer(f"required an answer's head within {self._timeout:g} s, found {len(read)} bytes of one")
            more = self._socket.recv(_READ)
            if not more:
                raise BadAnswer(f"the connection was closed in the middle of an answer's head: {read[:80]!r}")
            read += more
        self._ahead = read[end + 4 :]
        first, *lines = read[:end].decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        code = rest[:3]
        if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdigit() and len(code) == 3):
            raise BadAnswer(f"required an HTTP/1.1 answer, found {first[:80]!r}")
        if len(lines) > _MAX_HEADERS:
            raise BadAnswer(f"required at most {_MAX_HEADERS} headers, found more")
        headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon:
                raise BadAnswer(f"required a header, found {line[:80]!r}")
            headers[name.strip().lower()] = value.strip()
        return Head(version, int(code), headers)
