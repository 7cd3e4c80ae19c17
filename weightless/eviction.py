"""Room in the node cache: what it takes, what may go, and what goes first.

Everything here runs under the cache's lock, as registering a release does. A fetch registers its release and holds it before
it looks what is there, so no blob that it counts on can be removed meanwhile.
"""

import contextlib
import logging
import os
import shutil

from weightless.errors import InvalidRelease
from weightless.layout import MANIFEST, Layout, allocated, listed, read_manifest, size_of
from weightless.locks import open_locked
from weightless.unsynced import Unsynced

_log = logging.getLogger(__name__)


def used(layout: Layout) -> int:
    """Bytes that blobs and partial files take."""
    blobs = sum(max(0, size_of(path)) for path in listed(layout.blobs))
    return blobs + sum(allocated(path) for path in listed(layout.partials))


def free(layout: Layout) -> int:
    """Bytes that this user may still write on the cache's disk."""
    found = os.statvfs(layout.root)
    return found.f_bavail * found.f_frsize


def sweep(layout: Layout, unsynced: Unsynced) -> None:
    """Remove blobs and partial files that no registered release names, and folders that were never finished."""
    named: set[str] = set()
    for folder in layout.registered():
        try:
            named |= {file.blake3 for file in read_manifest(folder).content.files}
        except InvalidRelease:
            if not (folder / MANIFEST).exists():
                shutil.rmtree(folder)
    for path in [*listed(layout.blobs), *listed(layout.partials)]:
        if path.name.split(".")[0] not in named:
            path.unlink(missing_ok=True)
    for model in listed(layout.releases):
        for folder in listed(model):
            if folder.name.startswith("."):
                shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            model.rmdir()  # succeeds only if it is empty
    unsynced.tidy()


def evict(layout: Layout, unsynced: Unsynced, keep_bytes: int) -> list[tuple[str, str]]:
    """Remove releases that nobody uses, least recently used first, until no more than `keep_bytes` are used; which ones."""
    evicted: list[tuple[str, str]] = []
    manifests = [folder / MANIFEST for folder in layout.registered()]
    for manifest in sorted(manifests, key=lambda path: path.stat().st_mtime_ns):
        if used(layout) <= keep_bytes:
            break
        fd = open_locked(manifest, os.O_RDONLY, wait=False)
        if fd is None:
            continue  # in use
        try:
            shutil.rmtree(manifest.parent)
        finally:
            os.close(fd)
        model, name = manifest.parts[-3:-1]
        _log.info("evicted %s %s from the cache", model, name)
        evicted.append((model, name))
        sweep(layout, unsynced)
    return evicted
