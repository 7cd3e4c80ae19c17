"""What several tests of faults use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.proxies import Toxiproxy, toxiproxy_to
from tests.services import MinioServer, running_minio


@pytest.fixture
def toxiproxy(minio_server: MinioServer) -> Iterator[Toxiproxy]:
    """A way to MinIO that can be made slow, short and silent."""
    with toxiproxy_to(minio_server) as proxy:
        yield proxy


@pytest.fixture
def own_minio(tmp_path: Path) -> Iterator[MinioServer]:
    """A MinIO that the test may stop and start."""
    with running_minio(tmp_path / "minio") as server:
        server.clean()
        yield server


@pytest.fixture
def moody_model(tmp_path: Path) -> Path:
    """A folder to publish for the moody handler, which reads none of it."""
    folder = tmp_path / "moody"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder
