"""What several tests of faults use."""

from collections.abc import Iterator

import pytest

from tests.proxies import Toxiproxy, toxiproxy_to
from tests.services import MinioServer


@pytest.fixture
def toxiproxy(minio_server: MinioServer) -> Iterator[Toxiproxy]:
    """A way to MinIO that can be made slow, short and silent."""
    with toxiproxy_to(minio_server) as proxy:
        yield proxy
