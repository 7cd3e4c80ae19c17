"""The agent as a whole: its parts put together, started in order, and stopped in the other order.

The door opens first, so that health checks and clients get an answer that says what is missing. Zygote, TorchServe and the first
look at the store then start side by side.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from serve.agent.api import Api
from serve.agent.auth import KeyCheck
from serve.agent.coldstart import ColdStarts
from serve.agent.desired import DesiredState
from serve.agent.door import Door
from serve.agent.gpu import check_required, find_device
from serve.agent.listener import listen
from serve.agent.management import Management
from serve.agent.memory import Memory
from serve.agent.metrics import DoorMetrics
from serve.agent.openai.routes import OpenAiRoutes
from serve.agent.prefetch import Report, prefetch
from serve.agent.reconciler import Reconciler
from serve.agent.rollout import Tools
from serve.agent.room import free_memory
from serve.agent.routing import RoutingTable
from serve.agent.settings import AgentSettings, python
from serve.agent.status import Status
from serve.agent.torchserve import TorchServe, check_ports, environment_of
from serve.agent.upstream import Upstream
from serve.agent.warmth import first_imports, imports_of
from serve.zygote.supervisor import MAX_SOCKET_PATH, Zygote
from weightless.cache import NodeCache
from weightless.held import tokenizer_key
from weightless.release import Release
from weightless.settings import CacheSettings, StoreSettings
from weightless.store import Store

log = logging.getLogger(__name__)

_LONGEST_NAME = len("/ts-12345678/t/.ts.sock.12345")


async def run(settings: AgentSettings) -> None:
    """Run until SIGTERM or SIGINT.

    Raises:
        WeightlessError: a setting is wrong, a port is taken, no GPU where one is required, or TorchServe does not stay up.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    device = await find_device()
    log.info("models run on %s", ", ".join(device.gpus) or f"the CPU ({device.reason})")
    if settings.require_gpu:
        check_required(device)
    check_ports(settings)
    async with contextlib.AsyncExitStack() as stack:
        runtime = _runtime_folder(settings)
        stack.callback(shutil.rmtree, runtime, ignore_errors=True)
        memory, cache = Memory(settings.state_dir / "served"), NodeCache(CacheSettings.load())
        zygote = Zygote(runtime / "zygote", first_imports(memory, cache), enabled=settings.zygote, python=python())
        environment = zygote.environment(environment_of(settings, runtime / "t"))
        torchserve = TorchServe(settings, zygote.interpreter, environment, runtime / "t")

        session = await stack.enter_async_context(aiohttp.ClientSession())
        management = await stack.enter_async_context(Management(settings.management_url))

        async def fetch(release: Release, report: Report) -> dict[str, Any]:
            return await prefetch(zygote.helper, environment, release, report)

        async def warm(release_folder: Path, task: str) -> None:
            await zygote.warm(imports_of(release_folder, task))

        async def hold(owner: str, release: Release | None) -> None:
            if release is None:
                await zygote.hold(owner, None, cache.root)
            else:
                await zygote.hold(owner, tokenizer_key(release), cache.folder(release))

        tools = Tools(
            settings, Store(StoreSettings.load()), cache, memory, management, session, fetch, warm, hold,
            partial(free_memory, device.kind == "cuda"),
        )  # fmt: skip
        table = RoutingTable(settings.max_inflight, settings.hold_seconds)
        metrics = DoorMetrics(table)
        desired = DesiredState(
            tools.store, memory, settings.models_config_dir, settings.wanted_models(), settings.poll_seconds,
            lambda model: reconciler.changed(model),
        )  # fmt: skip
        reconciler = Reconciler(tools, table, desired, metrics)
        stack.push_async_callback(reconciler.close)
        upstream = Upstream("127.0.0.1", settings.torchserve_inference_port)
        stack.callback(upstream.close)
        door = Door(table, upstream, metrics, settings.client_seconds)
        api = Api(
            KeyCheck(settings.key()), door, OpenAiRoutes(door, table),
            Status(table, desired, reconciler, torchserve, zygote, device), reconciler, desired.refresh, ColdStarts(tools), metrics,
            tools,
        )  # fmt: skip
        stack.push_async_callback(zygote.stop)
        await zygote.start(environment)
        tasks = [
            asyncio.create_task(torchserve.supervise(reconciler.torchserve_up, reconciler.torchserve_down)),
            asyncio.create_task(desired.run()),
        ]
        stack.push_async_callback(_end, tasks)
        stack.push_async_callback((await listen(settings, api.handle)).cleanup)
        log.info("the agent listens on %s port %d", settings.agent_host, settings.agent_port)
        stopped = asyncio.create_task(stopping.wait())
        await asyncio.wait({*tasks, stopped}, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                task.result()  # it ends only by failing
        log.info("stopping")


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _runtime_folder(settings: AgentSettings) -> Path:
    """A new folder for sockets and for TorchServe's temp, under STATE_DIR, or under /tmp where its path would be too long.

    Removes what an agent that was killed left behind; `check_ports` has seen that none is running.
    """
    state_dir = settings.state_dir.resolve()
    for folder in ("run", "model-store", "ledger", "coldstart"):
        shutil.rmtree(state_dir / folder, ignore_errors=True)
    wanted = state_dir / "run"
    wanted.mkdir(parents=True, exist_ok=True)
    fits = len(os.fsencode(wanted)) + _LONGEST_NAME <= MAX_SOCKET_PATH
    return Path(tempfile.mkdtemp(prefix="ts-", dir=wanted if fits else None))
