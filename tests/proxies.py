"""Doors to a MinIO that misbehave: toxiproxy for what networks do, and a proxy of our own for answers that lie."""

import contextlib
import json
import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.services import MinioServer, free_port, tool, wait_for


@dataclass
class Toxiproxy:
    """One proxied port. `add` makes the network worse, `clear` makes it good again."""

    api: str
    name: str
    endpoint: str

    def add(self, kind: str, *, stream: str = "downstream", **attributes: int) -> None:
        self._call("POST", f"/proxies/{self.name}/toxics", {"type": kind, "stream": stream, "attributes": attributes})

    def clear(self) -> None:
        for toxic in self._call("GET", f"/proxies/{self.name}/toxics"):
            self._call("DELETE", f"/proxies/{self.name}/toxics/{toxic['name']}")

    def enable(self, enabled: bool) -> None:
        """False: connections are cut, and new ones refused."""
        self._call("POST", f"/proxies/{self.name}", {"enabled": enabled})

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.api + path, data, method=method), timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None


@contextlib.contextmanager
def toxiproxy_to(server: MinioServer) -> Iterator[Toxiproxy]:
    """A toxiproxy process with one door to this MinIO."""
    port, door = free_port(), free_port()
    log = (server.folder / "toxiproxy.log").open("ab")
    process = subprocess.Popen(
        [tool("toxiproxy-server"), "-host", "127.0.0.1", "-port", str(port)], stdout=log, stderr=log
    )
    try:
        proxy = Toxiproxy(f"http://127.0.0.1:{port}", "minio", f"http://127.0.0.1:{door}")
        wait_for(lambda: proxy._call("GET", "/proxies") is not None, "toxiproxy to listen")
        proxy._call(
            "POST", "/proxies", {"name": "minio", "listen": f"127.0.0.1:{door}", "upstream": f"127.0.0.1:{server.port}"}
        )
        yield proxy
    finally:
        process.terminate()
        process.wait(20)
        log.close()


@dataclass
class Answer:
    """One answer of the store on its way through the lying proxy: change it in place. `number` counts from 0, and only answers
    to GET requests of objects with a body pass here."""

    number: int
    request: str
    head: bytes
    body: bytes
    cut: bool = False  # close the connection after the body, whatever the head promised


@dataclass
class LyingProxy:
    """Passes every answer through `lie` before the client sees it."""

    server: MinioServer
    lie: Callable[[Answer], None]
    tls: ssl.SSLContext | None = None
    seen: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _listener: socket.socket = field(default_factory=socket.socket)

    @property
    def endpoint(self) -> str:
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self._listener.getsockname()[1]}"

    def start(self) -> None:
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(OSError, EOFError))
            client = stack.enter_context(self.tls.wrap_socket(client, server_side=True) if self.tls else client)
            asked = stack.enter_context(client.makefile("rb"))
            while True:
                request = _head(asked)
                # The Host is signed, so it goes to MinIO as the client wrote it: MinIO checks the signature, not the name.
                with (
                    socket.create_connection(("127.0.0.1", self.server.port)) as upstream,
                    upstream.makefile("rb") as said,
                ):
                    upstream.sendall(request)
                    head = _head(said)
                    body = said.read(_length(head))
                answer = Answer(self._number(), request.split(b"\r\n")[0].decode(), head, body)
                self.lie(answer)
                client.sendall(answer.head + answer.body)
                if answer.cut:
                    return

    def _number(self) -> int:
        with self._lock:
            self.seen += 1
            return self.seen - 1


@contextlib.contextmanager
def lying_proxy_to(
    server: MinioServer, lie: Callable[[Answer], None], tls: ssl.SSLContext | None = None
) -> Iterator[LyingProxy]:
    proxy = LyingProxy(server, lie, tls)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()


def _head(stream: Any) -> bytes:
    lines = [stream.readline()]
    if not lines[0]:
        raise EOFError
    while lines[-1] not in (b"\r\n", b""):
        lines.append(stream.readline())
    return b"".join(lines)


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.split(b":")[1])
    return 0


@contextlib.contextmanager
def proxy_that_hangs_after(server: MinioServer, answers: int) -> Iterator[LyingProxy]:
    """So many answers come, the others never: whoever fetches through it cannot end before it is killed."""
    over = threading.Event()

    def hang(answer: Answer) -> None:
        if answer.number >= answers:
            over.wait()
            answer.body, answer.cut = b"", True

    with lying_proxy_to(server, hang) as proxy:
        try:
            yield proxy
        finally:
            over.set()


def certificate_for_loopback(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """A certificate for 127.0.0.1 that signs itself, and a server's context with it."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return certificate, context
