"""Rollouts under load, in crowds, in vain: what a user would lose is the release that served."""

import shutil
import time
from functools import partial
from pathlib import Path

import pytest
from seeding.samples import KNOWN

from tests.agent_process import MOODY, AgentProcess, running_agent
from tests.releases import move_alias, publish
from tests.services import MinioServer, wait_for
from tests.traffic import Traffic
from weightless.release import Release

PROMPT = KNOWN["falcon-tiny"].prompt
GREEDY = {"do_sample": False}


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
