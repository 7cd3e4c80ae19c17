"""The original one-request handler, on the stock TorchServe beside the stack."""

import json
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import yaml

from loadtest.bench.experiment import BenchFailed
from loadtest.bench.node import Node

HANDLER = Path(__file__).with_name("original_handler.py")
START_S = 600
RESPONSE_S = 1200  # in TorchServe's reckoning the time in its queue counts as well


def register(node: Node, model: str, dtype: str) -> str:
    """Serve `model` in this dtype from one worker; the URL that answers. The stock TorchServe must run.

    Raises:
        BenchFailed: in TorchServe's own words.
    """
    name = f"original-{model}-{dtype}"
    _archive(node, name, model, dtype)
    query = urllib.parse.urlencode({"url": f"{name}.mar", "initial_workers": 1, "synchronous": "true"})
    management = f"http://127.0.0.1:{node.env['BASELINE_MANAGEMENT_PORT']}/models?{query}"
    request = urllib.request.Request(management, method="POST")  # our own address
    try:
        with urllib.request.urlopen(request, timeout=START_S):  # noqa: S310
            return f"{node.baseline}/predictions/{name}"
    except urllib.error.HTTPError as error:
        raise BenchFailed(f"{name}: required it registered, found {error.code}: {error.read()[:500]!r}") from None


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
        command += ["--handler", str(HANDLER), "--config-file", str(told), "--export-path", str(store)]
        env = os.environ | {"TMPDIR": temp}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"{name}: torch-model-archiver failed: {json.dumps(done.stderr[-500:])}")
