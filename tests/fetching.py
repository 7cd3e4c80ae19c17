"""What the tests of the fetch and the cache share: releases of made-up files in a real MinIO, and a fetch in another process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.services import ROOT, MinioServer
from weightless.cache import NodeCache
from weightless.digests import Hasher
from weightless.fetch import FetchResult, Progress, fetch_release
from weightless.release import Content, FileEntry, Location, Release, ReleaseSettings
from weightless.settings import CacheSettings, FetchSettings, StoreSettings
from weightless.store import Store

MIB = 1 << 20
# Parts of 1 MiB, so that small files have many; no patience, so that faults are noticed at once.
FETCH = FetchSettings.model_validate({"fetch_part_bytes": MIB, "fetch_stall_seconds": 1.0, "fetch_connections": 3})


def some_bytes(size: int, seed: int) -> bytes:
    """The same bytes for the same seed; no two pages of them alike."""
    import random

    return random.Random(seed).randbytes(size)


FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": some_bytes(9 * MIB + 12345, 1),
    "b/c.bin": some_bytes(300_000, 2),
}
SIZE = sum(map(len, FILES.values()))


def release_of(server: MinioServer, model: str, files: Mapping[str, bytes], name: str = "v1") -> Release:
    """Upload the files and describe them; the manifest itself is not written to the bucket."""
    entries, versions = [], {}
    for path, body in files.items():
        versions[f"{model}/{path}"] = server.put("models", f"{model}/{path}", body)
        entries.append(entry_of(path, body))
    return release_with(model, entries, versions, name)


def entry_of(path: str, body: bytes) -> FileEntry:
    hasher = Hasher()
    hasher.update(body)
    digests = hasher.digests()
    return FileEntry(path=path, size=digests.size, blake3=digests.blake3, sha256=digests.sha256)


def release_with(model: str, entries: list[FileEntry], versions: dict[str, str], name: str = "v1") -> Release:
    content = Content(
        model=model,
        created="2026-11-22T16:10:03Z",
        source={},
        files=tuple(entries),
        settings=ReleaseSettings(task="text-generation"),
    )
    return Release.make(name, content, Location(bucket="models", versions=versions))


def cache_at(folder: Path, max_bytes: int = 0) -> NodeCache:
    return NodeCache(CacheSettings.model_validate({"cache_dir": folder, "cache_max_bytes": max_bytes}))


def fetch(
    settings: StoreSettings,
    cache: NodeCache,
    release: Release,
    progress: Callable[[Progress], None] | None = None,
    **changed: Any,
) -> FetchResult:
    return fetch_release(Store(settings), cache, release, settings=FETCH.model_copy(update=changed), progress=progress)


def holds(cache: NodeCache, release: Release, files: Mapping[str, bytes]) -> bool:
    """Whether the release's folder has exactly these bytes."""
    folder = cache.folder(release)
    return all((folder / path).read_bytes() == body for path, body in files.items())


def wrong_blobs(cache: NodeCache) -> list[str]:
    """Blobs under a final name whose content is not what the name says. There must never be one."""
    blobs = cache.layout.blobs
    return (
        [path.name for path in blobs.iterdir() if cache.layout.hashed(path.name) != path.name] if blobs.exists() else []
    )


def stop_uncleanly(cache: NodeCache) -> None:
    """What the lists of unsynced files look like after the machine has booted again."""
    for path in cache.layout.unsynced.glob("*.*"):
        path.rename(path.with_name(f"00000000-0000-0000-0000-000000000000.{path.name.split('.')[1]}"))


def damage(path: Path, body: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(body)


def start_fetch(
    endpoint: str,
    server: MinioServer,
    cache_dir: Path,
    release: Release,
    *before: str,
    user: tuple[int, int] | None = None,
) -> "subprocess.Popen[str]":
    """Fetch in a process of its own. It prints a line of JSON for each progress, `{"done": …}`, and at the end `{"result": …}` or
    `{"error": …, "message": …}`. `before`: a command that runs it (unshare, say). `user`: whom it becomes, with which group."""
    manifest = cache_dir.parent / f"{release.model}-{release.name}.json"
    manifest.write_bytes(release.to_json())
    manifest.chmod(0o644)
    environment = server.environment | {"S3_ENDPOINT": endpoint, "CACHE_DIR": str(cache_dir)}
    environment |= {"FETCH_PART_BYTES": str(MIB), "FETCH_STALL_SECONDS": "2", "FETCH_CONNECTIONS": "3"}
    return subprocess.Popen(
        [*before, sys.executable, "-m", "tests.fetch_child", str(manifest), *map(str, user or ())],
        cwd=ROOT,
        env=os.environ | environment | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )


def outcome(process: "subprocess.Popen[str]", timeout: float = 120) -> dict[str, Any]:
    """The last line that a fetch in another process printed."""
    out, _ = process.communicate(timeout=timeout)
    last: dict[str, Any] = json.loads(out.splitlines()[-1])
    return last
