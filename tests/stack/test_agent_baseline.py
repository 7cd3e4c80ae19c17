"""The slim archive that the agent hands out, and cold starts as the load test orders them: embedded archives on a stock TorchServe
and on the node, one more worker, a slower network, files read from the disk; and an embedded model that is held for requests."""

import io
import json
import os
import subprocess
import sys
import threading
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from seeding.samples import KNOWN

from serve.embedded import START_HEADER, embedded_handler
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
def big(minio: MinioServer, samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Release:
    """The small model and 100 MB beside it that are fetched and never read: enough to see a network's rate."""
    folder = tmp_path_factory.mktemp("big")
    for file in (samples / "falcon-tiny").iterdir():
        (folder / file.name).symlink_to(file)
    (folder / "more.bin").write_bytes(os.urandom(100 << 20))
    return publish(minio, "big", folder, promote=False)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A stock TorchServe, in a folder whose name is too long for a socket in it; what the agent must be told of it."""
    folder = tmp_path_factory.mktemp("baseline-" + 100 * "x")
    names = ("INFERENCE", "MANAGEMENT", "METRICS", "USAGE", "WORKER")
    ports = {f"BASELINE_{name}_PORT": str(free_port()) for name in names}
    store = str(folder / "store")
    env = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | ports
    env |= {"PYTHONPATH": str(ROOT), "STATE_DIR": str(folder), "BASELINE_STORE": store}
    with (folder / "baseline.log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "serve.baseline"], env=env, cwd=ROOT, stdout=log, stderr=log)
    urls = {name: f"http://127.0.0.1:{ports[f'BASELINE_{name}_PORT']}" for name in ("INFERENCE", "MANAGEMENT", "USAGE")}
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


def start(agent: AgentProcess, **order: Any) -> dict[str, Any]:
    answer = agent.call("POST", "/coldstart", {"model": "falcon-tiny", "prompt": PROMPT} | order, timeout=250)
    assert answer.status == 200, answer.raw
    found: dict[str, Any] = answer.json
    assert found["peak_memory_bytes"] > 50 << 20, "Java alone takes more"
    return found


def left_registered(agent: AgentProcess, baseline: dict[str, str]) -> list[str]:
    with urllib.request.urlopen(f"{baseline['BASELINE_MANAGEMENT_URL']}/models") as answer:
        listed = answer.read().decode()
    return agent.registered("falcon-tiny--coldstart") + [listed] * ("coldstart" in listed)


@pytest.mark.parametrize("on", ["baseline", "zygote"])
@pytest.mark.parametrize("variant", ["mar", "tgz", "no-archive"])
def test_an_embedded_archive_is_built_once_started_and_taken_away(
    agent: AgentProcess, release: Release, baseline: dict[str, str], variant: str, on: str
) -> None:
    archives = list(Path(baseline["BASELINE_STORE"]).glob(f"*--{variant}*"))
    found = start(agent, variant=variant, on=on)
    assert found["digest"] == release.digest
    assert (found["build_s"] is None) == bool(archives), "built for the first start, and not again"
    assert found["archive_bytes"] > 100_000, "the weights are not in it"
    assert 0 < found["ready_s"] < found["first_s"]
    assert found["bytes_from_store"] == 0
    assert found["forked"] is (on == "zygote")
    assert list(found["phases"]) == ["register", "start", "import", "load"]
    assert found["phases"]["load"] > 0 and sum(found["phases"].values()) < found["ready_s"] + 0.1
    # An interpreter of its own imports torch and transformers; a fork of the zygote has them.
    assert (found["phases"]["import"] < 0.2) is (on == "zygote"), found["phases"]
    # On disk lie the archive and, unless it is a folder, TorchServe's unpacked copy.
    copies = found["disk_bytes"] - found["archive_bytes"]
    assert (copies > release.content.size * 0.9) is (variant != "no-archive"), found
    assert left_registered(agent, baseline) == []


def test_what_the_baseline_says_it_takes_is_what_its_processes_take(
    agent: AgentProcess, release: Release, baseline: dict[str, str]
) -> None:
    """In another container nobody else could look; here the test reads the same processes itself."""
    assert agent.call("PUT", "/baseline/falcon-tiny", {}, timeout=250).status == 200
    try:
        with urllib.request.urlopen(f"{baseline['BASELINE_MANAGEMENT_URL']}/models") as answer:
            (name,) = [model["modelName"] for model in json.load(answer)["models"]]
        with urllib.request.urlopen(f"{baseline['BASELINE_MANAGEMENT_URL']}/models/{name}") as answer:
            (worker,) = json.load(answer)[0]["workers"]
        pid = worker["pid"]
        asked = f"{baseline['BASELINE_USAGE_URL']}/usage?workers={pid},{os.getpid()}&disk=1"
        with urllib.request.urlopen(asked) as answer:
            found = json.load(answer)
        assert list(found["workers"]) == [str(pid)], "nobody is told of processes that are not the baseline's"
        maps = Path(f"/proc/{pid}/smaps").read_text().splitlines()
        held = sum(int(line.split()[1]) for line in maps if line.startswith("Pss:")) * 1024
        assert found["workers"][str(pid)]["memory"] == pytest.approx(held, rel=0.1)
        assert found["server"] > 50 << 20, "Java alone"
        folder = Path(found["workers"][str(pid)]["folder"]).resolve()
        assert found["workers"][str(pid)]["disk"] >= release.content.size, "the weights lie in its folder"
        assert folder == Path(f"/proc/{pid}/cwd").resolve()
    finally:
        agent.call("DELETE", "/baseline/falcon-tiny")


def test_one_more_worker_takes_nothing_from_the_store(agent: AgentProcess, release: Release) -> None:
    ours = start(agent, variant="worker")
    assert ours["forked"] and ours["first_s"] is None and ours["disk_bytes"] == 0
    assert ours["bytes_from_store"] == 0
    assert ours["store_sent_bytes"] < release.content.size / 10, "by MinIO's own counter: manifests only"
    assert {"start", "fetch", "load"} <= ours["phases"].keys()
    stock = start(agent, variant="worker", on="baseline")
    assert not stock["forked"] and stock["ready_s"] > ours["ready_s"]
    # Its own start, asked from it among the two: from the scaling on, in the phases of any stock start.
    assert list(stock["phases"]) == ["start", "import", "load"]
    assert min(stock["phases"].values()) > 0 and sum(stock["phases"].values()) < stock["ready_s"] + 0.1
    assert agent.registered("falcon-tiny--coldstart") == []


def test_a_slower_network_carries_what_it_should_and_a_cut_one_is_gone_on_with(
    agent: AgentProcess, big: Release
) -> None:
    size = big.content.size
    free, slow, cut = (start(agent, model="big", link=link) for link in (None, "1gbit", "cut"))
    for found in (free, slow, cut):
        assert found["bytes_from_store"] == size, "what was verified, each byte once"
        assert found["store_sent_bytes"] >= size
    assert free["link_bytes_per_s"] is None
    assert slow["link_bytes_per_s"] < 1.05 * 125e6
    assert slow["phases"]["fetch"] > size / 125e6 * 0.95
    assert cut["cuts"] == 1 and cut["retries"] >= 1
    assert free["disk_bytes"] > size


def test_files_are_read_from_the_disk_when_asked(agent: AgentProcess, big: Release) -> None:
    assert start(agent, model="big", variant="no-archive", page_cache="dropped")["page_cache"] == "dropped"
    # The served model's files are mapped by its worker, so they stay: said, and not measured as if they had gone.
    answer = agent.call("POST", "/coldstart", {"model": "falcon-tiny", "cache": "warm", "page_cache": "dropped"})
    assert answer.status == 502 and "a process maps it" in answer.json["error"]["message"], answer.raw


@pytest.mark.parametrize(
    ("order", "field"),
    [
        ({"variant": "zip"}, "variant"),
        ({"on": "baseline"}, "on"),
        ({"variant": "mar", "link": "1gbit"}, "link"),
        ({"cache": "warm", "link": "cut"}, "link"),
        ({"link": "2gbit"}, "link"),
        ({"page_cache": "cold"}, "page_cache"),
        ({"prompt": 5}, "prompt"),
    ],
)
def test_an_order_that_cannot_be_is_refused_by_field(agent: AgentProcess, order: dict[str, Any], field: str) -> None:
    answer = agent.call("POST", "/coldstart", {"model": "falcon-tiny"} | order)
    assert (answer.status, answer.json["error"]["field"]) == (400, field)


def test_only_one_cold_start_at_a_time_and_what_it_does_is_told(agent: AgentProcess) -> None:
    answers: list[int] = []
    order = {"model": "falcon-tiny", "variant": "store"}  # not built yet: it takes a while

    def ask() -> None:
        answers.append(agent.call("POST", "/coldstart", order, timeout=250).status)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    told: list[dict[str, Any]] = []
    while any(thread.is_alive() for thread in threads):
        told.append(agent.call("GET", "/coldstart").json)
    assert sorted(answers) == [200, 409]
    assert {one.get("doing") for one in told} >= {"building the archive", "starting"}
    idle = agent.call("GET", "/coldstart").json
    assert not idle["busy"] and idle["releases"]["falcon-tiny"] == ["v1"], "what could be started"


def test_an_embedded_model_is_held_and_answers(agent: AgentProcess, release: Release) -> None:
    body = {"input": PROMPT, "parameters": {"max_new_tokens": 4, "do_sample": False}}
    assert agent.call("POST", "/baseline/falcon-tiny", body).json["error"]["type"] == "not_held"
    for _ in range(2):  # the second finds it there
        held = agent.call("PUT", "/baseline/falcon-tiny", {}, timeout=250)
        assert (held.status, held.json["digest"]) == (200, release.digest), held.raw
    answer = agent.call("POST", "/baseline/falcon-tiny", body)
    assert answer.status == 200, answer.raw
    assert answer.json == agent.predict("falcon-tiny", PROMPT, max_new_tokens=4, do_sample=False).json
    assert answer.headers["X-Weightless-Release"] == "v1"
    assert agent.call("DELETE", "/baseline/falcon-tiny").status == 200
    assert agent.call("POST", "/baseline/falcon-tiny", body).status == 404


def test_the_packed_handler_names_the_header_as_we_do() -> None:
    assert embedded_handler.START_HEADER == START_HEADER


def test_the_slim_archive_is_small_self_contained_and_pinned(agent: AgentProcess, release: Release) -> None:
    answer = agent.call("GET", "/mar/falcon-tiny")
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert len(answer.raw) < 150_000
    with zipfile.ZipFile(io.BytesIO(answer.raw)) as archive:
        names = set(archive.namelist())
        config = yaml.safe_load(archive.read("model-config.yaml"))["weightless"]
    assert {"minio_handler.py", "tasks/__init__.py", "weightless/store.py", "MAR-INF/MANIFEST.json"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".safetensors")]
    assert (config["release"], config["digest"], config["manifest_version"]) == (
        "v1",
        release.digest,
        release.manifest_version,
    )
    assert "ledger_dir" not in config
    follows = agent.call("GET", "/mar/falcon-tiny?release=serving")
    with zipfile.ZipFile(io.BytesIO(follows.raw)) as archive:
        config = yaml.safe_load(archive.read("model-config.yaml"))["weightless"]
    assert config["release"] == "serving"
    assert "digest" not in config
    assert agent.call("GET", "/mar/falcon-tiny?release=v99").status == 404
