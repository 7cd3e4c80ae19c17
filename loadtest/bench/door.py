"""What the front door adds to TorchServe: an echo handler behind both, and one client that asks either, taking turns.

Its stack is one of its own, because a node has one handler for all its models. Latency is measured with one client and no
batches, requests a second with 32 clients and batches of 16.
"""

import json
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from loadtest.bench.experiment import Bench, BenchFailed
from loadtest.bench.node import Node, running_node
from loadtest.bench.server import ROOT

MODEL = "falcon-tiny"
HANDLER = Path(__file__).with_name("echo_handler.py")
CLIENTS, BATCH = 32, 16
ONE, MANY = 1500, 10_000  # requests of a sample: 1 to 4 s each
DOOR, DIRECT = "door", "TorchServe alone"


def measure(bench: Bench) -> None:
    """Samples of p50 with one client, and of requests a second with 32."""
    folder = bench.scratch / "door"
    handler, models = folder / "handler", folder / "models"
    handler.mkdir(parents=True)
    models.mkdir()
    shutil.copyfile(HANDLER, handler / "minio_handler.py")
    _configure(models, 1)
    env = {"HANDLER_DIR": str(handler), "MODELS_CONFIG_DIR": str(models), "SERVE_MODELS": MODEL}
    bench.fact(
        "door", f"echo handler, one worker; {CLIENTS} clients and batches of up to {BATCH} for requests/s, else one"
    )
    with running_node(folder / "stack", **env) as node:
        for batch, clients, requests in ((1, 1, ONE), (BATCH, CLIENTS, MANY)):
            _configure(models, batch)
            version = _wait_batch(node, batch)
            urls = {
                DOOR: ("AGENT_PORT", f"/predictions/{MODEL}"),
                DIRECT: ("TORCHSERVE_INFERENCE_PORT", f"/predictions/{MODEL}/{version}"),
            }
            for url in urls.values():
                _ask(node, *url, clients, max(1, requests // 5))  # Java compiles what runs often
            for _, arm in bench.rounds(list(urls)):
                number = max(clients, int(requests * bench.scale))
                found = _ask(node, *urls[arm], clients, number)
                if clients == 1:
                    bench.record(f"{arm}, 1 client", answer_p50_ms=found["p50"] * 1e3)
                else:
                    bench.record(f"{arm}, {clients} clients", rate_requests_s=number / found["seconds"])
    shutil.rmtree(folder)


def _configure(models: Path, batch: int) -> None:
    """The model's node settings, which the agent reads again when they change."""
    node = {"batching": "static", "batch_size": batch, "max_batch_delay_ms": 1}
    partial = models / ".partial"
    partial.write_text(yaml.safe_dump({"node": node}))
    partial.replace(models / f"{MODEL}.yaml")


def _wait_batch(node: Node, batch: int) -> str:
    """The version that TorchServe has, once it is the only one and takes batches of that size."""
    url = f"http://127.0.0.1:{node.env['TORCHSERVE_MANAGEMENT_PORT']}/models/{MODEL}/all"
    deadline = time.monotonic() + 120
    while True:
        with urllib.request.urlopen(url, timeout=30) as answer:  # our own address
            found: list[dict[str, Any]] = json.loads(answer.read())
        if len(found) == 1 and found[0]["batchSize"] == batch:
            node.wait_serving(MODEL)
            return str(found[0]["modelVersion"])
        if time.monotonic() > deadline:
            raise BenchFailed(f"{MODEL}: required one version with batches of {batch}, found {json.dumps(found)[:600]}")
        time.sleep(0.1)


def _ask(node: Node, port: str, path: str, clients: int, requests: int) -> dict[str, float]:
    command = [sys.executable, "-m", "loadtest.bench.echo_client", "127.0.0.1", node.env[port], path]
    done = subprocess.run(
        [*command, str(clients), str(requests)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchFailed(f"{path}: the client ended with status {done.returncode}:\n{done.stderr[-1500:]}")
    found: dict[str, float] = json.loads(done.stdout)
    return found
