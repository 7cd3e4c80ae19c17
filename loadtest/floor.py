"""Who may run now: cold starts are measured on a quiet stack, also when inference users were picked with them."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from gevent.event import Event
from gevent.lock import BoundedSemaphore


class Floor:
    """Many inference requests at a time, or one cold start alone; a start that waits holds back new requests.

    One for each Locust process. `elsewhere` makes the others pause too; see distributed.py.
    """

    def __init__(self) -> None:
        self.elsewhere: AbstractContextManager[None] = nullcontext()
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
            try:
                self.close()
                with self.elsewhere:
                    yield
            finally:
                self.open()

    def close(self) -> None:
        """Keep new requests out, and wait until those under way have ended."""
        self._open.clear()
        self._quiet.wait()

    def open(self) -> None:
        self._open.set()
