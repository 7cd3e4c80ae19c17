"""The process that imports, and forks a worker for each launcher that asks.

One thread and one poll loop: a thread would be lost in every fork, together with whatever lock it held. Workers' ends are
seen through pidfds, launchers' ends through their connections hanging up, the supervisor's end through standard input.
What happens is written to standard output, one JSON object a line.
"""

import gc
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from serve.zygote import fitness, protocol, tokenizers, worker
from serve.zygote.imports import import_all
from serve.zygote.protocol import Start

STDIN = 0
BACKLOG = 512
FETCHING = Path(__file__).resolve().parents[1] / "fetching.py"
SET_BY_US = {b"OPENBLAS_NUM_THREADS", b"PYTORCH_NVML_BASED_CUDA_CHECK"}


def report(event: str, **details: object) -> None:
    """Tell the supervisor, unless it has not listened for so long that we would have to wait for it."""
    if select.select([], [1], [], 0)[1]:
        os.write(1, json.dumps({"event": event, **details}).encode() + b"\n")


@dataclass(frozen=True)
class Worker:
    pid: int
    connection: socket.socket


@dataclass
class Zygote:
    """State of the loop. base_path, environment and what SIGINT does are as the interpreter started, for the forks."""

    listener: socket.socket
    base_path: list[str]
    environment: dict[bytes, bytes]
    on_interrupt: Any
    set_by_imports: dict[bytes, bytes] = field(default_factory=dict)
    scripts: tuple[Path, ...] = ()  # what a fork may run
    imported: frozenset[str] = frozenset()
    asking: dict[int, socket.socket] = field(default_factory=dict)  # connections that have not said what to start
    workers: dict[int, Worker] = field(default_factory=dict)  # by pidfd
    hangups: dict[int, int] = field(default_factory=dict)  # a worker's connection → its pidfd
    poll: select.poll = field(default_factory=select.poll)
    commands: bytes = b""
    unfit: str | None = None  # why no more workers may be forked

    def begin(self, wanted: list[str]) -> None:
        """The imports of the start. Leaves the process when it is unfit after them."""
        gc.disable()
        try:
            self.take_in("ready", partial(import_all, wanted))
        except ImportError as error:
            self.unfit = f"cannot import {error}"
        if self.unfit:
            report("failed", reason=self.unfit)
            os._exit(1)
        self.scripts = (Path(str(sys.modules["ts"].__file__)).with_name("model_service_worker.py"), FETCHING)

    def take_in(self, event: str, load: Callable[[], list[str]]) -> None:
        """Load, see whether this process can still be forked from, and report. Raises ImportError for a required module."""
        began = time.monotonic()
        importing = Path(f"{self.listener.getsockname()}.importing")  # launchers that find it are patient
        importing.touch()
        failed = load()
        self.unfit = fitness.unfit_after_imports()
        new = os.environb.keys() - self.environment.keys() - SET_BY_US
        self.set_by_imports = {name: os.environb[name] for name in new}
        self.imported = fitness.imported_names()
        sys.stdout.flush()  # what an import printed would come out of every fork once more
        gc.collect()
        gc.freeze()  # a collection in a worker must not write to, and so copy, every page of ours
        importing.unlink(missing_ok=True)
        if not self.unfit:
            seconds = round(time.monotonic() - began, 2)
            report(event, pid=os.getpid(), seconds=seconds, modules=len(sys.modules), failed=failed)

    def serve(self) -> Start:
        """Fork workers until the supervisor is gone. Returns only in a fork: with what it has to start."""
        self.poll.register(STDIN, select.POLLIN)
        self.poll.register(self.listener, select.POLLIN)
        while True:
            # One at a time: to handle one may close another, and its number be given to a third.
            descriptor, _ = self.poll.poll()[0]
            if descriptor == STDIN:
                self.obey()
            elif descriptor == self.listener.fileno():
                self.accept()
            elif descriptor in self.hangups:
                self.kill(descriptor)
            elif descriptor in self.workers:
                self.reap(descriptor)
            elif start := self.answer(descriptor):
                return start

    def obey(self) -> None:
        """A line on standard input is a JSON list of further imports, empty to hear that we live, or an object: the tokenizers to
        hold. Its end is the supervisor's."""
        read = os.read(STDIN, 1 << 16)
        if not read:
            os._exit(0)
        *lines, self.commands = (self.commands + read).split(b"\n")
        for line in lines:
            wanted = json.loads(line)
            if isinstance(wanted, dict):
                self.take_in("held", partial(tokenizers.hold, wanted))
            elif wanted:
                self.take_in("ready", partial(import_all, wanted))
            else:
                report("alive")
            if self.unfit and wanted != []:  # workers live, so stay; later ones start the stock way
                report("unfit", reason=self.unfit)

    def accept(self) -> None:
        connection, _ = self.listener.accept()
        connection.setblocking(False)
        self.asking[connection.fileno()] = connection
        self.poll.register(connection, select.POLLIN)

    def answer(self, descriptor: int) -> Start | None:
        """Refuse or fork; the start in the fork, None in the zygote."""
        connection = self.asking.pop(descriptor)
        self.poll.unregister(descriptor)
        try:
            start = protocol.receive_start(connection)
        except (protocol.ProtocolError, ConnectionError) as error:
            report("refused", reason=str(error))
            start = None
        if start is None:
            connection.close()
            return None
        try:
            reason = self.unfit or fitness.unfit_to_fork() or self.why_stock(start)
            if reason is None and self.fork(connection):
                return start
        except Exception as error:  # nothing that a start brings may end the zygote: all its workers would die with it
            reason = f"{type(error).__name__}: {error}"
        for stream in start.streams:
            os.close(stream)
        if reason:
            report("refused", reason=reason)
            protocol.refuse(connection, reason)
            connection.close()
        return None

    def why_stock(self, start: Start) -> str | None:
        return fitness.why_stock(start, self.scripts, self.environment, [*sys.path, *self.base_path], self.imported)

    def fork(self, connection: socket.socket) -> bool:
        """True in the fork, once the launcher holds its pidfd and lets it run."""
        zygote = os.getpid()
        pid = os.fork()
        if pid == 0:
            allowed = False
            try:
                worker.die_with(zygote)
                allowed = protocol.announce_worker(connection)
            finally:
                if not allowed:
                    os._exit(1)
            connection.close()
            return True
        pidfd = os.pidfd_open(pid)
        self.workers[pidfd] = Worker(pid, connection)
        self.hangups[connection.fileno()] = pidfd
        self.poll.register(pidfd, select.POLLIN)
        self.poll.register(connection, 0)  # hanging up is always told; what the launcher sends is for the worker
        report("forked", pid=pid)
        return False

    def kill(self, descriptor: int) -> None:
        """A launcher is gone: TorchServe means the worker, and may start the next one in the same place."""
        self.poll.unregister(descriptor)
        os.kill(self.workers[self.hangups.pop(descriptor)].pid, signal.SIGKILL)

    def reap(self, pidfd: int) -> None:
        """A worker is gone: tell its launcher how. Killed by signal n is 128+n, as the JVM has it of its own children."""
        ended = self.workers.pop(pidfd)
        _, status = os.waitpid(ended.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        code = code if code >= 0 else 128 - code
        protocol.tell(ended.connection, b"%d" % code)
        self.poll.unregister(pidfd)
        if self.hangups.pop(ended.connection.fileno(), None) is not None:
            self.poll.unregister(ended.connection)
        ended.connection.close()
        os.close(pidfd)
        report("ended", pid=ended.pid, code=code)

    def close(self) -> None:
        """In a fork: let go of everything that is the zygote's."""
        self.listener.close()
        for connection in [*self.asking.values(), *(found.connection for found in self.workers.values())]:
            connection.close()
        for pidfd in self.workers:
            os.close(pidfd)
