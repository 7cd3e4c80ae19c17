"""Static batches for a caller that works in steps: what waits goes through the model together, once those before are done.

So a model whose cache cannot be joined is served under TorchServe's continuous batching, and its streams still come token by token.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence as Rows

from tasks.generation.sequence import Sequence
from tasks.generation.static import StaticBatch


class SteppedBatch:
    """A policy with the methods of ContinuousBatch.

    `generate` cannot be left and taken up again, so it has a thread of its own, which goes on only while `step` waits for it. One
    thread for all batches: torch gives each thread that calls it a new set of helpers.
    """

    def __init__(self, static: StaticBatch, max_rows: int) -> None:
        self._static = static
        self._max_rows = max_rows
        self._waiting: deque[Sequence] = deque()
        self._rows: list[Sequence] = []
        self._thread: threading.Thread | None = None
        self._turn, self._stepped = threading.Semaphore(0), threading.Semaphore(0)
        self._error: BaseException | None = None

    def join(self, sequences: Rows[Sequence]) -> None:
        """Sequences that shall be in the next batch."""
        self._waiting.extend(sequences)

    def leave(self, sequences: Rows[Sequence]) -> None:
        """Sequences that nobody waits for any more."""
        for sequence in sequences:
            sequence.abandon()

    def step(self) -> None:
        """A token for each sequence of the batch. Raises what `StaticBatch.run` raises."""
        now = time.monotonic()
        for sequence in self._waiting:
            sequence.check(now)
        while not self._rows and self._waiting:
            waiting = [row for row in self._waiting if not row.done]
            self._rows, self._waiting = waiting[: self._max_rows], deque(waiting[self._max_rows :])
        if not self._rows:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True)
            self._thread.start()
        self._turn.release()
        self._stepped.acquire()
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _run(self) -> None:
        while True:
            self._turn.acquire()
            try:
                self._static.run(self._rows, self._pause)
            except BaseException as error:
                self._error = error
            self._rows = []
            self._stepped.release()

    def _pause(self) -> None:
        self._stepped.release()
        self._turn.acquire()
