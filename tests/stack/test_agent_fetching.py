"""The agent's fetch, a process of its own: forked by a real zygote, or started anew, with one result."""

import asyncio
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.agent.prefetch import prefetch
from tests.fetching import FILES, SIZE, cache_at, holds, release_of
from tests.services import MinioServer, wait_for
from tests.zygotes import LAUNCHER, ZygoteProcess, alive, running_zygote
from weightless.errors import FetchFailed, WeightlessError
from weightless.release import Release


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZygoteProcess]:
    with running_zygote(tmp_path_factory.mktemp("zygote")) as running:
        running.event("ready")
        yield running


def fetched(zygote: ZygoteProcess, server: MinioServer, release: Release, cache: Path, **env: str) -> tuple[Any, ...]:
    """Result and progress of one fetch through the launcher."""
    told: list[dict[str, Any]] = []
    environment = zygote.environment | server.environment | {"CACHE_DIR": str(cache)} | env
    return asyncio.run(prefetch(str(LAUNCHER), environment, release, told.append)), told


@pytest.mark.parametrize("started", ["forked", "anew"])
def test_a_release_is_fetched_forked_or_in_a_new_interpreter(
    zygote: ZygoteProcess, minio_server: MinioServer, tmp_path: Path, started: str
) -> None:
    release, cache = release_of(minio_server, "prefetched", FILES), cache_at(tmp_path / "cache")
    forks = len([event for event in zygote.events if event["event"] == "forked"])
    alone = {} if started == "forked" else {"WEIGHTLESS_ZYGOTE_SOCKET": ""}
    result, told = fetched(zygote, minio_server, release, tmp_path / "cache", **alone)
    assert result["bytes_from_store"] == SIZE and told[-1]["done"] == told[-1]["total"] == SIZE
    assert cache.is_complete(release) and holds(cache, release, FILES)
    if started == "forked":
        zygote.event("forked", skip=forks)


def test_what_a_forked_fetch_raises_is_raised_here(
    zygote: ZygoteProcess, minio_server: MinioServer, tmp_path: Path
) -> None:
    release = release_of(minio_server, "gone", FILES)
    for path in FILES:
        minio_server.client().remove_object(
            "models", f"gone/{path}", version_id=release.location.versions[f"gone/{path}"]
        )
    with pytest.raises(WeightlessError, match="gone/") as raised:
        fetched(zygote, minio_server, release, tmp_path / "cache")
    assert type(raised.value) is not WeightlessError


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    """A server that takes connections and says nothing: whoever has come is in the midst of its fetch."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(60)
        yield server


def fetch_from(zygote: ZygoteProcess, mute: socket.socket, server: MinioServer, cache: Path) -> asyncio.Task[Any]:
    endpoint = {"S3_ENDPOINT": f"http://127.0.0.1:{mute.getsockname()[1]}"}
    environment = zygote.environment | server.environment | endpoint | {"CACHE_DIR": str(cache)}
    release = release_of(server, "mute", FILES)
    return asyncio.create_task(prefetch(str(LAUNCHER), environment, release, lambda told: None))


def test_a_fetch_that_is_cancelled_leaves_nobody(
    zygote: ZygoteProcess, minio_server: MinioServer, tmp_path: Path, mute: socket.socket
) -> None:
    before = set(zygote.workers())

    async def body() -> set[int]:
        fetching = fetch_from(zygote, mute, minio_server, tmp_path / "cache")
        connection, _ = await asyncio.to_thread(mute.accept)
        with connection:
            forked = set(zygote.workers()) - before
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
        return forked

    (pid,) = asyncio.run(body())
    wait_for(lambda: not alive(pid), "the fork to end")


def test_a_zygote_that_dies_takes_its_fetch_along_and_that_is_said(
    minio_server: MinioServer, tmp_path: Path, mute: socket.socket
) -> None:
    with running_zygote(tmp_path) as zygote:
        zygote.event("ready")

        async def body() -> None:
            fetching = fetch_from(zygote, mute, minio_server, tmp_path / "cache")
            connection, _ = await asyncio.to_thread(mute.accept)
            with connection:
                zygote.process.kill()
                await fetching

        with pytest.raises(FetchFailed, match="ended with status 137"):
            asyncio.run(body())
