"""Stock TorchServe for comparison: `python -m serve.baseline`. No agent, no zygote; Java exactly as `torchserve` starts it, but as
a child that ends with us (the command leaves it behind).

It serves embedded archives out of BASELINE_STORE, where the agent puts them. Nothing here is faster or slower than the stock:
only the addresses, the folders and the timeouts come from `config/baseline.properties`. GET /usage tells the agent, which may be
in another container, what Java and its workers take; see serve/agent/usage.py.
"""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from serve.agent.children import bound_to_us, stop
from serve.agent.settings import ROOT, Port, child_environment
from serve.agent.torchserve import java_command
from serve.agent.usage import descendants, usage
from serve.zygote.supervisor import MAX_SOCKET_PATH
from weightless.errors import SettingsError
from weightless.settings import Settings

_GRACE_S = 8.0  # less than an engine gives its containers


class BaselineSettings(Settings):
    """Where the baseline listens, and where its files lie."""

    baseline_host: str = "127.0.0.1"
    baseline_inference_port: Port = 8185
    baseline_management_port: Port = 8186
    baseline_metrics_port: Port = 8187
    baseline_usage_port: Port = 8188
    baseline_worker_port: Port = 9700
    baseline_store: Path | None = None
    state_dir: Path = Path(".run/baseline")
    config_dir: Path = ROOT / "config"


def main() -> int:
    try:
        settings = BaselineSettings.load()
        state = settings.state_dir.resolve()
        store, temp = settings.baseline_store or state / "store", state / "tmp"
        for folder in (store, temp):
            folder.mkdir(parents=True, exist_ok=True)
        properties = settings.config_dir.resolve() / "baseline.properties"
        with _short(temp) as temp:
            command = bound_to_us(java_command([], sys.executable, properties, store, temp))
            return asyncio.run(serve(settings, command, environment_of(settings, state, temp), state))
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


@contextlib.contextmanager
def _short(temp: Path) -> Iterator[Path]:
    """The folder, by a link under /tmp where a worker's socket in it would have too long a path: what is unpacked into it stays
    on its disk. TorchServe would start such a worker again and again."""
    if len(os.fsencode(temp / ".ts.sock.12345")) <= MAX_SOCKET_PATH:
        yield temp
        return
    with tempfile.TemporaryDirectory(prefix="ts-") as folder:
        link = Path(folder) / "t"
        link.symlink_to(temp)
        yield link


def environment_of(settings: BaselineSettings, state: Path, temp: Path) -> dict[str, str]:
    """What Java and its workers are told. Without PYTHONPATH: a worker must find its handler in its archive alone."""
    environment = child_environment(
        {
            "TEMP": str(temp),
            "TMPDIR": str(temp),
            "LOG_LOCATION": str(state / "logs"),
            "METRICS_LOCATION": str(state / "logs"),
            **{
                name.upper(): str(getattr(settings, name))
                for name in type(settings).model_fields
                if name.endswith(("_port", "_host"))
            },
        }
    )
    environment.pop("PYTHONPATH", None)
    return environment


async def serve(settings: BaselineSettings, command: list[str], environment: dict[str, str], state: Path) -> int:
    """Until Java ends or we are told to; Java's exit status."""
    java = await asyncio.create_subprocess_exec(*command, env=environment, cwd=state)
    loop, stopping = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)

    async def tell(request: web.Request) -> web.Response:
        ours = descendants(java.pid)  # nobody is told of other processes
        workers = [
            pid for word in request.query.get("workers", "").split(",") if word.isdigit() and (pid := int(word)) in ours
        ]
        found = await asyncio.to_thread(usage, java.pid, workers, request.query.get("disk") == "1")
        return web.json_response(found.as_dict())

    app = web.Application()
    app.router.add_get("/usage", tell)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, settings.baseline_host, settings.baseline_usage_port).start()
    ended = asyncio.create_task(java.wait())
    await asyncio.wait({ended, asyncio.create_task(stopping.wait())}, return_when=asyncio.FIRST_COMPLETED)
    await runner.cleanup()
    if not ended.done():
        await stop(java, _GRACE_S)
        return 0
    return java.returncode or 1


if __name__ == "__main__":
    sys.exit(main())
