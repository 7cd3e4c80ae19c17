"""The phases of a start, with seconds and counters: one record that the log line, the metrics and the status all speak from."""

import contextlib
import json
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any


class Ledger:
    """Records one start of one worker. Not for several threads.

    `as_dict()`: {"weightless": "start", "model", "release", "pid", "began" (UTC, ISO 8601), "seconds" (since the ledger was
    made, up to `end`), "phases": {name: seconds}, and what was noted}. A phase that was entered twice has the sum; one that is
    still open has the seconds so far; one that raised is kept and named in "failed".
    """

    def __init__(self, model: str, release: str, *, began: float | None = None) -> None:
        """`began`: seconds since the epoch when the start was asked for, if that was before this process had the word."""
        self.model = model
        self.release = release
        now = time.time()
        self._wall = now if began is None else min(began, now)
        self._start = time.monotonic() - (now - self._wall)
        self._phases: dict[str, float] = {}
        self._open: dict[str, float] = {}
        self._notes: dict[str, Any] = {}
        self._failed: str | None = None
        self._ended: float | None = None

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the block's seconds to this phase."""
        if name in self._open:
            raise ValueError(f"phase {name}: required one at a time, found it open already")
        self._open[name] = time.monotonic()
        self._phases.setdefault(name, 0.0)
        try:
            yield
        except BaseException:
            self._failed = self._failed or name  # the innermost phase is the first to see it
            raise
        finally:
            self._phases[name] += time.monotonic() - self._open.pop(name)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds that were measured elsewhere (imports, before this module was one of them)."""
        self._phases[name] = self._phases.get(name, 0.0) + seconds

    def note(self, **values: Any) -> None:
        """Keep counters and facts: bytes_from_store, retries, stale … A later note replaces an earlier one of that name."""
        clash = set(values) & {"weightless", "model", "release", "pid", "began", "seconds", "phases", "failed"}
        if clash:
            raise ValueError(f"required names that the ledger does not use itself, found {sorted(clash)}")
        self._notes |= values

    def end(self) -> None:
        """The start is over: `seconds` stand still. What is known later can still be noted."""
        self._ended = time.monotonic()

    @property
    def phases(self) -> dict[str, float]:
        """Seconds by name."""
        now = time.monotonic()
        return {name: round(spent + now - self._open.get(name, now), 4) for name, spent in self._phases.items()}

    def as_dict(self) -> dict[str, Any]:
        now = time.monotonic() if self._ended is None else self._ended
        return {
            "weightless": "start",
            "model": self.model,
            "release": self.release,
            "pid": os.getpid(),
            "began": datetime.fromtimestamp(self._wall, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "seconds": round(now - self._start, 4),
            "phases": self.phases,
            **({"failed": self._failed} if self._failed else {}),
            **self._notes,
        }

    def log_line(self) -> str:
        """The record as one line of JSON."""
        return json.dumps(self.as_dict(), separators=(",", ":"), ensure_ascii=False, default=str)
