"""The agent or the Java server killed or stopped: what a user would lose is the node until somebody looks at it."""

import random
import signal
import time
from pathlib import Path

import pytest
from seeding.samples import KNOWN

from tests.agent_process import MOODY, running_agent
from tests.releases import move_alias, publish
from tests.services import MinioServer, wait_for

PROMPT = KNOWN["falcon-tiny"].prompt
GREEDY = {"do_sample": False}


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
