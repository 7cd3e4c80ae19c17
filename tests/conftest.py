"""Fixtures that more than one folder of tests uses. All of them are real parts."""

from collections.abc import Iterator

import pytest

from tests.services import MinioServer, running_minio
from weightless.store import Store


@pytest.fixture(scope="session")
def minio_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    """One MinIO for the whole run; use `minio_server`, which is clean."""
    with running_minio(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture
def minio_server(minio_process: MinioServer) -> MinioServer:
    """The run's MinIO with empty, versioned buckets. Cleaned before the test, so that a failure can be looked at."""
    minio_process.clean()
    return minio_process


@pytest.fixture
def store(minio_server: MinioServer) -> Store:
    return minio_server.store()
