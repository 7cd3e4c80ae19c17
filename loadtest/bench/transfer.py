"""The bare transfer of a model out of the stack's store: the fastest programs that copy files, which check nothing."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import minio

from loadtest.bench.experiment import BenchFailed, Samples
from loadtest.bench.fetch import Workload, clients
from loadtest.bench.node import Node
from loadtest.bench.server import BenchServer
from local.install import PEERS
from weightless.store import Store

COPIERS = ("mc mirror", "s5cmd", "s5cmd tuned")


def copiers(node: Node, model: str, release: str, scratch: Path) -> dict[str, Callable[[], float]]:
    """Every copier by name: what each returns is the seconds that it took to copy the model's folder into an empty one.

    Raises:
        BenchFailed: they are not installed.
    """
    if not PEERS.installed():
        raise BenchFailed(f"required the copiers in {PEERS.folder}; make bench installs them")
    server, folder = stack_server(node, scratch), scratch / "transfer"
    everybody = clients(
        server,
        Workload(model, "", ()),
        Store(node.store).release(model, release),
        folder,
        PEERS.folder / "bin" / "python",
    )

    def copying(copy: Callable[[], float]) -> Callable[[], float]:
        def run() -> float:
            folder.mkdir()
            try:
                return copy()
            finally:
                shutil.rmtree(folder)

        return run

    return {name: copying(everybody[name]) for name in COPIERS}


def stack_server(node: Node, scratch: Path) -> BenchServer:
    """The stack's own store as a server to copy from."""
    settings = node.store
    keys = settings.credentials()
    return BenchServer(
        scratch, str(settings.s3_endpoint).rstrip("/"), minio.Minio(settings.netloc, *keys, secure=False), *keys
    )


def settle() -> None:
    """Write what is dirty to the disk, so that nobody pays for what the one before left to be written."""
    os.sync()


def fastest(samples: Samples, suffix: str = "") -> float:
    """Seconds of the fastest copier: the least of their medians."""
    return min(samples.median(f"transfer {name}{suffix}", "seconds_s") for name in COPIERS)
