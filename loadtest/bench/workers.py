"""Several workers of one slim MAR on the node: the bytes that they fetch, and the memory that they take.

They are registered with TorchServe beside what the agent serves: cold with a cache of their own, for their memory with the node's,
where nobody else maps their weights.
"""

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from loadtest.bench.experiment import BenchFailed
from loadtest.bench.measured import PROMPT, Measured
from loadtest.bench.server import ROOT
from serve.agent.archive import SlimArchive, build_slim
from serve.agent.management import Management
from weightless.modelfile import load_model_file
from weightless.store import Store

MIB = 1 << 20
_START_S = 600
_TOKENS = 2


@dataclass(frozen=True)
class Mapped:
    """Memory of one worker in bytes: its share of the weights that it maps, and what it has for itself alone."""

    weights_pss: int
    private: int


def bytes_of_cold_workers(measured: Measured, count: int) -> tuple[int, float]:
    """What MinIO sent out of the models' bucket until so many cold workers, started together, were READY; the seconds."""

    async def run() -> tuple[int, float]:
        store = Store(measured.node.store)
        before = store.bytes_sent("models")
        with tempfile.TemporaryDirectory(dir=measured.node.run, prefix="workers-") as cache:
            async with _registered(measured, count, Path(cache).resolve()) as (_, seconds):
                return store.bytes_sent("models") - before, seconds

    return asyncio.run(run())


def memory_of_workers(measured: Measured, count: int, requests: int) -> list[Mapped]:
    """Memory of each of so many workers after `requests` requests for each of them, on a node that has had the release before."""
    measured.cold_start(variant="slim", cache="warm")
    blobs = (measured.node.run / "cache" / "blobs").resolve()

    async def run() -> list[Mapped]:
        async with _registered(measured, count, None) as (pids, _):
            await _ask(measured, count, requests)
            return [mapped(Path(f"/proc/{pid}/smaps").read_text(), str(blobs)) for pid in pids]

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def _registered(measured: Measured, count: int, cache: Path | None) -> AsyncIterator[tuple[list[int], float]]:
    """That many workers, READY: their process ids, and the seconds from the registration. `cache`: None for the node's."""
    node, name = measured.node, _name(measured)
    settings = load_model_file(ROOT / "config" / "models", measured.model).node.model_copy(update={"workers": count})
    release = Store(node.store).release(measured.model, measured.release)
    archive = node.run / "serve" / "model-store" / f"{name}.mar"
    slim = SlimArchive(measured.model, release.name, settings, release, cache)
    await build_slim(slim, ROOT / "handler", archive)
    async with Management(node.management) as management:
        try:
            began = time.monotonic()
            await management.register(archive.name, name, count, _START_S)
            pids = await _until_ready(management, name, release.name, count)
            yield pids, time.monotonic() - began
        finally:
            await management.unregister(name, release.name)
            archive.unlink()


def _name(measured: Measured) -> str:
    return f"{measured.model}--bench"


async def _until_ready(management: Management, name: str, version: str, count: int) -> list[int]:
    began = time.monotonic()
    while (spent := time.monotonic() - began) < _START_S:
        found = await management.workers(name, version) or []
        if len(found) == count and all(worker.ready for worker in found):
            return [worker.pid for worker in found]
        await asyncio.sleep(max(0.01, spent / 100))
    raise BenchFailed(f"{name}: required {count} workers READY within {_START_S} s, found {found}")


async def _ask(measured: Measured, workers: int, requests: int) -> None:
    """As many at a time as there are workers, each a batch of its own as far as TorchServe lets it be."""
    url = f"{measured.node.torchserve}/predictions/{_name(measured)}/{measured.release}"
    body = {"input": PROMPT, "parameters": {"max_new_tokens": _TOKENS, "do_sample": False}}

    async def one_after_another(session: aiohttp.ClientSession) -> None:
        for _ in range(requests):
            async with session.post(url, json=body) as answer:
                if answer.status != 200:
                    raise BenchFailed(f"{url}: required 200, found {answer.status}: {(await answer.text())[:300]}")

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_START_S)) as session:
        await asyncio.gather(*(one_after_another(session) for _ in range(workers)))


def mapped(smaps: str, below: str) -> Mapped:
    """What /proc/<pid>/smaps says: Pss of the files below a folder, and private memory of all that is not such a file."""
    weights = private = 0
    inside = False
    for line in smaps.splitlines():
        name, _, rest = line.partition(":")
        if not name[:1].isupper():  # an area's own line: addresses, rights, …, path
            inside = f" {below}/" in line
        elif inside and name == "Pss":
            weights += int(rest.split()[0])
        elif not inside and name in ("Private_Clean", "Private_Dirty"):
            private += int(rest.split()[0])
    return Mapped(weights * 1024, private * 1024)
