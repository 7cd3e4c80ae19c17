"""What an object version really holds: its size and digests, computed while it streams and compared by the caller."""

import tenacity

from weightless.digests import Digests, Hasher
from weightless.errors import FetchFailed
from weightless.fetch.transfer import BUFFER_BYTES
from weightless.fetch.wire import Connection, Interrupted
from weightless.settings import FetchSettings
from weightless.store import Store


def read_back(
    store: Store, key: str, version_id: str, *, bucket: str | None = None, settings: FetchSettings | None = None
) -> Digests:
    """Read one version of an object of the bucket of models (or of `bucket`), whole, without writing it anywhere.

    Raises:
        NotFound, AccessDenied: the store said so.
        FetchFailed: after all retries.
    """
    settings = settings or FetchSettings.load()
    reading = _Reading(bucket or store.settings.models_bucket, key, version_id)
    with Connection(store.settings, settings.fetch_stall_seconds) as connection:
        try:
            for attempt in tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(Interrupted),
                wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
                stop=lambda state: reading.futile >= settings.fetch_attempts,
                reraise=True,
            ):
                with attempt:
                    reading.go_on(connection)
        except Interrupted as error:
            raise FetchFailed(f"{error}; gave up after {reading.futile} attempts that brought nothing") from error
    return reading.hasher.digests()


class _Reading:
    def __init__(self, bucket: str, key: str, version_id: str) -> None:
        self._object = (bucket, key, version_id)
        self._size: int | None = None
        self.at = 0
        self.futile = 0
        self.hasher = Hasher()
        self._buffer = memoryview(bytearray(BUFFER_BYTES))

    def go_on(self, connection: Connection) -> None:
        self.futile += 1
        length = None if self._size is None else self._size - self.at
        body = connection.get(*self._object, offset=self.at, length=length, size=self._size)
        try:
            self._size = self.at + body.left
            while self.at < self._size:
                data = self._buffer[: body.readinto(self._buffer)]
                self.hasher.update(data)
                self.at += len(data)
                self.futile = 0
        finally:
            body.close()
