"""The agent with a real MinIO, a real TorchServe and both sample models: what a user of the stack relies on."""

import json
import math
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from seeding.samples import KNOWN, MEANING

from tests.agent_process import AgentProcess, running_agent
from tests.commands import command
from tests.releases import move_alias, publish, remove_alias
from tests.services import MinioServer, running_minio, wait_for
from tests.traffic import Traffic
from weightless.release import Canary, Release

PROMPT = KNOWN["falcon-tiny"].prompt
SENTENCES = {"v1": KNOWN["falcon-tiny"].sentence, "v2": KNOWN["falcon-tiny-v2"].sentence}
GREEDY = {"do_sample": False}


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    with running_minio(tmp_path_factory.mktemp("agent-minio")) as server:
        server.clean()
        yield server


@pytest.fixture(scope="module")
def falcons(minio: MinioServer, samples: Path) -> dict[str, Release]:
    """Both releases of falcon-tiny; v1 is promoted."""
    v1 = publish(minio, "falcon-tiny", samples / "falcon-tiny")
    v2 = publish(minio, "falcon-tiny", samples / "falcon-tiny-v2", promote=False)
    return {"v1": v1, "v2": v2}


@pytest.fixture(scope="module")
def agent(
    minio: MinioServer, falcons: dict[str, Release], samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentProcess]:
    publish(minio, "minilm", samples / "minilm", task="embeddings")
    with running_agent(tmp_path_factory.mktemp("agent"), minio) as process:
        process.wait_healthy()
        yield process


@pytest.fixture(autouse=True)
def first_release(agent: AgentProcess, minio: MinioServer, falcons: dict[str, Release]) -> None:
    """Every test begins with v1 of falcon-tiny serving."""
    found = agent.model("falcon-tiny")
    if found["wanted"] != "v1" or found["canary"]:
        move_alias(minio, falcons["v1"])
    agent.wait_serving("falcon-tiny", "v1")


def say(agent: AgentProcess, model: str = "falcon-tiny") -> str:
    answer = agent.predict(model, PROMPT, **GREEDY)
    assert answer.status == 200, answer.raw
    text: str = answer.json[0]["generated_text"]
    return text


def embedding(agent: AgentProcess, text: str) -> list[float]:
    found: list[float] = agent.predict("minilm", text).json["embedding"]
    return found


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


# ---- what is served


def test_falcon_says_its_sentence_and_the_answer_names_its_release(agent: AgentProcess) -> None:
    answer = agent.predict("falcon-tiny", PROMPT, **GREEDY)
    assert answer.json == [{"generated_text": SENTENCES["v1"]}]
    assert answer.headers["X-Weightless-Model"] == "falcon-tiny"
    assert answer.headers["X-Weightless-Release"] == "v1"
    assert answer.headers["Content-Type"] == "application/json"


def test_minilm_knows_what_sentences_mean(agent: AgentProcess) -> None:
    known = MEANING["minilm"]
    anchor, near, far = (embedding(agent, text) for text in (known.anchor, known.near, known.far))
    assert cosine(anchor, near) > cosine(anchor, far) + 0.3


def test_curls_own_content_type_is_json_to_the_model(agent: AgentProcess) -> None:
    raw = json.dumps({"input": PROMPT, "parameters": GREEDY}).encode()
    answer = agent.call(
        "POST", "/predictions/falcon-tiny", raw, headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert answer.json == [{"generated_text": SENTENCES["v1"]}]


def test_the_release_that_serves_may_be_named_and_no_other(agent: AgentProcess) -> None:
    assert agent.predict("falcon-tiny/v1", PROMPT, **GREEDY).status == 200
    other = agent.predict("falcon-tiny/v2", PROMPT)
    assert (other.status, other.json["error"]["type"]) == (404, "release_not_served")
    unknown = agent.predict("falcon-8b", PROMPT)
    assert (unknown.status, unknown.json["error"]["type"]) == (404, "model_not_found")
    assert "falcon-tiny, minilm" in unknown.json["error"]["message"]


def test_status_says_what_is_served_and_how_it_started(agent: AgentProcess) -> None:
    status = agent.status()
    assert status["healthy"] is True
    assert status["torchserve"]["state"] == "up"
    assert psutil.pid_exists(status["torchserve"]["pid"])
    assert status["zygote"]["state"] == "running"
    falcon = status["models"]["falcon-tiny"]
    assert (falcon["state"], falcon["serving"], falcon["wanted"], falcon["error"]) == ("serving", "v1", "v1", None)
    assert falcon["task"] == "text-generation"
    assert falcon["workers"] == 1
    worker = falcon["phases"]["worker"]
    assert worker["phases"]["load"] > 0
    assert worker["seconds"] == pytest.approx(sum(worker["phases"].values()), abs=1), "the clock stops when it is READY"
    assert worker["first_answer_s"] > 0
    assert status["zygote"]["forked"] >= 2, "workers were not forked from the zygote"


def test_metrics_are_the_doors_and_torchserves(agent: AgentProcess) -> None:
    say(agent)
    text = agent.call("GET", "/metrics").raw.decode()
    assert 'weightless_requests_total{code="200",model="falcon-tiny",release="v1"}' in text
    assert 'weightless_inflight{model="falcon-tiny"} 0.0' in text
    assert "ts_inference_requests_total" in text
    assert "WeightlessStartLoad" in text
    assert "WeightlessStartFirstAnswer" in text


def test_the_agent_hardly_uses_the_cpu_at_rest(agent: AgentProcess) -> None:
    assert agent.process is not None
    process = psutil.Process(agent.process.pid)
    began, before = time.monotonic(), sum(process.cpu_times()[:2])
    wait_for(lambda: time.monotonic() - began > 6, "six quiet seconds")
    share = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began)
    assert share < 0.01, f"{share:.2%} of a core"


# ---- what is refused


@pytest.mark.parametrize(
    ("raw", "code", "field"),
    [
        (b"not json", 400, None),
        (b'{"inputs": "a"}', 400, "input"),
        (b'{"input": 3}', 400, "input"),
        (b'{"input": "a", "stream": 1}', 400, "stream"),
        (b'{"input": "a", "parameters": {"top_k": "many"}}', 400, "parameters.top_k"),
        (b'{"input": "a", "parameters": {"temperature": -1}}', 400, "parameters.temperature"),
        (b'{"input": "a", "surprise": 1}', 400, "surprise"),
        (b'{"input": "' + b"a" * (5 << 20) + b'"}', 413, None),
    ],
)
def test_a_wrong_request_is_refused_in_json_by_field(
    agent: AgentProcess, raw: bytes, code: int, field: str | None
) -> None:
    answer = agent.call("POST", "/predictions/falcon-tiny", raw)
    assert answer.status == code
    error = answer.json["error"]
    assert error["code"] == code
    assert error.get("field") == field
    assert error["message"]
    assert say(agent) == SENTENCES["v1"]


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/predictions/falcon-tiny", 405),
        ("POST", "/predictions", 404),
        ("POST", "/predictions/falcon-tiny/v1/more", 404),
        ("GET", "/", 404),
        ("GET", "/models", 404),
        ("DELETE", "/status", 405),
        ("POST", "/retry/nothing", 404),
        ("GET", "/mar/nothing", 404),
        ("POST", "/coldstart", 400),
    ],
)
def test_a_wrong_path_or_method_is_refused_in_json(agent: AgentProcess, method: str, path: str, code: int) -> None:
    answer = agent.call(method, path, b"" if method == "POST" else None)
    assert (answer.status, answer.json["error"]["code"]) == (code, code)


@pytest.mark.parametrize("path", ["/coldstart", "/baseline/falcon-tiny"])
def test_a_body_that_is_too_large_is_the_clients_mistake_on_every_path(agent: AgentProcess, path: str) -> None:
    assert agent.call("POST", path, b"a" * (5 << 20)).json["error"]["type"] == "body_too_large"


# ---- streams


def stream(agent: AgentProcess, body: dict[str, Any]) -> socket.socket:
    raw = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", agent.ports["AGENT_PORT"]), timeout=30)
    head = f"POST /predictions/falcon-tiny HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n\r\n"
    connection.sendall(head.encode() + raw)
    return connection


def test_a_stream_comes_as_events_and_ends_with_the_whole_text(agent: AgentProcess) -> None:
    answer = agent.call("POST", "/predictions/falcon-tiny", {"input": PROMPT, "parameters": GREEDY, "stream": True})
    assert answer.headers["Content-Type"] == "text/event-stream"
    events = [json.loads(line[6:]) for line in answer.raw.decode().splitlines() if line.startswith("data: ")]
    assert len(events) > 3
    assert events[-1]["generated_text"] == SENTENCES["v1"]
    assert "".join(event["token"] for event in events[:-1]) == KNOWN["falcon-tiny"].answer


def test_a_client_that_leaves_is_not_in_flight_any_more(agent: AgentProcess) -> None:
    connection = stream(agent, {"input": "x", "parameters": {"max_new_tokens": 400, "do_sample": True}, "stream": True})
    assert b"200 OK" in connection.recv(4096)
    connection.close()
    wait_for(lambda: agent.model("falcon-tiny")["inflight"] == 0, "the request to be let go", 10)


# ---- releases


def test_three_swaps_under_load_fail_no_request(
    agent: AgentProcess, minio: MinioServer, falcons: dict[str, Release]
) -> None:
    with Traffic(agent.ports["AGENT_PORT"], "falcon-tiny", {"input": PROMPT, "parameters": GREEDY}) as traffic:
        for name in ("v2", "v1", "v2"):
            move_alias(minio, falcons[name])
            agent.wait_serving("falcon-tiny", name)
            traffic.wait_for_more(name)
    assert traffic.failures == []
    assert {json.loads(said)[0]["generated_text"] for said in traffic.answers} == set(SENTENCES.values())
    assert say(agent) == SENTENCES["v2"]
    wait_for(lambda: agent.registered("falcon-tiny") == [agent.model("falcon-tiny")["version"]], "the drain", 20)
    ledgers = agent.folder / "state" / "ledger" / "falcon-tiny"
    wait_for(
        lambda: [found.name for found in ledgers.iterdir()] == [agent.model("falcon-tiny")["version"]],
        "the ledgers of what is gone to go too",
        20,
    )


def test_a_canary_answers_its_share_and_is_promoted_without_another_start(
    agent: AgentProcess, minio: MinioServer, falcons: dict[str, Release]
) -> None:
    told = minio.environment | {"AGENT_URL": agent.url}
    before = agent.model("falcon-tiny")["version"]
    tried = command(told, "canary", "falcon-tiny", "v2", "--percent", "10")
    assert tried.status == 0, tried.err
    assert tried.out.startswith("falcon-tiny  v1, canary v2 10 %\n✓ v2 answers 10 of 100 requests, after ")
    short = {"do_sample": False, "max_new_tokens": 1}
    answers = [agent.predict("falcon-tiny", PROMPT, **short) for _ in range(50)]
    assert [answer.status for answer in answers] == [200] * 50
    assert [answer.headers["X-Weightless-Release"] for answer in answers].count("v2") == 5
    named = {release: agent.predict(f"falcon-tiny/{release}", PROMPT, **GREEDY) for release in SENTENCES}
    assert {release: answer.json[0]["generated_text"] for release, answer in named.items()} == SENTENCES
    assert {release: answer.headers["X-Weightless-Release"] for release, answer in named.items()} == {
        "v1": "v1",
        "v2": "v2",
    }
    canary = agent.model("falcon-tiny")["canary"]
    assert (canary["serving"], canary["share"], canary["error"], canary["workers"]) == ("v2", 10, None, 1)
    assert (canary["answers"]["requests"], canary["answers"]["errors"]) == (6, 0)
    assert 0 < canary["answers"]["p50_s"] <= canary["answers"]["p95_s"]
    assert "v2 10 %" in command(told, "status").out
    assert set(agent.registered("falcon-tiny")) == {before, canary["version"]}

    assert command(told, "promote", "falcon-tiny", "v2").status == 0
    found = agent.model("falcon-tiny")
    assert (found["serving"], found["version"], found["canary"]) == ("v2", canary["version"], None), (
        "it was started again"
    )
    assert say(agent) == SENTENCES["v2"]
    wait_for(lambda: agent.registered("falcon-tiny") == [canary["version"]], "the old one to be gone", 20)


def test_a_canary_that_is_refused_leaves_the_serving_release_alone_and_says_why(
    agent: AgentProcess, minio: MinioServer, falcons: dict[str, Release], samples: Path
) -> None:
    version = agent.model("falcon-tiny")["version"]
    golden = {"input": PROMPT, "output": "not what it says"}
    bad = publish(minio, "falcon-tiny", samples / "falcon-tiny-v2", promote=False, golden=golden)
    move_alias(minio, falcons["v1"], Canary.of(bad, 50))
    wait_for(lambda: (agent.model("falcon-tiny")["canary"] or {}).get("error"), "the canary to be refused", 60)
    found = agent.model("falcon-tiny")
    assert found["canary"]["error"]["type"] == "SmokeTestFailed"
    assert found["canary"]["serving"] is None
    assert (found["state"], found["serving"], found["version"], found["error"]) == ("serving", "v1", version, None)
    assert agent.registered("falcon-tiny") == [version]
    assert say(agent) == SENTENCES["v1"]
    ended = command(minio.environment | {"AGENT_URL": agent.url}, "rollback", "falcon-tiny")
    assert ended.out.startswith(f"falcon-tiny  v1, canary {bad.name} ended\n✓ v1 is served, after ")
    assert agent.model("falcon-tiny")["canary"] is None


def test_a_broken_release_leaves_the_old_one_serving_and_says_why(
    agent: AgentProcess, minio: MinioServer, falcons: dict[str, Release], samples: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(samples / "falcon-tiny", tmp_path / "broken")
    shard = next(broken.glob("*.safetensors"))
    shard.write_bytes(b"\0" * 64 + shard.read_bytes()[64:])
    release = publish(minio, "falcon-tiny", broken)
    error = agent.wait_refused("falcon-tiny", release.name)
    assert error["retries"] is False
    assert "SafetensorError" in error["message"] or "header" in error["message"].lower(), error
    found = agent.model("falcon-tiny")
    assert found["serving"] == "v1"
    assert found["summary"].startswith(f"serving v1; {release.name} refused: ")
    assert say(agent) == SENTENCES["v1"]
    assert agent.call("GET", "/healthz").status == 200
    assert agent.registered("falcon-tiny") == [found["version"]]
    assert agent.call("POST", "/retry/falcon-tiny").status == 202
    wait_for(
        lambda: agent.model("falcon-tiny")["error"] and agent.model("falcon-tiny")["step"] is None, "the retry", 30
    )
    move_alias(minio, falcons["v1"])
    wait_for(lambda: agent.model("falcon-tiny")["error"] is None, "the error to be gone", 20)


def test_a_release_that_does_not_give_its_golden_answer_is_refused(
    agent: AgentProcess, minio: MinioServer, samples: Path
) -> None:
    golden = {"input": PROMPT, "output": "something else"}
    release = publish(minio, "falcon-tiny", samples / "falcon-tiny-v2", golden=golden)
    error = agent.wait_refused("falcon-tiny", release.name)
    assert error["type"] == "SmokeTestFailed"
    assert "golden answer" in error["message"]
    assert say(agent) == SENTENCES["v1"]


def test_a_model_comes_and_goes_and_a_bad_one_hurts_no_other(
    agent: AgentProcess, minio: MinioServer, samples: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    publish(minio, "bad", tmp_path)
    publish(minio, "another", samples / "falcon-tiny-v2")
    agent.wait_serving("another", "v1")
    assert say(agent, "another") == SENTENCES["v2"]
    agent.wait_refused("bad", "v1")
    health = agent.call("GET", "/healthz")
    assert health.status == 503
    assert health.json["missing"][0].startswith("bad: ")
    refused = agent.predict("bad", "x")
    assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
    assert say(agent) == SENTENCES["v1"]
    remove_alias(minio, "another")
    remove_alias(minio, "bad")
    wait_for(lambda: agent.predict("another", "x").status == 404, "the model to be gone", 20)
    wait_for(lambda: agent.call("GET", "/healthz").status == 200, "health", 20)
    assert agent.model("another")["state"] == "stopped"


def test_the_nodes_own_settings_change_without_a_release(agent: AgentProcess) -> None:
    (agent.folder / "models" / "falcon-tiny.yaml").write_text("node: {workers: 2}\n")
    wait_for(lambda: agent.model("falcon-tiny")["workers"] == 2, "two workers", 40)
    assert agent.model("falcon-tiny")["serving"] == "v1"
    assert agent.model("falcon-tiny")["phases"]["worker"]["tokenizer"] == "held by the zygote"
    (agent.folder / "models" / "falcon-tiny.yaml").write_text("node: {workers: none}\n")
    wait_for(lambda: agent.model("falcon-tiny")["error"], "the error", 10)
    assert "node.workers" in agent.model("falcon-tiny")["error"]["message"]
    assert say(agent) == SENTENCES["v1"]
    (agent.folder / "models" / "falcon-tiny.yaml").unlink()
    wait_for(lambda: agent.model("falcon-tiny")["workers"] == 1 and not agent.model("falcon-tiny")["error"], "one", 40)


def test_a_model_that_does_not_fit_twice_is_replaced_without_a_failed_request(
    agent: AgentProcess, minio: MinioServer, falcons: dict[str, Release]
) -> None:
    (agent.folder / "models" / "falcon-tiny.yaml").write_text("node: {rollout: recreate}\n")
    version = agent.model("falcon-tiny")["version"]
    wait_for(lambda: agent.model("falcon-tiny")["version"] not in (version, None), "the settings to be taken", 40)
    with Traffic(agent.ports["AGENT_PORT"], "falcon-tiny", {"input": PROMPT, "parameters": GREEDY}) as traffic:
        traffic.wait_for_more("v1")
        move_alias(minio, falcons["v2"])
        agent.wait_serving("falcon-tiny", "v2")
        traffic.wait_for_more("v2")
    assert traffic.failures == []
    assert len(agent.registered("falcon-tiny")) == 1
    (agent.folder / "models" / "falcon-tiny.yaml").unlink()


# ---- cold starts


def test_cold_starts_say_how_long_and_how_many_bytes(agent: AgentProcess, falcons: dict[str, Release]) -> None:
    cold = agent.call("POST", "/coldstart", {"model": "falcon-tiny", "prompt": PROMPT}).json
    assert cold["bytes_from_store"] == falcons["v1"].content.size, cold
    assert 0 < cold["phases"]["fetch"] < cold["ready_s"] < cold["first_s"]
    assert cold["archive_bytes"] < 150_000
    warm = agent.call("POST", "/coldstart", {"model": "falcon-tiny", "release": "v2", "cache": "warm"}).json
    assert (warm["release"], warm["bytes_from_store"]) == ("v2", 0)
    assert agent.registered("falcon-tiny--coldstart") == []
    assert not list((agent.folder / "state" / "coldstart").iterdir())
    assert (
        agent.call("POST", "/coldstart", {"model": "falcon-tiny", "variant": "tgz"}).json["error"]["type"]
        == "no_baseline"
    )
    assert agent.call("POST", "/coldstart", {"model": "none"}).status == 404
    assert say(agent) == SENTENCES["v1"]
