"""Who may run now: cold starts are measured on a quiet stack, also when inference users were picked with them."""

from collections.abc import Iterator
from contextlib import contextmanager

from gevent.event import Event
from gevent.lock import BoundedSemaphore


class Floor:
    """Many inference requests at a time, or one cold start alone; a start that waits holds back new requests."""

    def __init__(self) -> None:
        self._requests = 0
        self._open = Event()
        self._open.set()
        self._quiet = Event()
        self._quiet.set()
        self._one = BoundedSemaphore(1)

    def wait(self) -> bool:
        """Wait while a cold start has the floor; whether there was one."""
        waited = False
        while not self._open.is_set():
            self._open.wait()
            waited = True
        return waited

    @contextmanager
    def shared(self) -> Iterator[None]:
        """For one request: waits while a cold start has the floor."""
        self.wait()
        self._requests += 1
        self._quiet.clear()
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                self._quiet.set()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """For one cold start: waits until the requests under way have ended, and keeps others out."""
        with self._one:
            self._open.clear()
            try:
                self._quiet.wait()
                yield
            finally:
                self._open.set()
