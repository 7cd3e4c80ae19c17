"""Fetches a release into the node's cache: `python serve/fetching.py < request`, the child of `serve.agent.prefetch`.

The request is one JSON object: `name`, `version` and `manifest` of the release. Progress, the result or the error come back as one
JSON object a line. What was fetched stays in the cache when this is stopped, and the next one goes on from there. A fork of the
zygote has what this imports already.
"""

import json
import sys
import time
from typing import Any

from weightless.cache import NodeCache
from weightless.errors import WeightlessError
from weightless.fetch import fetch_release
from weightless.release import Release
from weightless.settings import CacheSettings, FetchSettings, StoreSettings
from weightless.store import Store

_REPORT_EVERY_S = 0.25


class Reporter:
    """Prints progress a few times a second: `{"progress": {"done", "total", "rate", "eta_s"}}` (bytes, bytes/s, s)."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()
        self._before: int | None = None  # bytes that were there already: they say nothing of the rate

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if self._before is None:
            self._before = done
        if now - self._last < _REPORT_EVERY_S and done < total:
            return
        self._last = now
        rate = (done - self._before) / max(now - self._began, 1e-3)
        eta_s = round((total - done) / rate, 1) if rate else None
        _say({"progress": {"done": done, "total": total, "rate": round(rate), "eta_s": eta_s}})


def _say(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def main() -> int:
    request, report = json.load(sys.stdin), Reporter()
    try:
        release = Release.from_json(request["name"], request["manifest"].encode(), request["version"])
        settings = FetchSettings.load()
        result = fetch_release(
            Store(StoreSettings.load(), connections=settings.fetch_connections),
            NodeCache(CacheSettings.load()),
            release,
            settings=settings,
            progress=lambda progress: report(progress.done, progress.total),
        )
    except WeightlessError as error:
        _say({"error": {"type": type(error).__name__, "message": str(error)}})
        return 1
    _say(
        {"result": {"bytes_from_store": result.bytes_from_store, "seconds": result.seconds, "retries": result.retries}}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
