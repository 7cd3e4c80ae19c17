"""What one version answered, and how fast: enough to judge a canary by, for `make status`. Prometheus has the whole of it."""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

WINDOW_S = 300.0  # latency is of the answers of this long
_MOST = 1000  # of which at most so many are kept


@dataclass
class Tally:
    """Counts since the version was registered. An error is an answer that was not the client's fault: 5xx, or a broken stream."""

    requests: int = 0
    errors: int = 0
    _latest: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_MOST))

    def answered(self, began: float) -> None:
        """One request, begun at `began` (monotonic seconds), that got an answer of whatever kind."""
        now = time.monotonic()
        self.requests += 1
        self._latest.append((now, now - began))

    def as_dict(self) -> dict[str, Any]:
        """`{"requests", "errors", "p50_s", "p95_s"}`; the last two None when nothing was answered lately."""
        since = time.monotonic() - WINDOW_S
        took = sorted(seconds for when, seconds in self._latest if when >= since)
        p50, p95 = (round(took[int(len(took) * share)], 4) if took else None for share in (0.5, 0.95))
        return {"requests": self.requests, "errors": self.errors, "p50_s": p50, "p95_s": p95}
