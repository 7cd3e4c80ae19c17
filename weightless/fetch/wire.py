"""Ranges of one pinned object version, read through one kept-alive connection that believes no answer it has not checked.

Not through minio-py: a body is read into our own buffer here (urllib3's `read` copies it once more), and a small object costs
half the CPU time.
"""

import contextlib
import re
import ssl
import time
from types import TracebackType
from typing import NamedTuple, NoReturn, Self
from urllib.parse import quote

from weightless.errors import AccessDenied, FetchFailed, NotFound, StoreUnavailable
from weightless.fetch.http import BadAnswer, Head, HttpConnection
from weightless.fetch.sign import Signer
from weightless.settings import StoreSettings

_SLOWEST = 1024  # bytes a second below which a connection that still dribbles counts as stalled
_MAX_ERROR_BODY = 64 << 10


class Interrupted(StoreUnavailable):
    """This request brought less than was asked for, or something else. Another attempt may bring the rest."""


class Wanted(NamedTuple):
    """Bytes `offset` up to `end` of an object version that is `size` bytes long; None where that is not known."""

    bucket: str
    key: str
    version_id: str | None
    offset: int
    end: int | None
    size: int | None

    @property
    def name(self) -> str:
        """As errors call it."""
        return f"{self.bucket}/{self.key}" + (f" (version {self.version_id})" if self.version_id else "")

    @property
    def whole(self) -> bool:
        return self.offset == 0 and self.end == self.size


class Body:
    """The bytes of one answer, in order, through `readinto`. Close it in any case."""

    def __init__(self, http: HttpConnection, what: str, length: int, stall_seconds: float) -> None:
        self._http = http
        self._stall_seconds = stall_seconds
        self._what = what
        self._broken: Interrupted | None = None
        self.left = length

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer, or as much of it as the answer still has or brought before it broke; return how many bytes.

        Raises:
            Interrupted: the connection was cut or stalled, and everything that it brought was read.
        """
        if self._broken is not None:
            raise self._broken
        want = min(len(buffer), self.left)
        got = 0
        window_began, window_got = time.monotonic(), 0
        try:
            while got < want:
                count = self._http.readinto(buffer[got:want])
                if not count:
                    raise Interrupted(f"{self._what}: the body ended {self.left} bytes early")
                got += count
                self.left -= count
                # The socket's own timeout notices silence; this notices a connection that dribbles.
                now = time.monotonic()
                if now - window_began > self._stall_seconds:
                    if got - window_got < _SLOWEST * self._stall_seconds:
                        raise Interrupted(f"{self._what}: stalled at less than {_SLOWEST} bytes a second")
                    window_began, window_got = now, got
        except (OSError, ValueError) as error:  # ValueError: the connection was closed under us
            self._broken = Interrupted(f"{self._what}: {_said(error)}")
            self._broken.__cause__ = error
        except Interrupted as error:
            self._broken = error
        if self._broken is not None and not got:
            raise self._broken
        return got

    def close(self) -> None:
        """Give up what was not read; the next request makes a new connection."""
        if self.left or self._broken is not None:
            self._http.close()


class Connection:
    """Used by one thread at a time. `abort` may be called from another thread and ends whatever goes on here."""

    def __init__(self, settings: StoreSettings, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._settings = settings
        self._signer = Signer(*settings.credentials(), settings.s3_region)
        host, default = str(settings.s3_endpoint.host), 443 if settings.secure else 80
        port = settings.s3_endpoint.port or default
        self._host = host if port == default else f"{host}:{port}"
        self._http = HttpConnection(host.strip("[]"), port, stall_seconds, _tls(settings) if settings.secure else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get(
        self,
        bucket: str,
        key: str,
        version_id: str | None = None,
        *,
        offset: int = 0,
        length: int | None = None,
        size: int | None = None,
    ) -> Body:
        """Ask for `length` bytes from `offset` of an object version that is `size` bytes long in all, and wait for the answer.

        With a size every number in the answer is compared with it. Without one (reading an object back whose size is not
        known) the whole object is asked for and `Body.left` says how long it is. A length of None is up to the end.

        Raises:
            NotFound, AccessDenied: asking again will not help.
            Interrupted: it may help.
        """
        wanted = Wanted(bucket, key, version_id, offset, size if length is None else offset + length, size)
        self.ask(wanted)
        return self.answer(wanted)

    def ask(self, wanted: Wanted) -> None:
        """Send the request of `get`; `answer` waits. Raises as `get`."""
        try:
            self._send(wanted)
        except (OSError, ValueError) as error:
            self._interrupted(wanted, error)

    def answer(self, wanted: Wanted) -> Body:
        """Wait for the answer to what was asked last. Raises as `get`."""
        try:
            head = self._http.head()
            if head.status not in (200, 206):
                self._refuse(wanted.name, head)
        except (OSError, BadAnswer, ValueError) as error:
            self._interrupted(wanted, error)
        try:
            found = _checked(wanted, head)
        except Interrupted:
            self.close()
            raise
        return Body(self._http, wanted.name, found, self._stall_seconds)

    def abort(self) -> None:
        """End a read that another thread is blocked in."""
        self._http.abort()

    def close(self) -> None:
        self._http.close()

    def _send(self, wanted: Wanted) -> None:
        path = f"/{wanted.bucket}/{quote(wanted.key, safe='/-._~')}"
        query = f"versionId={quote(wanted.version_id, safe='')}" if wanted.version_id else ""
        headers = {"host": self._host}
        if not wanted.whole:
            headers["range"] = f"bytes={wanted.offset}-{'' if wanted.end is None else wanted.end - 1}"
        self._http.send(f"{path}?{query}" if query else path, self._signer.signed(path, query, headers))

    def _interrupted(self, wanted: Wanted, error: Exception) -> NoReturn:
        self.close()
        if isinstance(error, ssl.SSLCertVerificationError):
            raise StoreUnavailable(
                f"{wanted.name}: the certificate of {self._settings.s3_endpoint} is not trusted "
                f"({error.verify_message}); set S3_CA_BUNDLE to its CA"
            ) from error
        raise Interrupted(f"{wanted.name}: {_said(error)}") from error

    def _refuse(self, what: str, head: Head) -> NoReturn:
        text = self._error_text(head)
        self.close()
        found = re.search(r"<Code>([^<]+)</Code>", text)
        code = found.group(1) if found else f"HTTP {head.status}"
        if head.status == 404 or code in ("NoSuchVersion", "MethodNotAllowed"):
            raise NotFound(
                f"{what}: not found in the store at {self._settings.s3_endpoint} ({code}); the release names a version that was "
                "deleted: publish the model again"
            )
        if head.status in (401, 403):
            raise AccessDenied(
                f"{what}: the store refused access key {self._signer.access_key} ({code}); required one that may read "
                f"{self._settings.models_bucket}; check S3_ACCESS_KEY and S3_SECRET_KEY or S3_CREDENTIALS_DIR"
            )
        if head.status == 429 or head.status >= 500 or head.status in (408, 416):
            raise Interrupted(f"{what}: the store answered {code} (HTTP {head.status})")
        raise FetchFailed(
            f"{what}: required HTTP 200 or 206, found {head.status} ({code}); is S3_ENDPOINT an S3 store?"
        )

    def _error_text(self, head: Head) -> str:
        """The body of a refusal, if it comes and says how long it is: the status alone says enough."""
        buffer, got = memoryview(bytearray(_MAX_ERROR_BODY)), 0
        until = time.monotonic() + self._stall_seconds
        want = min(head.length or 0, _MAX_ERROR_BODY)
        with contextlib.suppress(OSError, ValueError):
            while got < want and time.monotonic() < until and (count := self._http.readinto(buffer[got:want])):
                got += count
        return bytes(buffer[:got]).decode(errors="replace")


def _checked(wanted: Wanted, head: Head) -> int:
    """The number of bytes in the body, if the answer is the one that was asked for; else Interrupted."""
    what, offset, end, size = wanted.name, wanted.offset, wanted.end, wanted.size
    required = 200 if wanted.whole else 206
    if head.status != required:
        raise Interrupted(f"{what}: required HTTP {required}, found {head.status} for bytes {offset} to {end}")
    length = head.length
    if length is None:
        raise Interrupted(f"{what}: required a Content-Length, found none")
    if not wanted.whole and end is not None:
        named = head.headers.get("content-range", "")
        if named != f"bytes {offset}-{end - 1}/{size}":
            raise Interrupted(f"{what}: required bytes {offset}-{end - 1}/{size}, found {named!r}")
    if end is not None and length != end - offset:
        raise Interrupted(f"{what}: required {end - offset} bytes, found Content-Length {length}")
    answered = head.headers.get("x-amz-version-id")
    if wanted.version_id and answered and answered != wanted.version_id:
        raise Interrupted(f"{what}: required this version, found {answered}")
    return length


def _tls(settings: StoreSettings) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(settings.s3_ca_bundle) if settings.s3_ca_bundle else None)


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "nothing came for the time that FETCH_STALL_SECONDS allows"
    return str(error) or type(error).__name__
