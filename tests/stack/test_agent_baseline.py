"""Cold starts of embedded archives on a stock TorchServe, as the load test orders them from the agent."""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from seeding.samples import KNOWN

from tests.agent_process import AgentProcess, running_agent
from tests.releases import publish
from tests.services import ROOT, MinioServer, free_port, running_minio, wait_for
from weightless.release import Release

PROMPT = KNOWN["falcon-tiny"].prompt


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    with running_minio(tmp_path_factory.mktemp("baseline-minio")) as server:
        server.clean()
        yield server


@pytest.fixture(scope="module")
def release(minio: MinioServer, samples: Path) -> Release:
    return publish(minio, "falcon-tiny", samples / "falcon-tiny")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A stock TorchServe; what the agent must be told of it."""
    folder = tmp_path_factory.mktemp("baseline")
    ports = {f"BASELINE_{name}_PORT": str(free_port()) for name in ("INFERENCE", "MANAGEMENT", "METRICS", "WORKER")}
    store = str(folder / "store")
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | ports
    env |= {"PYTHONPATH": str(ROOT), "STATE_DIR": str(folder), "BASELINE_STORE": store}
    with (folder / "baseline.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "serve.baseline"], env=env, cwd=ROOT, stdout=log, stderr=log)
    urls = {name: f"http://127.0.0.1:{ports[f'BASELINE_{name}_PORT']}" for name in ("INFERENCE", "MANAGEMENT")}
    try:
        wait_for(lambda: urllib.request.urlopen(f"{urls['INFERENCE']}/ping").status == 200, "the baseline", 60)
        yield {f"BASELINE_{name}_URL": url for name, url in urls.items()} | {"BASELINE_STORE": store}
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def agent(
    minio: MinioServer, release: Release, baseline: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentProcess]:
    with running_agent(tmp_path_factory.mktemp("agent"), minio, **baseline) as process:
        process.wait_serving("falcon-tiny", "v1")
        yield process


@pytest.mark.parametrize("variant", ["mar", "tgz", "no-archive"])
def test_an_embedded_archive_is_built_once_started_and_taken_away(
    agent: AgentProcess, release: Release, baseline: dict[str, str], variant: str
) -> None:
    order = {"model": "falcon-tiny", "variant": variant, "prompt": PROMPT}
    answer = agent.call("POST", "/coldstart", order, timeout=250)
    assert answer.status == 200, answer.raw
    first = answer.json
    assert first["digest"] == release.digest
    assert first["build_s"] > 0
    assert first["archive_bytes"] > 100_000, "the weights are not in it"
    assert 0 < first["ready_s"] < first["first_s"]
    assert first["bytes_from_store"] == 0
    if variant == "no-archive":
        assert agent.call("POST", "/coldstart", order, timeout=250).json["build_s"] is None
    with urllib.request.urlopen(f"{baseline['BASELINE_MANAGEMENT_URL']}/models") as left:
        assert b"coldstart" not in left.read()


def test_only_one_cold_start_at_a_time(agent: AgentProcess) -> None:
    import threading

    answers: list[int] = []
    order = {"model": "falcon-tiny", "variant": "no-archive"}
    threads = [
        threading.Thread(target=lambda: answers.append(agent.call("POST", "/coldstart", order, timeout=250).status))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200, 409]
