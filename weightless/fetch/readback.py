"""What an object version really holds: its size and digests, computed while it streams and compared by the caller."""

from collections.abc import Callable

import tenacity

from weightless.digests import Digests, Hasher
from weightless.errors import FetchFailed
from weightless.fetch.transfer import BUFFER_BYTES
from weightless.fetch.wire import Connection, Interrupted
from weightless.settings import FetchSettings
from weightless.store import Store


def read_back(
    store: Store,
    key: str,
    version_id: str,
    *,
    bucket: str | None = None,
    settings: FetchSettings | None = None,
    read: Callable[[int], None] | None = None,
) -> Digests:
    """Read one version of an object of the bucket of models (or of `bucket`), whole, without writing it anywhere.

    `read` is told the bytes of each chunk; an exception from there ends the reading.

    Raises:
        NotFound, AccessDenied: the store said so.
        FetchFailed: after all retries.
    """
    hasher = Hasher()
    _stream(store, (bucket or store.settings.models_bucket, key, version_id), settings, hasher.update, read)
    return hasher.digests()


def _stream(
    store: Store,
    target: tuple[str, str, str],
    settings: FetchSettings | None,
    update: Callable[[memoryview], object],
    read: Callable[[int], None] | None,
) -> None:
    settings = settings or FetchSettings.load()
    reading = _Reading(target, update, read)
    with Connection(store.settings, settings.fetch_stall_seconds) as connection:
        try:
            for attempt in tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(Interrupted),
                wait=tenacity.wait_exponential(multiplier=0.1, max=5) + tenacity.wait_random(0, 0.1),
                stop=lambda state: reading.futile >= settings.fetch_attempts,
                reraise=True,
            ):
                with attempt:
                    reading.go_on(connection)
        except Interrupted as error:
            raise FetchFailed(f"{error}; gave up after {reading.futile} attempts that brought nothing") from error


class _Reading:
    def __init__(
        self,
        target: tuple[str, str, str],
        update: Callable[[memoryview], object],
        read: Callable[[int], None] | None,
    ) -> None:
        self._object = target
        self._update = update
        self._read = read
        self._size: int | None = None
        self.at = 0
        self.futile = 0
        self._buffer = memoryview(bytearray(BUFFER_BYTES))

    def go_on(self, connection: Connection) -> None:
        self.futile += 1
        length = None if self._size is None else self._size - self.at
        body = connection.get(*self._object, offset=self.at, length=length, size=self._size)
        try:
            self._size = self.at + body.left
            while self.at < self._size:
                data = self._buffer[: body.readinto(self._buffer)]
                self._update(data)
                self.at += len(data)
                self.futile = 0
                if self._read is not None:
                    self._read(len(data))
        finally:
            body.close()
