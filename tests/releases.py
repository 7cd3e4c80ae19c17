"""Releases for tests, published as in the product but uploaded without mc: any folder, with any settings, good or broken."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.services import MinioServer
from weightless.publish import Source, Upload, point_alias, publish_folder
from weightless.release import Alias, Canary, Release, ReleaseSettings


def publish(
    minio: MinioServer, model: str, folder: Path, task: str = "text-generation", promote: bool = True, **settings: Any
) -> Release:
    """Publish a folder as the model's next release and, unless told otherwise, point the alias at it."""
    client, store = minio.client(), minio.store()

    def upload(files: Sequence[Upload], moved: Callable[[int], None]) -> None:
        for file in files:
            client.fput_object("models", file.key, str(file.source))
            moved(file.size)

    paths = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    wanted = ReleaseSettings.model_validate({"task": task, **settings})
    release = publish_folder(store, model, Source(folder, paths), wanted, {"folder": folder.name}, upload).release
    if promote:
        point_alias(store, release, "tests")
    return release


def move_alias(minio: MinioServer, release: Release, canary: Canary | None = None) -> None:
    """Promote, roll back or try: let the alias name this release, and this canary."""
    store = minio.store()
    store.put_alias(release.model, Alias.of(release, "tests", canary), store.alias(release.model))


def remove_alias(minio: MinioServer, model: str) -> None:
    minio.client().remove_object("releases", f"{model}/serving")
