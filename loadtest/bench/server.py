"""A MinIO of a benchmark's own, and what is said about the machine that it ran on."""

import contextlib
import os
import platform
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import minio
from minio.commonconfig import ENABLED
from minio.versioningconfig import VersioningConfig

from weightless.settings import StoreSettings

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str:
    """A program's path: the checkout's own build first, then PATH."""
    found = shutil.which(name, path=f"{ROOT / '.tools' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        raise FileNotFoundError(f"required the program {name}, found none in .tools/bin or PATH; run `make install`")
    return found


@dataclass(frozen=True)
class BenchServer:
    """A running MinIO with a versioned bucket `models`."""

    folder: Path
    endpoint: str
    client: minio.Minio
    access_key: str = "bench"
    secret_key: str = "bench-bench"  # noqa: S105  # of a server on loopback that lives for minutes

    @property
    def settings(self) -> StoreSettings:
        return StoreSettings.model_validate(
            {"s3_endpoint": self.endpoint, "s3_access_key": self.access_key, "s3_secret_key": self.secret_key}
        )

    @property
    def environment(self) -> dict[str, str]:
        """What its clients are told. mc knows it as `bench`, by this alone: an argument could be read by everybody."""
        scheme, _, address = self.endpoint.partition("://")
        return {
            "S3_ENDPOINT": self.endpoint,
            "S3_ACCESS_KEY": self.access_key,
            "S3_SECRET_KEY": self.secret_key,
            "MC_HOST_bench": f"{scheme}://{self.access_key}:{self.secret_key}@{address}",
        }


@contextlib.contextmanager
def running_server(folder: Path) -> Iterator[BenchServer]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    client = minio.Minio(address, BenchServer.access_key, BenchServer.secret_key, secure=False, region="us-east-1")
    server = BenchServer(folder, f"http://{address}", client)
    log = (folder / "minio.log").open("wb")
    process = subprocess.Popen(
        [tool("minio"), "server", "--no-compat", "--quiet", "--address", address, str(folder / "data")],
        env=os.environ
        | {
            "MINIO_ROOT_USER": server.access_key,
            "MINIO_ROOT_PASSWORD": server.secret_key,
            "MINIO_BROWSER": "off",
            "HOME": str(folder),
        },
        stdout=log,
        stderr=log,
    )
    try:
        _wait(server, process)
        client.make_bucket("models")
        client.set_bucket_versioning("models", VersioningConfig(ENABLED))
        yield server
    finally:
        process.terminate()
        process.wait(30)
        log.close()


def _wait(server: BenchServer, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        ready = f"{server.endpoint}/minio/health/ready"
        with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=2):  # noqa: S310  # our own address
            return
        time.sleep(0.05)
    raise TimeoutError(
        f"required a MinIO at {server.endpoint}, found none after 60 s; see {server.folder / 'minio.log'}"
    )


def machine(folder: Path) -> dict[str, Any]:
    """Processor, memory, kernel, load, and the file system that was measured on."""
    facts = Path("/proc/cpuinfo").read_text().splitlines() + Path("/proc/meminfo").read_text().splitlines()
    named = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in facts}
    mounted = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    there = max(
        (mount for mount in mounted if str(folder.resolve()).startswith(mount[0])), key=lambda mount: len(mount[0])
    )
    return {
        "cpu": named.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "memory": named.get("MemTotal"),
        "kernel": platform.release(),
        "file_system": there[1],
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
    }
