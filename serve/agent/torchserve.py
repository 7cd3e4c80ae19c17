"""TorchServe's Java server as a child: started, watched, started again with a growing pause, stopped.

The `torchserve` command is not used: it hard-codes the interpreter that workers start with, and leaves the server behind in the
background. What it passes to Java is passed here.
"""

import asyncio
import importlib.util
import logging
import os
import shutil
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import aiohttp

from serve.agent.children import bound_to_us, stop
from serve.agent.settings import AgentSettings, child_environment
from weightless.errors import SettingsError, WeightlessError

log = logging.getLogger(__name__)

START_TIMEOUT_S = 60.0
STOP_GRACE_S = 20.0
_STEADY_S = 60.0  # a server that lived this long starts again at once, and its failures are forgotten
_BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0)
GIVE_UP_AFTER = len(_BACKOFF_S)
# What TorchServe adds to its workers' environment. The zygote must have been started with it, or it may not fork them.
_WORKERS_GET = {"TS_DECODE_INPUT_REQUEST": "true", "TS_IPEX_ENABLE": "false", "TS_IPEX_GPU_ENABLE": "false"}
# Threads sleep where they would spin for the others, 300,000 turns (libgomp) and 2^26 cycles (OpenBLAS): where two workers have
# as many threads as there are processors, those that spin keep the others from running. See docs/decisions/0011.
_SLEEP = {"GOMP_SPINCOUNT": "4000", "OPENBLAS_THREAD_TIMEOUT": "4"}


class TorchServeFailed(WeightlessError):
    """The Java server cannot be started, or does not stay up."""


class TorchServe:
    """One Java server. `interpreter` is what it starts workers with; `environment`, see `environment_of`, theirs too.

    `temp` is a folder of its own with a short path: workers' sockets lie in it, and a socket's path has at most 107 bytes.
    """

    def __init__(self, settings: AgentSettings, interpreter: str, environment: dict[str, str], temp: Path) -> None:
        self._settings = settings
        self._interpreter = interpreter
        self._environment = environment
        self._temp = temp
        self._process: asyncio.subprocess.Process | None = None
        self.state = "stopped"
        self.restarts = 0

    @property
    def pid(self) -> int | None:
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process else None

    async def supervise(self, came_up: Callable[[], Awaitable[None]], went_down: Callable[[], None]) -> None:
        """Keep the server up until cancelled. Calls `came_up` whenever it answers, `went_down` when it is gone.

        Raises:
            TorchServeFailed: it died time and again, or never answered.
        """
        failures = 0
        try:
            while True:
                began = time.monotonic()
                status = await self._one_life(came_up)
                went_down()
                failures = 0 if time.monotonic() - began > _STEADY_S else failures + 1
                if failures >= GIVE_UP_AFTER:
                    raise TorchServeFailed(
                        f"TorchServe ended {failures} times in a row, the last time with status {status}; its log is above"
                    )
                self.state, self.restarts = "restarting", self.restarts + 1
                log.error("TorchServe ended with status %s; starting it again in %.0f s", status, _BACKOFF_S[failures])
                await asyncio.sleep(_BACKOFF_S[failures])
        finally:
            await self.stop()

    async def stop(self) -> None:
        """Stop the server, and with it its workers."""
        if self._process is not None:
            await stop(self._process, STOP_GRACE_S)
        self._clean()
        self.state = "stopped"

    async def _one_life(self, came_up: Callable[[], Awaitable[None]]) -> int:
        self.state = "starting"
        self._clean()
        process = self._process = await self._spawn()
        ended = asyncio.create_task(process.wait())
        answers = asyncio.create_task(self._until_it_answers())
        await asyncio.wait({ended, answers}, return_when=asyncio.FIRST_COMPLETED)
        if answers.done() and not ended.done():
            answers.result()
            self.state = "up"
            await came_up()
        answers.cancel()
        return await ended

    async def _spawn(self) -> asyncio.subprocess.Process:
        settings = self._settings
        for folder in (settings.model_store, settings.log_dir, self._temp):
            folder.mkdir(parents=True, exist_ok=True)
        return await asyncio.create_subprocess_exec(
            *bound_to_us(self._command()),
            env=self._environment,
            cwd=settings.state_dir.resolve(),
            stdin=asyncio.subprocess.DEVNULL,
        )

    def _command(self) -> list[str]:
        config = self._settings.config_dir.resolve()
        options = [
            f"-Dlog4j.configurationFile=file://{config / 'log4j2.xml'}",
            "-Xmx512m",
            "-XX:+ExitOnOutOfMemoryError",  # else it stays up and answers nothing
        ]
        properties = config / "config.properties"
        return java_command(options, self._interpreter, properties, self._settings.model_store, self._temp)

    async def _until_it_answers(self) -> None:
        url, deadline = f"{self._settings.inference_url}/ping", time.monotonic() + START_TIMEOUT_S
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while time.monotonic() < deadline:
                try:
                    async with session.get(url):
                        return
                except (aiohttp.ClientError, TimeoutError):
                    await asyncio.sleep(0.05)
        raise TorchServeFailed(f"TorchServe: required an answer at {url} within {START_TIMEOUT_S:.0f} s, found none")

    def _clean(self) -> None:
        shutil.rmtree(self._temp, ignore_errors=True)


def check_ports(settings: AgentSettings) -> None:
    """SettingsError if a port is taken: TorchServe would say so only in a Java stack trace."""
    _check_port(settings.agent_host, settings.agent_port, "AGENT_PORT")
    for name in ("INFERENCE", "MANAGEMENT", "METRICS"):
        variable = f"TORCHSERVE_{name}_PORT"
        _check_port("127.0.0.1", getattr(settings, variable.lower()), variable)


def _check_port(host: str, port: int, variable: str) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise SettingsError(
                f"{variable}: required a free port, found {host}:{port} not to be had ({error.strerror}); "
                "stop what listens there (`make down`?), or set another"
            ) from None


def java_command(options: list[str], interpreter: str, properties: Path, store: Path, temp: Path) -> list[str]:
    """What the `torchserve` command would run, with another interpreter for workers and more options for Java."""
    home = _torchserve_home()
    return [
        *(_java(), f"-Dmodel_server_home={home}", f"-Djava.io.tmpdir={temp}", *options),
        *("-cp", f"{home / 'ts' / 'frontend'}/*", "org.pytorch.serve.ModelServer", "--python", interpreter),
        *("-f", str(properties), "-s", str(store), "-ncs", "--disable-token-auth", "--enable-model-api"),
    ]


def environment_of(settings: AgentSettings, temp: Path) -> dict[str, str]:
    """What TorchServe and its workers are told: our environment, without our secrets, and what config.properties refers to.

    Without PYTHONPATH: a worker must find `weightless` and the handler in its archive, not in our checkout.
    """
    environment = child_environment(
        {
            "TORCHSERVE_INFERENCE_PORT": str(settings.torchserve_inference_port),
            "TORCHSERVE_MANAGEMENT_PORT": str(settings.torchserve_management_port),
            "TORCHSERVE_METRICS_PORT": str(settings.torchserve_metrics_port),
            "TORCHSERVE_WORKER_PORT": str(settings.torchserve_worker_port),
            "TORCHSERVE_MAX_REQUEST": str(2 * settings.max_body_bytes),
            "CONFIG_DIR": str(settings.config_dir.resolve()),
            "LOG_LOCATION": str(settings.log_dir),
            "METRICS_LOCATION": str(settings.log_dir),
            "TEMP": str(temp),
            **_WORKERS_GET,
        }
    )
    for name in ("PYTHONPATH", "TS_CONFIG_FILE"):  # the second would win over our own file
        environment.pop(name, None)
    return environment if "OMP_WAIT_POLICY" in environment else _SLEEP | environment


def _torchserve_home() -> Path:
    """The folder that holds TorchServe's package, found without importing it."""
    spec = importlib.util.find_spec("ts")
    if spec is None or spec.origin is None:
        raise SettingsError(
            "required the package torchserve in this Python environment, found none; `make up` installs it"
        )
    return Path(spec.origin).resolve().parents[1]


def _java() -> str:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java")
    if java is None or not Path(java).is_file():
        raise SettingsError(
            "required Java 17 (JAVA_HOME, or java on PATH), found none; install openjdk-17-jre-headless"
        )
    return java
