"""What must not break the node: its parts killed, the store away, workers that never start, releases swapped without end."""

import json
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from seeding.samples import KNOWN

from tests.agent_process import AgentProcess, running_agent
from tests.releases import move_alias, publish
from tests.services import ROOT, MinioServer, running_minio, wait_for
from tests.traffic import Traffic
from weightless.release import Release

PROMPT = KNOWN["falcon-tiny"].prompt
GREEDY = {"do_sample": False}
MOODY = str(ROOT / "tests" / "handlers" / "moody")


@pytest.fixture
def moody_model(tmp_path: Path) -> Path:
    """A folder to publish for the moody handler, which reads none of it."""
    folder = tmp_path / "moody"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def own_minio(tmp_path: Path) -> Iterator[MinioServer]:
    """A MinIO that the test may stop and start."""
    with running_minio(tmp_path / "minio") as server:
        server.clean()
        yield server


def workers(agent: AgentProcess) -> list[psutil.Process]:
    """The forked workers themselves: children of the zygote."""
    zygote = agent.status()["zygote"]["pid"]
    return psutil.Process(zygote).children()


# ---- something is killed


def test_the_java_server_killed_comes_back_with_its_models(
    minio_server: MinioServer, samples: Path, tmp_path: Path
) -> None:
    publish(minio_server, "falcon-tiny", samples / "falcon-tiny")
    with running_agent(tmp_path, minio_server) as agent:
        agent.wait_serving("falcon-tiny", "v1")
        agent.java().kill()
        wait_for(lambda: agent.status()["torchserve"]["restarts"] == 1, "the death to be noticed", 10)
        answer = agent.predict("falcon-tiny", PROMPT, **GREEDY)
        assert (answer.status, answer.headers.get("Retry-After")) in {(503, "1"), (200, None)}
        agent.wait_serving("falcon-tiny", "v1", 60)
        assert agent.predict("falcon-tiny", PROMPT, **GREEDY).json[0]["generated_text"] == KNOWN["falcon-tiny"].sentence
        assert b"\nweightless_torchserve_restarts_total 1.0\n" in agent.call("GET", "/metrics").raw


def test_the_agent_killed_leaves_nothing_behind_and_starts_again(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    publish(minio_server, "moody", moody_model)
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY) as agent:
        agent.wait_serving("moody", "v1")
        family = agent.descendants()
        assert len(family) >= 4, "Java, zygote, launcher, worker"
        agent.kill()
        wait_for(lambda: not [p for p in family if p.is_running() and p.status() != "zombie"], "all to be gone", 15)
        agent.start()
        agent.wait_serving("moody", "v1")


def test_the_agent_killed_in_the_midst_of_a_rollout_serves_what_is_wanted_after_its_return(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    killed_in_rollouts(minio_server, moody_model, tmp_path, [0.4])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_agent_killed_at_twenty_points_of_a_rollout_serves_what_is_wanted_after_its_return(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    chance = random.Random(11)
    killed_in_rollouts(minio_server, moody_model, tmp_path, [chance.uniform(0, 1.5) for _ in range(20)])


def killed_in_rollouts(minio: MinioServer, folder: Path, tmp_path: Path, after: list[float]) -> None:
    """A rollout takes about a second; the agent is killed so many seconds after the alias was moved."""
    releases = []
    for number in range(2):
        (folder / "config.json").write_text(f'{{"number": {number}}}')
        releases.append(publish(minio, "moody", folder, promote=not number))
    with running_agent(tmp_path, minio, HANDLER_DIR=MOODY, POLL_SECONDS="0.05") as agent:
        agent.wait_serving("moody", "v1")
        for turn, seconds in enumerate(after):
            wanted = releases[1 - turn % 2]
            move_alias(minio, wanted)
            began = time.monotonic()
            wait_for(lambda: time.monotonic() - began >= seconds, "the moment", 10, interval=0.005)  # noqa: B023
            family = agent.descendants()
            agent.kill()
            wait_for(lambda: not [p for p in family if p.is_running() and p.status() != "zombie"], "all to be gone", 15)  # noqa: B023
            agent.start()
            agent.wait_serving("moody", wanted.name)
            assert agent.predict("moody", "say x").headers["X-Weightless-Release"] == wanted.name
            wait_for(lambda: len(agent.registered("moody")) == 1, "one version", 20)


def test_a_worker_that_hangs_while_it_loads_leaves_the_old_release_serving(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    mood = tmp_path / "mood"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "moody.yaml").write_text("node: {startup_timeout_s: 4}\n")
    publish(minio_server, "moody", moody_model)
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY, MOODY=str(mood)) as agent:
        agent.wait_serving("moody", "v1")
        mood.write_text("slow")
        (moody_model / "config.json").write_text('{"second": true}')
        with Traffic(agent.ports["AGENT_PORT"], "moody", {"input": "say x"}) as traffic:
            publish(minio_server, "moody", moody_model)
            error = agent.wait_refused("moody", "v2")
            traffic.wait_for_more("v1")
        assert (error["type"], error["retries"]) == ("StartTooSlow", True)
        assert traffic.failures == []
        mood.unlink()
        agent.wait_serving("moody", "v2")


def test_a_release_that_replaces_the_old_one_slowly_makes_requests_wait_and_then_refuses_them_at_once(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    mood = tmp_path / "mood"
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "moody.yaml").write_text("node: {rollout: recreate}\n")
    publish(minio_server, "moody", moody_model)
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY, MOODY=str(mood), HOLD_SECONDS="1") as agent:
        agent.wait_serving("moody", "v1")
        mood.write_text("slow")
        (moody_model / "config.json").write_text('{"second": true}')
        publish(minio_server, "moody", moody_model)
        wait_for(lambda: agent.model("moody")["step"] == "wait", "the old one to be gone", 60)
        began = time.monotonic()
        refused = agent.predict("moody", "say x")
        took = time.monotonic() - began
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert "its release is being replaced" in refused.json["error"]["message"]
        assert 1 <= took < 10
        mood.unlink()
        agent.wait_serving("moody", "v2")
        assert agent.predict("moody", "say x").status == 200


def test_eight_models_at_once_with_a_bad_one_among_them_and_seven_serve(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    names = [f"moody-{number}" for number in range(8)]
    bad = names[3]
    for name in names:
        golden = {"input": "say x", "output": "y"} if name == bad else None
        publish(minio_server, name, moody_model, golden=golden)
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY) as agent:
        steps: set[int] = set()

        def settled() -> bool:
            models = agent.status()["models"]
            steps.add(sum(found["step"] not in (None, "resolve") for found in models.values()))
            return len(models) == 8 and all(
                found["step"] is None and (found["serving"] or found["error"]) for found in models.values()
            )

        wait_for(settled, "all eight to be settled", 200)
        found = agent.status()["models"]
        assert {name for name, one in found.items() if one["serving"] == "v1"} == set(names) - {bad}
        assert found[bad]["error"]["type"] == "SmokeTestFailed"
        assert max(steps) <= 2, "more rollouts at once than PARALLEL_ROLLOUTS"
        assert all(agent.predict(name, "say x").status == 200 for name in names if name != bad)


def test_a_killed_worker_comes_back_and_no_request_hangs(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    publish(minio_server, "moody", moody_model)
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY) as agent:
        agent.wait_serving("moody", "v1")
        with Traffic(agent.ports["AGENT_PORT"], "moody", {"input": "say x"}) as traffic:
            traffic.wait_for_more("v1")
            [worker] = workers(agent)
            worker.kill()
            wait_for(lambda: workers(agent) and workers(agent) != [worker], "another worker", 20)
            traffic.wait_for_more("v1")
        assert all(failure.startswith("503") for failure in traffic.failures), traffic.failures[:3]
        assert traffic.slowest < 20


def test_a_worker_that_dies_on_load_again_and_again_is_reported_and_recovers(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    mood = tmp_path / "mood"
    publish(minio_server, "moody", moody_model)
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY, MOODY=str(mood)) as agent:
        agent.wait_serving("moody", "v1")
        mood.write_text("die")
        [worker] = workers(agent)
        worker.kill()
        wait_for(lambda: agent.model("moody")["error"], "the loss to be noticed", 30)
        refused = agent.predict("moody", "say x")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert "died" in refused.json["error"]["message"]
        wait_for(lambda: agent.model("moody")["error"]["type"] == "StartFailed", "the agent to try for itself", 90)
        mood.unlink()
        agent.wait_serving("moody", "v1", 90)
        assert agent.model("moody")["error"] is None
        assert agent.predict("moody", "say x").status == 200


def test_a_start_that_was_too_slow_is_tried_again_unasked(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    """A machine that is busy for a while must not stay without its model."""
    mood = tmp_path / "mood"
    mood.write_text("slow")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "moody.yaml").write_text("node: {startup_timeout_s: 4}\n")
    publish(minio_server, "moody", moody_model)
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY, MOODY=str(mood)) as agent:
        error = agent.wait_refused("moody", "v1")
        assert (error["type"], error["retries"]) == ("StartTooSlow", True)
        assert "required READY within 4 s" in error["message"]
        mood.unlink()
        agent.wait_serving("moody", "v1")


@pytest.mark.parametrize(
    ("mood", "says"), [("fail", "the weights are in a bad mood"), ("die", "ended while it loaded")]
)
def test_a_release_that_never_starts_is_refused_once_with_its_reason(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path, mood: str, says: str
) -> None:
    (tmp_path / "mood").write_text(mood)
    publish(minio_server, "moody", moody_model)
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY, MOODY=str(tmp_path / "mood")) as agent:
        error = agent.wait_refused("moody", "v1")
        assert says in error["message"]
        assert (error["retries"], error["attempts"]) == (False, 1)
        assert agent.predict("moody", "say x").status == 503
        (tmp_path / "mood").unlink()
        assert agent.call("POST", "/retry/moody").status == 202
        agent.wait_serving("moody", "v1", 60)


def test_after_a_restart_a_broken_release_falls_back_to_what_served_before(
    minio_server: MinioServer, samples: Path, tmp_path: Path
) -> None:
    publish(minio_server, "falcon-tiny", samples / "falcon-tiny")
    with running_agent(tmp_path, minio_server) as agent:
        agent.wait_serving("falcon-tiny", "v1")
        agent.stop()
        broken = shutil.copytree(samples / "falcon-tiny", tmp_path / "broken")
        (broken / "config.json").write_text("{}")
        publish(minio_server, "falcon-tiny", broken)
        agent.start()
        agent.wait_refused("falcon-tiny", "v2")
        agent.wait_serving("falcon-tiny", "v1")
        assert agent.predict("falcon-tiny", PROMPT, **GREEDY).json[0]["generated_text"] == KNOWN["falcon-tiny"].sentence
        assert agent.call("GET", "/healthz").status == 200


# ---- the store is away


def test_with_the_store_away_a_cached_release_is_served_and_said_to_be_stale(
    own_minio: MinioServer, samples: Path, tmp_path: Path
) -> None:
    publish(own_minio, "falcon-tiny", samples / "falcon-tiny")
    with running_agent(tmp_path, own_minio) as agent:
        agent.wait_serving("falcon-tiny", "v1")
        own_minio.stop()
        wait_for(lambda: agent.model("falcon-tiny")["stale"], "the absence to be noticed", 30)
        assert agent.predict("falcon-tiny", PROMPT, **GREEDY).status == 200
        agent.stop()
        agent.start()
        agent.wait_serving("falcon-tiny", "v1")
        assert agent.model("falcon-tiny")["stale"] is True
        assert "cannot be reached" in agent.status()["store"]["error"]
        assert agent.call("GET", "/healthz").status == 200
        own_minio.start()
        wait_for(lambda: not agent.model("falcon-tiny")["stale"], "the return to be noticed", 30)


def test_with_the_store_away_and_nothing_cached_it_says_so_and_serves_after_its_return(
    own_minio: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    publish(own_minio, "moody", moody_model)
    own_minio.stop()
    with running_agent(tmp_path, own_minio, HANDLER_DIR=MOODY) as agent:
        wait_for(lambda: "cannot be reached" in str(agent.call("GET", "/healthz").json), "a clear word", 40)
        assert agent.call("GET", "/healthz").status == 503
        assert agent.predict("moody", "x").status == 404
        own_minio.start()
        agent.wait_serving("moody", "v1", 30)


# ---- many of something


def test_300_malformed_requests_are_4xx_in_json_and_cost_no_worker(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    malformed(minio_server, moody_model, tmp_path, 300)


@pytest.mark.long
def test_10000_malformed_requests_are_4xx_in_json_and_cost_no_worker(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    malformed(minio_server, moody_model, tmp_path, 10_000)


def malformed(minio: MinioServer, folder: Path, tmp_path: Path, count: int) -> None:
    chance = random.Random(7)
    right = json.dumps({"input": "say x", "parameters": {"top_k": 5}, "stream": False}).encode()
    publish(minio, "moody", folder)
    with running_agent(tmp_path, minio, HANDLER_DIR=MOODY) as agent:
        agent.wait_serving("moody", "v1")
        before = [worker.pid for worker in workers(agent)]
        for _ in range(count):
            answer = agent.call("POST", "/predictions/moody", damaged(right, chance))
            assert answer.status in (400, 413)
            assert answer.json["error"]["code"] == answer.status
        assert [worker.pid for worker in workers(agent)] == before
        assert agent.predict("moody", "say x").status == 200


def damaged(right: bytes, chance: random.Random) -> bytes:
    """A body that is certainly wrong: cut short, garbage, or of wrong types."""
    match chance.randrange(4):
        case 0:
            return right[: chance.randrange(1, len(right) - 1)]
        case 1:
            return chance.randbytes(chance.randrange(0, 300)) + b"\xff"
        case 2:
            wrong: Any = chance.choice([None, 3, {}, [], [None], True, 1.5, ["x", {}]])
            return json.dumps({"input": wrong}).encode()
        case _:
            field = chance.choice(["parameters", "stream", "details"])
            return json.dumps({"input": "x", field: chance.choice([3, "yes", [1], 0.5])}).encode()


def test_bytes_that_are_no_http_do_no_harm(minio_server: MinioServer, moody_model: Path, tmp_path: Path) -> None:
    publish(minio_server, "moody", moody_model)
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY) as agent:
        agent.wait_serving("moody", "v1")
        for raw in (
            b"\0" * 100,
            b"GET",
            b"POST /predictions/moody HTTP/1.1\r\nContent-Length: x\r\n\r\n",
            os.urandom(2000),
        ):
            with socket.create_connection(("127.0.0.1", agent.ports["AGENT_PORT"]), timeout=10) as connection:
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65536):
                    pass
        half = socket.create_connection(("127.0.0.1", agent.ports["AGENT_PORT"]), timeout=10)
        half.sendall(b"POST /predictions/moody HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert agent.model("moody")["inflight"] == 0, "a body that does not come is not in flight"
        half.close()
        assert agent.predict("moody", "say x").status == 200


@pytest.mark.long
@pytest.mark.timeout(900)
def test_20_swaps_under_load_fail_no_request(minio_server: MinioServer, samples: Path, tmp_path: Path) -> None:
    v1 = publish(minio_server, "falcon-tiny", samples / "falcon-tiny")
    v2 = publish(minio_server, "falcon-tiny", samples / "falcon-tiny-v2", promote=False)
    with running_agent(tmp_path, minio_server) as agent:
        agent.wait_serving("falcon-tiny", "v1")
        body, port = {"input": PROMPT, "parameters": GREEDY}, agent.ports["AGENT_PORT"]
        with (
            Traffic(port, "falcon-tiny", body, every=0.25) as traffic,
            Traffic(port, "falcon-tiny", body | {"stream": True}, clients=1) as streams,
        ):
            for turn in range(20):
                release = v1 if turn % 2 else v2
                move_alias(minio_server, release)
                agent.wait_serving("falcon-tiny", release.name)
        print(f"{traffic.releases} slowest {traffic.slowest:.2f} s; streams {streams.releases} {streams.slowest:.2f} s")
        assert traffic.failures == streams.failures == []
        assert sum(traffic.answers.values()) > 100
        assert len(traffic.answers) == len(streams.answers) == 2, "an answer was of both"


def test_an_alias_that_moves_during_a_rollout_ends_at_the_last(
    minio_server: MinioServer, samples: Path, tmp_path: Path
) -> None:
    v1 = publish(minio_server, "falcon-tiny", samples / "falcon-tiny")
    v2 = publish(minio_server, "falcon-tiny", samples / "falcon-tiny-v2", promote=False)
    with running_agent(tmp_path, minio_server, POLL_SECONDS="0.1") as agent:
        agent.wait_serving("falcon-tiny", "v1")
        with Traffic(agent.ports["AGENT_PORT"], "falcon-tiny", {"input": PROMPT, "parameters": GREEDY}) as traffic:
            for release in (v2, v1, v2, v1, v2):
                move_alias(minio_server, release)
                wait_for(partial(wants, agent, release), "the move to be seen", 10)
            agent.wait_serving("falcon-tiny", "v2")
        assert traffic.failures == []
        wait_for(
            lambda: agent.registered("falcon-tiny") == [agent.model("falcon-tiny")["version"]],
            "nothing else to stay",
            30,
        )


def wants(agent: AgentProcess, release: Release) -> bool:
    return bool(agent.model("falcon-tiny")["wanted"] == release.name)


def test_java_stopped_for_a_while_hangs_nobody(minio_server: MinioServer, moody_model: Path, tmp_path: Path) -> None:
    """SIGSTOP: connections are accepted by the kernel, and nothing answers."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "moody.yaml").write_text("node: {response_timeout_s: 1}\n")
    publish(minio_server, "moody", moody_model)
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY) as agent:
        agent.wait_serving("moody", "v1")
        java = agent.java()
        java.send_signal(signal.SIGSTOP)
        try:
            answer = agent.predict("moody", "say x")
            assert (answer.status, answer.json["error"]["type"]) == (504, "timeout")
        finally:
            java.send_signal(signal.SIGCONT)
        wait_for(lambda: agent.predict("moody", "say x").status == 200, "answers again", 30)
