"""Fetches a release into the node's cache, in a process of its own: `python -m serve.agent.prefetch < manifest`.

In the agent itself the fetch would compete with the door for the interpreter. The child reports its progress, its result or its
error as one JSON object a line; what it has fetched stays in the cache when it is stopped, and the next one goes on from there.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from serve.agent.children import bound_to_us, stop
from serve.agent.settings import child_environment, python
from weightless import errors
from weightless.errors import FetchFailed, WeightlessError
from weightless.release import Release

_REPORT_EVERY_S = 0.25


async def prefetch(release: Release, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Fetch in a child. `report` gets `{"done", "total", "rate", "eta_s"}` (bytes, bytes/s, s); returns the child's result.

    Raises:
        WeightlessError: what the child raised, as the class that it raised.
    """
    process = await asyncio.create_subprocess_exec(
        *bound_to_us([python(), "-m", "serve.agent.prefetch"]),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=child_environment({"PYTHONPATH": ":".join(path for path in sys.path if path)}),
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        request = {"name": release.name, "version": release.manifest_version, "manifest": release.to_json().decode()}
        process.stdin.write(json.dumps(request).encode())
        process.stdin.close()
        async for line in process.stdout:
            said = json.loads(line)
            if "progress" in said:
                report(said["progress"])
            elif "error" in said:
                raise _as_raised(said["error"])
            else:
                return dict(said["result"])
        raise FetchFailed(
            f"release {release.name} of {release.model}: the fetch ended with status {await process.wait()}"
        )
    finally:
        await stop(process, grace_s=5)


def _as_raised(error: dict[str, str]) -> WeightlessError:
    kind = getattr(errors, error["type"], WeightlessError)
    if not (isinstance(kind, type) and issubclass(kind, WeightlessError)):
        kind = WeightlessError
    return kind(error["message"])


class _Reporter:
    """Prints progress a few times a second."""

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
    from weightless.cache import NodeCache
    from weightless.fetch import fetch_release
    from weightless.settings import CacheSettings, FetchSettings, StoreSettings
    from weightless.store import Store

    request = json.load(sys.stdin)
    try:
        release = Release.from_json(request["name"], request["manifest"].encode(), request["version"])
        settings = FetchSettings.load()
        store = Store(StoreSettings.load(), connections=settings.fetch_connections)
        report = _Reporter()
        result = fetch_release(
            store,
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
