"""An unchanged TorchServe, started by its own command, with ports, folders and sockets of its own."""

import contextlib
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.services import free_port, wait_for


@dataclass(frozen=True)
class StockTorchServe:
    """`store`: its model store; `log`: everything that it and its workers print."""

    inference: str
    management: str
    store: Path
    log: Path

    def register(self, archive: str, **options: Any) -> tuple[int, str]:
        """POST /models and wait for the workers: status and text."""
        query = urllib.parse.urlencode({"url": archive, "synchronous": "true", "initial_workers": 1} | options)
        return self.call(f"{self.management}/models?{query}", method="POST")

    def unregister(self, model: str, version: str) -> tuple[int, str]:
        return self.call(f"{self.management}/models/{model}/{version}", method="DELETE")

    def predict(self, model: str, body: bytes, content_type: str = "application/json") -> tuple[int, str]:
        return self.call(f"{self.inference}/predictions/{model}", body, content_type)

    @staticmethod
    def call(url: str, body: bytes | None = None, content_type: str = "", method: str | None = None) -> tuple[int, str]:
        headers = {"Content-Type": content_type} if content_type else {}
        request = urllib.request.Request(url, data=body, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=200) as answer:
                return int(answer.status), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


@contextlib.contextmanager
def running_torchserve(folder: Path, environment: Mapping[str, str]) -> Iterator[StockTorchServe]:
    """A TorchServe that lives as long as the block. `environment` is added to ours, for it and its workers."""
    store, log = folder / "store", folder / "torchserve.log"
    store.mkdir(parents=True)
    ports = [free_port() for _ in range(4)]
    names = ("inference", "management", "metrics")
    lines = [f"{name}_address=http://127.0.0.1:{port}" for name, port in zip(names, ports, strict=False)]
    lines += [f"initial_worker_port={ports[3]}", "install_py_dep_per_model=false", "number_of_netty_threads=4"]
    # bound after the first ping is answered, and 7070 and 7071 by default: of two servers at once the second would end
    lines += ["grpc_inference_port=0", "grpc_management_port=0"]
    (folder / "config.properties").write_text("\n".join(lines) + "\n")
    # short: the workers' sockets lie in it, and a socket's path has at most 107 bytes
    with tempfile.TemporaryDirectory(prefix="ts-") as temp, log.open("wb") as output:
        command = [str(Path(sys.executable).with_name("torchserve")), "--start", "--foreground", "--ncs"]
        command += ["--disable-token-auth", "--enable-model-api", "--model-store", str(store)]
        command += ["--ts-config", str(folder / "config.properties")]
        paths = {
            "TEMP": temp,
            "TMPDIR": temp,
            "LOG_LOCATION": str(folder / "logs"),
            "METRICS_LOCATION": str(folder / "logs"),
        }
        environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        process = subprocess.Popen(
            command, env=environ | paths | dict(environment), stdout=output, stderr=output, cwd=folder
        )
        serve = StockTorchServe(f"http://127.0.0.1:{ports[0]}", f"http://127.0.0.1:{ports[1]}", store, log)
        try:
            wait_for(lambda: _healthy(serve, process), "TorchServe to be healthy", 120)
            yield serve
        finally:
            _stop(process)


def _healthy(serve: StockTorchServe, process: subprocess.Popen[bytes]) -> bool:
    if process.poll() is not None:
        raise RuntimeError(f"TorchServe ended with {process.returncode}: {serve.log.read_text()[-2000:]}")
    return serve.call(f"{serve.inference}/ping")[0] == 200


def _stop(process: subprocess.Popen[bytes]) -> None:
    """The command's child is the server, whose children are the workers: all of them, none else."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    for child in family[:1]:
        child.terminate()
    _, alive = psutil.wait_procs(family, timeout=20)
    for child in alive:
        child.kill()
    process.wait(20)
