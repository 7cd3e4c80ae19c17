"""Releases for tests that are about reading them: a folder put into the buckets file by file, without mc."""

from pathlib import Path
from typing import Any

from tests.services import MinioServer
from weightless.digests import Hasher
from weightless.release import Alias, Content, FileEntry, Location, Release, ReleaseSettings


def publish(
    server: MinioServer, model: str, folder: Path, task: str = "text-generation", promote: bool = True, **settings: Any
) -> Release:
    """The next release of the model: all files of the folder; `serving` points at it if `promote`."""
    store = server.store()
    files, versions = [], {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        hasher, body = Hasher(), path.read_bytes()
        hasher.update(body)
        digests = hasher.digests()
        files.append(FileEntry(path=name, size=digests.size, blake3=digests.blake3, sha256=digests.sha256))
        versions[f"{model}/{name}"] = server.put("models", f"{model}/{name}", body)
    content = Content(
        model=model,
        created="2026-11-22T16:10:03Z",
        source={"folder": folder.name},
        files=tuple(files),
        settings=ReleaseSettings.model_validate({"task": task} | settings),
    )
    location = Location(bucket="models", versions=versions)
    release = store.put_release(Release.make(f"v{len(store.releases(model)) + 1}", content, location))
    if promote:
        store.put_alias(model, Alias.of(release), store.alias(model))
    return release
