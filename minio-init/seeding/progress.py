"""How far a seeding is, with rate and time left: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

#: seconds between plain lines
_EVERY = 10.0


class Display:
    """Shows bytes done of each step; `advance` may be called from any thread. Writes to standard error."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bars: Progress | None = None
        if self._console.is_terminal:
            self._bars = Progress(
                TextColumn("{task.description:>8}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
        self._tasks: dict[str, TaskID] = {}
        self._plain: dict[str, _Plain] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Display:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def say(self, line: str) -> None:
        """A line of its own."""
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def begin(self, *steps: str, total: int) -> None:
        """Steps that each have `total` bytes to do."""
        for step in steps:
            if self._bars is not None:
                self._tasks[step] = self._bars.add_task(step, total=total)
            else:
                self._plain[step] = _Plain(step, total)

    def advance(self, step: str, count: int) -> None:
        with self._lock:
            if self._bars is not None:
                self._bars.advance(self._tasks[step], count)
            elif line := self._plain[step].advance(count):
                print(line, file=sys.stderr, flush=True)


class _Plain:
    """One step's state, said every few seconds and at its end."""

    def __init__(self, step: str, total: int) -> None:
        self.step, self.total, self.done = step, total, 0
        self.started = self.said = time.monotonic()

    def advance(self, count: int) -> str | None:
        self.done += count
        now = time.monotonic()
        finished = count > 0 and self.done >= self.total
        if not finished and now - self.said < _EVERY:
            return None
        self.said = now
        rate = self.done / max(now - self.started, 1e-3)
        left = f", {(self.total - self.done) / rate:.0f} s left" if rate and not finished else ""
        return f"{self.step}: {size(self.done)} of {size(self.total)}, {size(rate)}/s{left}"


def size(count: float) -> str:
    """Bytes for people: 13.8 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
