"""Fixtures that more than one folder of tests uses. All of them are real parts."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from seeding.samples.make import make_samples

from tests.services import ROOT, MinioServer, running_minio
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


@pytest.fixture(scope="session")
def samples() -> Path:
    """The sample folders falcon-tiny, falcon-tiny-v2 and minilm: made once per state of their makers, then kept."""
    makers = sorted((ROOT / "minio-init" / "seeding" / "samples").glob("*.py"))
    state = hashlib.sha256(b"".join(path.read_bytes() for path in makers)).hexdigest()[:12]
    out = ROOT / "build" / "samples" / state
    make_samples(out)
    return out
