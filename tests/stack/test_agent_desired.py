"""What should be served is known as soon as somebody says that it changed, and soon where nobody says it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from serve.agent.desired import DesiredState
from serve.agent.memory import Memory
from tests.published import publish
from tests.services import MinioServer
from weightless.release import Alias, Canary

pytestmark = pytest.mark.anyio
SOON_S = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.asynccontextmanager
async def polling(minio: MinioServer, folder: Path, poll_s: float) -> AsyncIterator[tuple[DesiredState, asyncio.Event]]:
    """The state of a running poll, and an event that is set at each change."""
    changed = asyncio.Event()
    desired = DesiredState(minio.store(), Memory(folder), folder, (), poll_s, lambda model: changed.set())
    task = asyncio.create_task(desired.run())
    try:
        yield desired, changed
    finally:
        task.cancel()


@pytest.mark.parametrize(("poll_s", "told"), [(3600.0, True), (0.1, False)])
async def test_a_moved_alias_and_its_canary_are_seen(
    minio_server: MinioServer, tmp_path: Path, poll_s: float, told: bool
) -> None:
    (tmp_path / "config.json").write_text("{}")
    v1 = publish(minio_server, "tiny", tmp_path)
    (tmp_path / "config.json").write_text('{"second": true}')
    v2 = publish(minio_server, "tiny", tmp_path, promote=False)
    store = minio_server.store()
    async with polling(minio_server, tmp_path / "state", poll_s) as (desired, changed):
        await asyncio.wait_for(changed.wait(), SOON_S)
        plain = desired.wanted["tiny"]
        assert (plain.canary, plain.percent) == (None, 0)
        for percent in (10, 50):
            changed.clear()
            store.put_alias("tiny", Alias.of(v1, "anna", Canary.of(v2, percent)), store.alias("tiny"))
            if told:
                desired.refresh()
            await asyncio.wait_for(changed.wait(), SOON_S)
            wanted = desired.wanted["tiny"]
            assert wanted.key == plain.key, "a canary starts nothing but itself"
            assert wanted.percent == percent
            assert wanted.canary is not None
            assert wanted.canary.alias == Alias.of(v2)
        changed.clear()
        store.put_alias("tiny", Alias.of(v2), store.alias("tiny"))
        if told:
            desired.refresh()
        await asyncio.wait_for(changed.wait(), SOON_S)
        tried = wanted.canary
        assert tried is not None
        assert desired.wanted["tiny"].key == tried.key, "the promoted canary is what was tried"
