"""The original one-request handler, on the stock TorchServe beside the stack."""

import contextlib
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import yaml

from loadtest.bench.experiment import BenchFailed
from loadtest.bench.node import Node

HANDLER = Path(__file__).with_name("original_handler.py")
START_S = 600
RESPONSE_S = 1200  # in TorchServe's reckoning the time in its queue counts as well


@contextlib.contextmanager
def served(node: Node, model: str, dtype: str) -> Iterator[str]:
    """`model` in this dtype from one worker, as long as the block; the URL that answers. The stock TorchServe must run.

    Raises:
        BenchFailed: in TorchServe's own words.
    """
    name = f"original-{model}-{dtype}"
    _archive(node, name, model, dtype)
    query = urllib.parse.urlencode({"url": f"{name}.mar", "initial_workers": 1, "synchronous": "true"})
    _manage(node, "POST", f"/models?{query}")
    try:
        yield f"{node.baseline}/predictions/{name}"
    finally:
        _manage(node, "DELETE", f"/models/{name}")


def _manage(node: Node, method: str, path: str) -> None:
    url = f"http://127.0.0.1:{node.env['BASELINE_MANAGEMENT_PORT']}{path}"
    request = urllib.request.Request(url, method=method)  # our own address
    try:
        with urllib.request.urlopen(request, timeout=START_S):  # noqa: S310
            return
    except urllib.error.HTTPError as error:
        raise BenchFailed(
            f"{method} {path}: the stock TorchServe answered {error.code}: {error.read()[:500]!r}"
        ) from None


def _archive(node: Node, name: str, model: str, dtype: str) -> None:
    config = {
        "minWorkers": 1,
        "maxWorkers": 1,
        "batchSize": 1,
        "startupTimeout": START_S,
        "responseTimeout": RESPONSE_S,
        "original": {
            "endpoint": f"127.0.0.1:{node.env['MINIO_PORT']}",
            "credentials_dir": str(node.run / "secrets" / "node"),
            "bucket": "models",
            "model": model,
            "dtype": dtype,
        },
    }
    store = node.run / "baseline" / "store"
    with tempfile.TemporaryDirectory(prefix="original-") as temp:
        told = Path(temp) / "model-config.yaml"
        told.write_text(yaml.safe_dump(config))
        command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", name, "--version", "1.0"]
        command += ["--handler", str(HANDLER), "--config-file", str(told), "--export-path", str(store), "--force"]
        env = os.environ | {"TMPDIR": temp}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"{name}: torch-model-archiver failed: {done.stderr[-500:]}")
