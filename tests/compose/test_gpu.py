"""The one switch to a GPU, checked without one: what the container asks the engine for, and what happens where there is none."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.stack import Stack, docker
from tests.services import ROOT, wait_for


def runtimes() -> set[str]:
    return set(json.loads(docker("info", "--format", "{{json .Runtimes}}")))


@pytest.fixture
def nvidia_runtime(engine: None) -> Iterator[None]:
    """A runtime named nvidia: the machine's real one, or on an engine of engine.sh a stand-in that is runc under that name."""
    if "nvidia" in runtimes():
        yield
        return
    said = subprocess.run(
        [ROOT / "tests/compose/engine.sh", "folder"], check=True, capture_output=True, text=True
    ).stdout
    folder = Path(said.strip())
    if docker("info", "--format", "{{.DockerRootDir}}").strip() != str(folder / "data"):
        pytest.skip("this machine's engine is its owner's, and has no nvidia runtime")
    settings = folder / "daemon.json"
    before = settings.read_text()

    def load(text: str) -> None:
        settings.write_text(text)
        os.kill(int((folder / "dockerd.pid").read_text()), signal.SIGHUP)

    runc = docker("info", "--format", '{{(index .Runtimes "runc").Path}}').strip()
    load(json.dumps(json.loads(before) | {"runtimes": {"nvidia": {"path": runc}}}))
    try:
        wait_for(lambda: "nvidia" in runtimes(), "the engine to know the runtime", 20)
        yield
    finally:
        load(json.dumps(json.loads(before) | {"runtimes": {}}))  # a list that is absent is not read anew
        wait_for(lambda: "nvidia" not in runtimes(), "the engine to forget the runtime", 20)


@pytest.mark.parametrize("service", ["torchserve", "baseline"])
def test_one_switch_makes_the_container_an_nvidia_one(stack: Stack, nvidia_runtime: None, service: str) -> None:
    """The two variables are what the runtime looks at: on a Debian base it injects nothing without them."""
    made = stack.compose(
        "--profile", "baseline", "run", "--detach", "--no-deps", "--entrypoint", "sleep", service, "60",
        settings={"TORCHSERVE_RUNTIME": "nvidia", "NVIDIA_VISIBLE_DEVICES": "0"},
    )  # fmt: skip
    container = json.loads(docker("inspect", made.stdout.strip().splitlines()[-1]))[0]
    docker("rm", "--force", container["Id"])
    assert container["HostConfig"]["Runtime"] == "nvidia"
    assert "NVIDIA_VISIBLE_DEVICES=0" in container["Config"]["Env"]
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in container["Config"]["Env"]


def test_without_the_switch_nothing_asks_for_a_gpu(stack: Stack) -> None:
    assert stack.inspect("torchserve")["HostConfig"]["Runtime"] == "runc"
    assert not stack.inspect("torchserve")["HostConfig"]["DeviceRequests"]


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has a GPU")
def test_a_required_gpu_that_is_not_there_is_said_and_nothing_starts(stack: Stack) -> None:
    refused = stack.compose(
        "run", "--rm", "--no-deps", "-T", "-e", "REQUIRE_GPU=1", "torchserve", check=False, timeout=120
    )
    assert refused.returncode == 3
    assert "REQUIRE_GPU=1: required a usable NVIDIA GPU, found none: no NVIDIA driver was found" in refused.stderr


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="this machine has a GPU")
def test_up_fails_where_a_required_gpu_is_not_there(stack: Stack) -> None:
    try:
        refused = stack.compose(
            "up", "--detach", "--wait", "torchserve", settings={"REQUIRE_GPU": "1"}, check=False, timeout=300
        )
        assert refused.returncode != 0
        assert stack.compose("logs", "torchserve").stdout.count("REQUIRE_GPU=1: required a usable NVIDIA GPU")
    finally:
        stack.up()
