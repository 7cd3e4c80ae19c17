"""Where a start is measured: on this node's own TorchServe, whose workers the zygote forks, or on the stock baseline."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import aiohttp

from serve.agent.embedded import Baseline
from serve.agent.management import Management
from serve.agent.rollout import Tools
from serve.agent.usage import Usage, descendants, parent, usage

_ZYGOTE = b"weightless zygote"


class Ground(Protocol):
    """A TorchServe. `here`: its processes can be seen from this one."""

    here: bool
    management: Management
    inference_url: str

    def offered(self, archive: Path) -> contextlib.AbstractContextManager[str]:
        """The archive where this TorchServe finds it; by which name."""

    async def usage(self, workers: list[int], disk: bool) -> Usage | None:
        """What Java and these workers take; None where it cannot be asked."""


class NodeGround:
    """This node."""

    here = True

    def __init__(self, tools: Tools) -> None:
        self.management = tools.management
        self.inference_url = tools.settings.inference_url
        self._store = tools.settings.model_store
        self._java = next((pid for pid in descendants(os.getpid()) if b"ModelServer" in _command(pid)), 0)

    @contextlib.contextmanager
    def offered(self, archive: Path) -> Iterator[str]:
        link = self._store / f"coldstart--{archive.name}"
        link.unlink(missing_ok=True)
        link.symlink_to(archive)
        try:
            yield link.name
        finally:
            link.unlink(missing_ok=True)

    async def usage(self, workers: list[int], disk: bool) -> Usage | None:
        return await asyncio.to_thread(usage, self._java, workers, disk)


class BaselineGround:
    """The stock TorchServe."""

    here = False

    def __init__(self, baseline: Baseline, management: Management, session: aiohttp.ClientSession) -> None:
        self.management = management
        self.inference_url = baseline.inference_url
        self._baseline = baseline
        self._session = session

    def offered(self, archive: Path) -> contextlib.AbstractContextManager[str]:
        return contextlib.nullcontext(archive.name)  # built in its store

    async def usage(self, workers: list[int], disk: bool) -> Usage | None:
        return await self._baseline.usage(self._session, workers, disk)


def forked(pid: int) -> bool:
    """Whether the zygote is the parent of a worker of this node."""
    return _command(parent(pid)).startswith(_ZYGOTE)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
