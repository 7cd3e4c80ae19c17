"""Experiment `growth`: a cold start's seconds for each GB of weights, between 1, 4 and 14 GB, against the bare transfer.

Random weights in Falcon's shape, one size after the other, since three do not fit beside each other: made, mirrored into the
bucket, released from there, started cold in turns with the copiers, and removed. The largest is more than most machines keep in
memory, so that the disk is in it, for both alike.
"""

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from seeding.samples.falcon_random import SHAPES, Shape, make_falcon_random

from loadtest.bench.experiment import Bench, Experiment, Ratio, Samples
from loadtest.bench.measured import PROMPT, require_disk, scaled
from loadtest.bench.node import Node
from loadtest.bench.server import tool
from loadtest.bench.transfer import COPIERS, copiers, settle, stack_server

GB = 1e9
NAMES = ("falcon-1g", "falcon-4g", "falcon-7b-shape")
_LARGEST = 14 * GB
_LONG = 3


def run(bench: Bench) -> None:
    """The whole experiment.

    Raises:
        NotEnoughDisk: with what is required.
        BenchFailed: a start failed; the agent's words.
    """
    require_disk(bench.scratch, int(2.1 * _LARGEST * min(1.0, bench.scale)) + (1 << 30))
    bench.fact("disk", "twice the size of the largest model")
    for name in NAMES:
        _one(bench, name)


def _one(bench: Bench, name: str) -> None:
    node, model = bench.node, f"growth-{name}"
    with tempfile.TemporaryDirectory(dir=bench.scratch, prefix="growth-") as temp:
        bench.tell(f"  making {name} and publishing it")
        size = _publish(bench, model, SHAPES[name], Path(temp))
        transfers = copiers(node, model, "v1", bench.scratch)
        actions: dict[str, Callable[[], float]] = {"slim cold": lambda: _start(node, model)}
        actions |= {f"transfer {copier}": copy for copier, copy in transfers.items()}
        for _, arm in bench.rounds(list(actions), min(bench.count, _LONG)):
            settle()
            bench.record(f"{arm}, {name}", seconds_s=actions[arm](), size_gb=size / GB)
    _remove(node, model, bench.scratch)


def _publish(bench: Bench, model: str, shape: Shape, folder: Path) -> int:
    """Make it, mirror it, remove the folder: only the bucket has it then; its bytes."""
    make_falcon_random(folder, scaled(shape, bench.scale))
    _mc(bench.node, bench.scratch, "mirror", str(folder), f"bench/models/{model}")
    for path in folder.iterdir():
        path.unlink()
    said = json.loads(bench.node.make("seed", f"MODEL={model}", "FROM=bucket", "PROMOTE=no", "JSON=1"))
    return int(said["bytes"])


def _start(node: Node, model: str) -> float:
    order = {"model": model, "release": "v1", "variant": "slim", "cache": "cold", "prompt": PROMPT}
    return float(node.ask("POST", "/coldstart", order)["ready_s"])


def _remove(node: Node, model: str, scratch: Path) -> None:
    for place in (f"bench/models/{model}", f"bench/releases/{model}"):
        _mc(node, scratch, "rm", "--recursive", "--force", "--versions", place)


def _mc(node: Node, scratch: Path, *words: str) -> None:
    """mc with the stack's store as `bench`."""
    command = [tool("mc"), "--config-dir", str(scratch / "mc"), "--quiet", *words]
    environment = os.environ | stack_server(node, scratch).environment
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


# ---- seconds for each GB


def _points(samples: Samples, arm: str) -> list[tuple[float, float]]:
    """Size in GB and median seconds, from the smallest model to the largest."""
    arms = [f"{arm}, {name}" for name in NAMES]
    return [(samples.median(one, "size_gb"), samples.median(one, "seconds_s")) for one in arms]


def _slope(points: list[tuple[float, float]]) -> float:
    """Seconds for each GB more, by least squares."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def per_gb(samples: Samples) -> float:
    return _slope(_points(samples, "slim cold"))


def per_gb_vs_transfer(samples: Samples) -> float:
    """Over the fastest copier at each size."""
    every = [_points(samples, f"transfer {name}") for name in COPIERS]
    fastest = [(at[0][0], min(seconds for _, seconds in at)) for at in zip(*every, strict=True)]
    return per_gb(samples) / _slope(fastest)


def linearity(samples: Samples) -> float:
    """Seconds for each GB between the two largest, over those between the two smallest: 1 is a straight line."""
    points = _points(samples, "slim cold")
    return _slope(points[1:]) / _slope(points[:2])


EXPERIMENT = Experiment(
    "growth",
    "cold starts of 1, 4 and 14 GB of weights against their bare transfer",
    run,
    (
        Ratio("cold_ready_growth", "seconds of a cold start for each GB more, over those of the bare transfer",
              per_gb_vs_transfer, at_most=1.1),
        Ratio("cold_ready_growth_s_per_gb", "seconds of a cold start for each GB more", per_gb),
        Ratio("cold_ready_growth_linear", "seconds for each GB from 4 to 14 GB, over those from 1 to 4", linearity),
    ),
    long=True,
)  # fmt: skip
