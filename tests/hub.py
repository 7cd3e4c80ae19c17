"""A small hub for tests: enough of the Hugging Face Hub's HTTP for the real `huggingface_hub` client, on loopback.

It serves folders as repositories of one commit. Large files are answered as the hub answers them, with a redirect to a
content address and the linked headers; `cut_after` breaks a connection off in the middle of a file.
"""

import contextlib
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

#: from this size on a file is kept as git-lfs keeps it
LARGE = 100_000


@cache
def sha256_of(path: Path, size: int, modified_ns: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


@dataclass(frozen=True)
class HubEntry:
    path: str
    local: Path

    @property
    def size(self) -> int:
        return self.local.stat().st_size

    @property
    def large(self) -> bool:
        return self.size >= LARGE

    @property
    def sha256(self) -> str:
        status = self.local.stat()
        return sha256_of(self.local, status.st_size, status.st_mtime_ns)

    @property
    def blob(self) -> str:
        """As git names a file's content; for a large file git holds a pointer."""
        body = f"oid sha256:{self.sha256}".encode() if self.large else self.local.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()

    def listed(self) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": self.path, "size": self.size, "oid": self.blob}
        if self.large:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": 134}
        return entry


@dataclass
class LocalHub:
    """`repos`: org/name → folder. `token`: asked for when set. `sent`: bytes of files that were sent, by path."""

    repos: dict[str, Path]
    token: str | None = None
    cut_after: int | None = None
    flip: bool = False
    port: int = 0
    sent: dict[str, int] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def commit(self, repo: str) -> str:
        """A commit that changes with the folder's content, as real ones do."""
        names = "\n".join(f"{entry.path} {entry.size} {entry.local.stat().st_mtime_ns}" for entry in self.entries(repo))
        return hashlib.sha1(f"{repo}\n{names}".encode()).hexdigest()

    def entries(self, repo: str) -> list[HubEntry]:
        root = self.repos[repo]
        return [HubEntry(path.relative_to(root).as_posix(), path) for path in sorted(root.rglob("*")) if path.is_file()]


@contextlib.contextmanager
def running_hub(hub: LocalHub) -> Iterator[LocalHub]:
    """The hub, listening for as long as the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: LocalHub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route(body=True)

    def do_HEAD(self) -> None:
        self._route(body=False)

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _route(self, *, body: bool) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append(f"{self.command} {path}")
        if found := re.fullmatch(r"/cdn/([0-9a-f]{64})", path):
            wanted = parse_qs(url.query)["path"][0]
            entry = next(
                entry
                for repo in self.hub.repos
                for entry in self.hub.entries(repo)
                if entry.path == wanted and entry.large
            )
            assert entry.sha256 == found[1]
            return self._file(entry, body=body)
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self._error(401, "RepoNotFound")
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            return self._api(found[1], found[2], found[3] or "main")
        if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(found[1], found[2], found[3], body=body)
        return self._error(404, "")

    def _api(self, repo: str, what: str | None, revision: str) -> None:
        if repo not in self.hub.repos:
            return self._error(404 if self.hub.token else 401, "RepoNotFound")
        commit = self.hub.commit(repo)
        if revision not in ("main", commit):
            return self._error(404, "RevisionNotFound")
        entries = self.hub.entries(repo)
        if what == "tree":
            return self._json([entry.listed() for entry in entries])
        return self._json({"id": repo, "sha": commit, "siblings": [{"rfilename": entry.path} for entry in entries]})

    def _resolve(self, repo: str, revision: str, path: str, *, body: bool) -> None:
        entries = {entry.path: entry for entry in self.hub.entries(repo)}
        if path not in entries:
            return self._error(404, "EntryNotFound")
        entry = entries[path]
        headers = {"X-Repo-Commit": self.hub.commit(repo)}
        if not entry.large:
            return self._file(entry, body=body, headers=headers | {"ETag": f'"{entry.blob}"'})
        headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        headers |= {"Location": f"{self.hub.endpoint}/cdn/{entry.sha256}?path={path}", "ETag": '"pointer"'}
        return self._answer(302, headers, b"")

    def _file(self, entry: HubEntry, *, body: bool, headers: dict[str, str] | None = None) -> None:
        start, size = 0, entry.size
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted:
            start = int(wanted[1])
        self.send_response(206 if wanted else 200)
        for name, value in (headers or {"ETag": f'"{entry.sha256}"'}).items():
            self.send_header(name, value)
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        if not body:
            return
        count = size - start
        if self.hub.cut_after is not None and entry.large:
            count = min(count, self.hub.cut_after)
            self.close_connection = True
        with entry.local.open("rb") as file:
            if self.hub.flip and entry.large:
                file.seek(start)
                raw = bytearray(file.read(count))
                raw[len(raw) // 2] ^= 1
                self.wfile.write(raw)
            elif count:
                self.wfile.flush()
                self.connection.sendfile(file, start, count)
        self.hub.sent[entry.path] = self.hub.sent.get(entry.path, 0) + count

    def _json(self, value: object) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _error(self, status: int, code: str) -> None:
        self._answer(status, {"X-Error-Code": code, "X-Error-Message": code}, b"")

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def repository(folder: Path, out: Path) -> Path:
    """A copy of a model's folder with what real repositories hold beside it: other formats, papers, code."""
    shutil.copytree(folder, out)
    (out / "pytorch_model-00001-of-00002.bin").write_bytes(b"pickled" * 20_000)
    (out / "coreml").mkdir()
    (out / "coreml" / "config.json").write_text("{}")
    (out / "README.md").write_text("# A model")
    (out / ".gitattributes").write_text("*.safetensors filter=lfs")
    (out / "modeling_own.py").write_text("raise SystemExit('code of the model')")
    return out
