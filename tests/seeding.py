"""Seeding as tests want it: one call, in this process, with the real mc and the real hub client."""

import os
import shutil
from pathlib import Path

from seeding.progress import Display
from seeding.seed import Seeded, Seeding, Wish
from seeding.settings import SeedSettings

from tests.services import ROOT, MinioServer, tool
from weightless.errors import WeightlessError
from weightless.fetch.readback import read_back
from weightless.release import Release, ReleaseSettings
from weightless.store import Store

#: the sample that is published in most tests, and one of its files
MODEL = "falcon-tiny"
SHARD = "model-00001-of-00002.safetensors"
SETTINGS = ReleaseSettings(task="text-generation")


def seed(server: MinioServer, model: str, origin: Path | str | None, **wish: object) -> Seeded:
    """Seed `model` from a folder, or `bucket`. Keywords: hub, task, promote, keep, only_first; settings: a SeedSettings."""
    settings = wish.pop("settings", None) or seed_settings()
    assert isinstance(settings, SeedSettings)
    with Display() as display:
        made = Wish(model, origin=None if origin is None else str(origin), **wish)  # type: ignore[arg-type]
        return Seeding(server.settings, settings, display).seed(made)


def seed_settings(**changes: object) -> SeedSettings:
    return SeedSettings.model_validate({"mc": tool("mc"), "models_config_dir": ROOT / "config" / "models"} | changes)


def copy(folder: Path, to: Path) -> Path:
    """A folder of the test's own, to change."""
    return Path(shutil.copytree(folder, to))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def broken(store: Store, release: Release) -> list[str]:
    """What of a release the store does not hold exactly as its manifest says."""
    wrong = []
    for file in release.content.files:
        try:
            found = read_back(store, release.key(file), release.version(file))
        except WeightlessError as error:
            wrong.append(f"{file.path}: {error}")
            continue
        if (found.size, found.blake3, found.sha256) != (file.size, file.blake3, file.sha256):
            wrong.append(f"{file.path}: {found}")
    return wrong


def held(store: Store, release: Release) -> dict[str, bytes]:
    """The files that a release names, as the store holds them."""
    found = {}
    for file in release.content.files:
        with store.open(release.key(file), release.version(file)) as response:
            found[file.path] = response.read()
    return found


def change(path: Path) -> None:
    """Other bytes, same size, and older than before: what a mirror by size and time does not see."""
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    os.utime(path, (1_000_000_000, 1_000_000_000))
