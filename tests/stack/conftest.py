"""A folder for tests of publishing; a small model with two releases for tests of the commands."""

from pathlib import Path

import pytest

from tests.releases import publish
from tests.seeding import MODEL, copy
from tests.services import MinioServer
from weightless.release import Release


@pytest.fixture
def folder(samples: Path, tmp_path: Path) -> Path:
    """A folder of our own with falcon-tiny in it."""
    return copy(samples / MODEL, tmp_path / "folder")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A model folder; what is in it is nobody's business here."""
    place = tmp_path / "folder"
    (place / "deep").mkdir(parents=True)
    (place / "config.json").write_text("{}")
    (place / "deep/model.safetensors").write_bytes(bytes(range(256)) * 40)
    return place


@pytest.fixture
def two(minio_server: MinioServer, tiny: Path) -> tuple[Release, Release]:
    """v1, which is served, and v2."""
    first = publish(minio_server, "tiny", tiny)
    (tiny / "config.json").write_text('{"second": true}')
    return first, publish(minio_server, "tiny", tiny, promote=False)
