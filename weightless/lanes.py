"""Files of a publication side by side: the first failure, or an interrupt, stops all of them."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: files (or groups of small ones) on their way at a time. While one is uploaded another is hashed or read back
LANES = 3
#: progress(step, bytes) with step "hash", "upload" or "verify"; called often, from several threads
Progress = Callable[[str, int], None]


class _Stopped(Exception):
    """Another lane failed, or the user stopped it."""


class Lanes:
    """Runs work side by side; the first failure, or an interrupt, stops all of it at its next progress."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._stop = threading.Event()

    def progress(self, step: str, count: int) -> None:
        if self._stop.is_set():
            raise _Stopped
        if self._progress is not None:
            self._progress(step, count)

    def run(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """Results in the order of the items, or the first failure."""
        pool = ThreadPoolExecutor(LANES, "publish")
        try:
            futures = [pool.submit(work, item) for item in items]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            failures = [error for future in done if (error := future.exception())]
            if failures:
                raise next((error for error in failures if not isinstance(error, _Stopped)), failures[0])
            return [future.result() for future in futures]
        finally:
            self._stop.set()  # nothing runs any more unless something failed
            pool.shutdown(cancel_futures=True)
