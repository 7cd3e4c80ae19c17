"""The bare transfer of a model out of the stack's store: the fastest programs that copy files, which check nothing."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import minio

from loadtest.bench.experiment import BenchFailed, Samples
from loadtest.bench.fetch import Workload, clients
from loadtest.bench.node import Node
from loadtest.bench.server import BenchServer, tool
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
    settings, folder = node.store, scratch / "transfer"
    keys = settings.s3_access_key or "", settings.s3_secret_key.get_secret_value() if settings.s3_secret_key else ""
    endpoint = str(settings.s3_endpoint).rstrip("/")
    server = BenchServer(scratch, endpoint, minio.Minio(endpoint.partition("//")[2], *keys, secure=False), *keys)
    mc = [tool("mc"), "--config-dir", str(scratch / "mc"), "--quiet", "alias", "set", "bench", endpoint, *keys]
    subprocess.run(mc, check=True, stdout=subprocess.DEVNULL)
    everybody = clients(
        server,
        Workload(model, "", ()),
        Store(settings).release(model, release),
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


def settle() -> None:
    """Write what is dirty to the disk, so that nobody pays for what the one before left to be written."""
    os.sync()


def fastest(samples: Samples, suffix: str = "") -> float:
    """Seconds of the fastest copier: the least of their medians."""
    return min(samples.median(f"transfer {name}{suffix}", "seconds_s") for name in COPIERS)
