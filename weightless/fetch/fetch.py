"""The one way to the files of a release: what is cached is used, the rest is fetched and verified, and the folder is linked."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from weightless.cache import NodeCache
from weightless.errors import CacheError
from weightless.fetch.plan import fetch_order, unique
from weightless.release import FileEntry, Release
from weightless.settings import FetchSettings
from weightless.store import Store

_log = logging.getLogger(__name__)


class Progress(NamedTuple):
    """Bytes and files of the release that are verified or on their way, whoever fetches them, of all that it has."""

    done: int
    total: int
    files_done: int
    files: int


class FetchResult(NamedTuple):
    """Where the files lie and what it took: bytes that this process received (those of retries too), bytes of the release
    that it did not have to fetch (another process may have done so meanwhile), seconds in all, retries, and seconds of BLAKE3, of
    all threads together."""

    folder: Path
    bytes_from_store: int
    bytes_from_cache: int
    seconds: float
    retries: int
    hash_seconds: float


def fetch_release(
    store: Store,
    cache: NodeCache,
    release: Release,
    *,
    settings: FetchSettings,
    progress: Callable[[Progress], None] | None = None,
) -> FetchResult:
    """Make the release complete in the cache and return its folder. The store is not asked for anything if it is so already.

    `progress` is called from this thread, at least at the beginning and at the end. No state outlives the call, so it
    may run in a forked child. Hold `cache.use(release)` around the call and for as long as the files are needed.

    Raises:
        NotEnoughDisk: before anything is fetched; required and free.
        NotFound, AccessDenied, StoreUnavailable, FetchFailed: the bytes could not be had; what came is kept for the next call.
        VerificationFailed: the bytes that came are not the release's.
        CacheError: the cache cannot be used as it is.
    """
    began = time.monotonic()
    with cache.use(release) as folder:
        vouched = cache.recover(release)
        missing = [file for file in cache.missing(release) if file.blake3 not in vouched]
        every = unique(release.content.files)
        report = _Reporter(progress, every, missing)
        report(0, 0)
        did = _fetch(store, cache, release, missing, settings, report) if missing else (0, 0, 0.0)
        cache.link(release)
    absent = {file.blake3 for file in missing}
    received, retries, hashing = did
    lacked = min(received, sum(file.size for file in release.content.files if file.blake3 in absent))
    result = FetchResult(folder, received, release.content.size - lacked, time.monotonic() - began, retries, hashing)
    _log.info("%s %s: %s", release.model, release.name, result)
    return result


def _fetch(
    store: Store,
    cache: NodeCache,
    release: Release,
    missing: list[FileEntry],
    settings: FetchSettings,
    report: Callable[[int, int], None],
) -> tuple[int, int, float]:
    """Bytes that came, retries, and seconds of BLAKE3."""
    from weightless.fetch.transfer import Places, Transfer  # a worker that finds all in the cache starts without

    if not cache.writable:
        names = ", ".join(file.path for file in missing[:3])
        raise CacheError(
            f"{release.model} {release.name}: required {len(missing)} files that the cache at {cache.root} lacks ({names}), "
            "found it read-only; fill it from a node that may write, or mount it writable"
        )
    cache.make_room(release, missing)
    places = Places(cache.layout.blob, cache.layout.partial, cache.layout.file_mode)
    ordered = fetch_order(missing, settings.fetch_part_bytes)
    transfer = Transfer(store.settings, release, ordered, places, settings, report)
    with cache.unsynced.expecting(file.blake3 for file in missing):
        transfer.run()
    return transfer.received, transfer.retries, transfer.hash_seconds


class _Reporter:
    """Adds what was cached before to what a transfer reports."""

    def __init__(
        self, progress: Callable[[Progress], None] | None, every: list[FileEntry], missing: list[FileEntry]
    ) -> None:
        self._progress = progress
        self._total, self._files = sum(file.size for file in every), len(every)
        self._cached = self._total - sum(file.size for file in missing)
        self._cached_files = self._files - len(missing)

    def __call__(self, done: int, files_done: int) -> None:
        if self._progress:
            done = max(0, min(self._cached + done, self._total))
            self._progress(Progress(done, self._total, self._cached_files + files_done, self._files))
