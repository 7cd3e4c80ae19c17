"""A measured start that never becomes READY ends, and says why: an order of hours must not wait for a worker that is gone."""

import asyncio
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from serve.agent import starting
from serve.agent.management import Management
from serve.agent.starting import Registered, Starting
from serve.agent.usage import Usage
from weightless.errors import WeightlessError
from weightless.modelfile import NodeSettings

# As TorchServe tells of a worker that it starts again and again.
RETRYING = {"id": "9700", "pid": -1, "status": "UNLOADING"}


class Elsewhere:
    """A TorchServe whose processes cannot be seen."""

    here = False
    inference_url = ""

    def __init__(self, management: Management) -> None:
        self.management = management

    def offered(self, archive: Path) -> AbstractContextManager[str]:
        raise NotImplementedError

    async def usage(self, workers: list[int], disk: bool) -> Usage | None:
        return None


def test_a_worker_that_never_says_its_process_id_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(starting, "_SAYS_PID_S", 0.3)
    asked = 0

    async def described(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return web.json_response([{"workers": [RETRYING]}] if request.method == "GET" else {"status": "registered"})

    async def start() -> None:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", described)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        (_, port) = runner.addresses[0]
        registered = Registered("x.mar", "x", "v1", None, 0, tmp_path, [], [], None, timeout_s=3600)
        tools: Any = SimpleNamespace(
            settings=SimpleNamespace(log_dir=tmp_path), store=SimpleNamespace(bytes_sent=lambda: 0)
        )
        async with Management(f"http://127.0.0.1:{port}") as management:
            it = Starting(Elsewhere(management), registered, cast(Any, None), NodeSettings(), tools, "")
            await asyncio.wait_for(it.start(), 30)
        await runner.cleanup()

    with pytest.raises(WeightlessError, match=r"cold start of x v1: its worker ended.* the baseline's log says why"):
        asyncio.run(start())
    assert asked > 3, "until then it may still come"
