"""The agent's side of the zygote: start it, know how it is, start it again when it dies, stop it.

zygote = Zygote(socket=state_dir / "zygote.sock", imports=imports_for("text-generation", ["FalconForCausalLM"]))
environment = zygote.environment(os.environ)      # of TorchServe's JVM
await zygote.start(environment)                   # returns at once; workers that come early wait for its imports
java … --python {zygote.interpreter}
zygote.status.state, zygote.status.reason         # "running", None
await zygote.stop()                               # after TorchServe: its workers die with it
"""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

State = Literal["off", "starting", "running", "failed"]

CHECKOUT = Path(__file__).parents[2]
LAUNCHER = Path(__file__).with_name("launcher.py")
MAX_SOCKET_PATH = 107  # bytes; sun_path of Linux, less its NUL
BACKOFF_S = (0.0, 1.0, 2.0, 5.0, 10.0, 30.0)
HEALTHY_S = 60.0  # a zygote that lived this long begins the backoff anew
STOP_S = 5.0
_LONGEST_LINE = 1 << 20  # bytes; asyncio's own limit is 64 KiB, which a package may print at once
BEAT_S = 10.0  # between two questions whether it lives
STUCK_S = 30.0  # without a word since a question: longer than a machine under load keeps it from answering

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """How the zygote is. reason: why it is not running, or, while it is, why the last worker started the stock way.

    forked and refused count the starts since the agent began, restarts how often the zygote died; ready_s is how long the
    imports took.
    """

    state: State = "off"
    reason: str | None = None
    pid: int | None = None
    ready_s: float | None = None
    restarts: int = 0
    forked: int = 0
    refused: int = 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Zygote:
    """One zygote process, kept alive. Not enabled, it is `off` and TorchServe gets the real interpreter."""

    def __init__(
        self, socket: Path, imports: Iterable[str], *, enabled: bool = True, python: str = sys.executable
    ) -> None:
        """Raises ValueError for a socket path that the kernel cannot hold."""
        if len(os.fsencode(socket)) > MAX_SOCKET_PATH:
            raise ValueError(f"socket of the zygote: required at most {MAX_SOCKET_PATH} bytes, found {socket}")
        self.socket = socket
        self.imports = list(dict.fromkeys(imports))
        self.enabled = enabled
        self.python = python
        self.status = Status(reason=None if enabled else "turned off by a setting")
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._settled = asyncio.Event()  # the imports are done, or have failed
        self._heard = 0.0  # when it last said anything, on the loop's clock
        self._importing = 0  # how many orders to take in more it has not carried out
        self._held: dict[str, tuple[str, Path]] = {}  # by owner: a tokenizer's key, and the folder to read it from

    @property
    def interpreter(self) -> str:
        """What TorchServe is to be given as `--python`."""
        return str(LAUNCHER) if self.enabled else self.python

    @property
    def helper(self) -> str:
        """The interpreter for a helper that is to start now: while the zygote imports, one of its own is there sooner."""
        return self.interpreter if self.status.state == "running" and not self._importing else self.python

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """The environment for TorchServe's JVM, and for the zygote: they must be equal in what is read at import."""
        added = {"WEIGHTLESS_PYTHON": self.python, "WEIGHTLESS_ZYGOTE_SOCKET": str(self.socket)} if self.enabled else {}
        # The launcher's first line looks for python3 on PATH: ours, since any other may be slow to start or too old.
        path = os.pathsep.join(filter(None, [str(Path(self.python).parent), base.get("PATH")]))
        return {**base, **added, "PATH": path}

    async def start(self, environment: Mapping[str, str]) -> None:
        """Start and from now on restart it. Returns at once; `ready` waits."""
        if self.enabled and self._keeper is None:
            self._set(state="starting", reason=None)
            self._keeper = asyncio.create_task(self._keep(dict(environment)), name="zygote")

    async def ready(self) -> bool:
        """Wait until the imports of the present process are done or it has failed: whether workers are forked now."""
        if self._keeper is not None:
            await self._settled.wait()
        return self.status.state == "running"

    async def warm(self, imports: Iterable[str]) -> None:
        """Import more, for a model that is served from now on. Starts that come meanwhile wait for it."""
        new = [entry for entry in dict.fromkeys(imports) if entry not in self.imports]
        self.imports += new
        if new and self._process is not None and self._process.stdin is not None:
            self._importing += 1
            await self._say(self._process, new)

    async def hold(self, owner: str, key: str | None, folder: Path) -> None:
        """Hold the tokenizer in the folder for coming workers, instead of the one held for this owner before; no key: none.

        Said again if it changes nothing: a folder that was not there when it was asked for before may be by now.
        """
        self._held.pop(owner, None)
        if key is not None:
            self._held[owner] = (key, folder)
        if self._settled.is_set():
            await self._say_held()

    async def stop(self) -> None:
        """End it, and with it every worker it forked: stop TorchServe before."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        self._settled.set()
        self._set(state="off", reason="stopped" if self.enabled else self.status.reason, pid=None)

    def _set(self, **changed: Any) -> None:
        self.status = replace(self.status, **changed)

    async def _keep(self, environment: dict[str, str]) -> None:
        loop = asyncio.get_running_loop()
        deaths = 0
        while True:
            self._settled.clear()
            self._set(state="starting", pid=None)
            began = loop.time()
            reason = await self._live(environment)
            deaths = 1 if loop.time() - began > HEALTHY_S else deaths + 1
            delay = BACKOFF_S[min(deaths, len(BACKOFF_S)) - 1]
            reason = f"{reason}; workers start the stock way, next try in {delay:g} s"
            log.error("zygote: %s", reason)
            self._set(state="failed", reason=reason, pid=None, restarts=self.status.restarts + 1)
            self._settled.set()
            await asyncio.sleep(delay)

    async def _live(self, environment: dict[str, str]) -> str:
        """One process from its start to its end; why it ended."""
        command = [self.python, "-m", "serve.zygote", str(self.socket), *self.imports]
        pipe = asyncio.subprocess.PIPE
        try:
            # -m finds the package in its working directory, whatever PYTHONPATH says.
            process = await asyncio.create_subprocess_exec(
                *command, stdin=pipe, stdout=pipe, env=environment, cwd=CHECKOUT, limit=_LONGEST_LINE
            )
        except OSError as error:
            return f"cannot start {self.python}: {error}"
        self._process = process
        self._set(pid=process.pid)
        failure, self._importing = None, 1
        watch = asyncio.create_task(self._watch(process), name="zygote's heartbeat")
        try:
            assert process.stdout is not None
            try:
                async for line in process.stdout:
                    self._heard = asyncio.get_running_loop().time()
                    starting = not self._settled.is_set()
                    failure = self._note(line) or failure
                    if starting and self._settled.is_set() and self._held:  # by the process before this one
                        await self._say_held()
                code = await process.wait()
            except ValueError:  # of asyncio, for a line without an end
                return f"a package that it imports printed a line of more than {_LONGEST_LINE >> 20} MiB"
        finally:
            self._process = None
            watch.cancel()
            await _end(process)
        return failure or (f"killed by signal {-code}" if code < 0 else f"ended with exit code {code}")

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Ask now and then whether it lives. One that is stuck is only said to be: its workers live, and would die with it."""
        loop = asyncio.get_running_loop()
        while True:
            asked = loop.time()
            await self._say(process, [])
            await asyncio.sleep(BEAT_S)
            stuck = False
            while self._heard < asked:
                if (
                    not stuck
                    and self.status.state == "running"
                    and not self._importing
                    and loop.time() - asked > STUCK_S
                ):
                    stuck, reason = True, f"it has not answered for {STUCK_S:g} s; workers start the stock way"
                    log.error("zygote: %s", reason)
                    self._set(state="failed", reason=reason)
                await asyncio.sleep(BEAT_S / 10)
            if stuck:
                log.info("zygote: it answers again")
                self._set(state="running", reason=None)

    async def _say_held(self) -> None:
        if self._process is not None:
            self._importing += 1
            await self._say(self._process, {key: str(folder) for key, folder in self._held.values()})

    @staticmethod
    async def _say(process: asyncio.subprocess.Process, wanted: list[str] | dict[str, str]) -> None:
        if process.stdin is not None:
            with contextlib.suppress(ConnectionError):  # it just died: the next one is started with all that is wanted
                process.stdin.write(json.dumps(wanted).encode() + b"\n")
                await process.stdin.drain()

    def _note(self, line: bytes) -> str | None:
        """Take in one line of the zygote's; a failure is returned."""
        try:
            told = json.loads(line)
            event = told["event"]
        except (ValueError, TypeError, KeyError):
            log.info("zygote: %s", line.decode(errors="replace").rstrip())  # a package that prints when it is imported
            return None
        if event == "ready":
            self._importing -= 1
            self._set(state="running", reason=None, ready_s=told["seconds"])
            self._settled.set()
            log.info("zygote: ready, %s modules in %s s", told["modules"], told["seconds"])
            for failed in told["failed"]:
                log.warning("zygote: cannot import %s", failed)
        elif event == "held":
            self._importing -= 1
            for failed in told["failed"]:
                log.warning("zygote: cannot hold the %s", failed)
        elif event == "forked":
            self._set(forked=self.status.forked + 1)
        elif event == "refused":
            self._set(reason=told["reason"], refused=self.status.refused + 1)
            log.warning("zygote: a worker starts the stock way: %s", told["reason"])
        elif event == "unfit":
            self._importing = 0
            self._set(state="failed", reason=f"{told['reason']}; workers start the stock way")
        elif event == "failed":
            return str(told["reason"])
        return None


async def _end(process: asyncio.subprocess.Process) -> None:
    """The zygote leaves when its standard input ends; a stuck one is killed."""
    if process.returncode is None and process.stdin is not None:
        process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()
