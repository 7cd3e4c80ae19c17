"""Real servers for the tests, as processes on free ports: MinIO with its two versioned buckets."""

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import minio
from minio.commonconfig import ENABLED
from minio.versioningconfig import VersioningConfig

from weightless.settings import StoreSettings
from weightless.store import Store

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ROOT / ".tools" / "bin"


def tool(name: str) -> str:
    """The program's path: the checkout's own build first, then PATH."""
    found = shutil.which(name, path=f"{TOOLS}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        raise FileNotFoundError(f"required the program {name}, found none in .tools/bin or PATH; run `make install`")
    return found


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now.

    Below those that Linux gives to outgoing connections: of these, one could be taken before the server binds it, or
    while the server is down for a moment.
    """
    while True:
        port = random.SystemRandom().randrange(18000, 32768)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(condition: Callable[[], T], what: str, timeout: float = 60, interval: float = 0.05) -> T:
    """The condition's first true value; AssertionError after `timeout` seconds, with the last exception if it raised."""
    deadline = time.monotonic() + timeout
    last: Exception | None = None
    while time.monotonic() < deadline:
        try:
            value = condition()
            if value:
                return value
        except (OSError, AssertionError, KeyError) as error:
            last = error
        time.sleep(interval)
    raise AssertionError(f"waited {timeout} s for {what}" + (f"; last: {last!r}" if last else ""))


@dataclass
class MinioServer:
    """A MinIO process. `settings` are the root user's; use `user()` for others after provisioning."""

    folder: Path
    port: int
    access_key: str = "root-of-the-tests"
    secret_key: str = "not-a-secret-of-anybody-" * 3
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def settings(self) -> StoreSettings:
        return self.settings_at(self.endpoint)

    def settings_at(self, endpoint: str) -> StoreSettings:
        """The root user's settings, through another door (a proxy that misbehaves, say)."""
        return StoreSettings.model_validate(
            {"s3_endpoint": endpoint, "s3_access_key": self.access_key, "s3_secret_key": self.secret_key}
        )

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to be told about this server."""
        return {"S3_ENDPOINT": self.endpoint, "S3_ACCESS_KEY": self.access_key, "S3_SECRET_KEY": self.secret_key}

    def start(self) -> None:
        console = free_port()
        log = (self.folder / "minio.log").open("ab")
        self.process = subprocess.Popen(
            [tool("minio"), "server", "--no-compat", "--quiet", str(self.folder / "data")],
            env=os.environ
            | {
                "MINIO_ADDRESS": f"127.0.0.1:{self.port}",
                "MINIO_CONSOLE_ADDRESS": f"127.0.0.1:{console}",
                "MINIO_ROOT_USER": self.access_key,
                "MINIO_ROOT_PASSWORD": self.secret_key,
                "MINIO_BROWSER": "off",
                "MINIO_UPDATE": "off",
                "HOME": str(self.folder),
            },
            stdout=log,
            stderr=log,
        )
        wait_for(self._healthy, "MinIO to be healthy", 60)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(20)
            self.process = None

    def _healthy(self) -> bool:
        with urllib.request.urlopen(f"{self.endpoint}/minio/health/ready", timeout=2) as answer:
            return bool(answer.status == 200)

    def client(self) -> minio.Minio:
        return minio.Minio(
            f"127.0.0.1:{self.port}",
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=False,
            region="us-east-1",
        )

    def clean(self) -> None:
        """Empty, versioned buckets. Before a test, not after it: a test that failed leaves what it saw to be looked at."""
        client = self.client()
        for bucket in ("models", "releases"):
            if not client.bucket_exists(bucket):
                client.make_bucket(bucket)
                client.set_bucket_versioning(bucket, VersioningConfig(ENABLED))
            for entry in client.list_objects(bucket, recursive=True, include_version=True):
                client.remove_object(bucket, str(entry.object_name), version_id=entry.version_id)

    def put(self, bucket: str, key: str, body: bytes) -> str:
        """Write an object and return its version's id."""
        import io

        return str(self.client().put_object(bucket, key, io.BytesIO(body), len(body)).version_id)

    def store(self, connections: int = 8) -> Store:
        return Store(self.settings, connections)


@contextlib.contextmanager
def running_minio(folder: Path) -> Iterator[MinioServer]:
    """A MinIO that lives as long as the block."""
    folder.mkdir(parents=True, exist_ok=True)
    server = MinioServer(folder, free_port())
    server.start()
    try:
        yield server
    finally:
        server.stop()
