"""Workers that die, hang or never start: what a user would lose is an answer at once, and a model that comes back."""

from pathlib import Path

import pytest

from tests.agent_process import MOODY, running_agent
from tests.releases import publish
from tests.services import MinioServer, wait_for
from tests.traffic import Traffic


def test_a_killed_worker_comes_back_and_no_request_hangs(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    publish(minio_server, "moody", moody_model)
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY) as agent:
        agent.wait_serving("moody", "v1")
        with Traffic(agent.ports["AGENT_PORT"], "moody", {"input": "say x"}) as traffic:
            traffic.wait_for_more("v1")
            [worker] = agent.workers()
            worker.kill()
            wait_for(lambda: agent.workers() and agent.workers() != [worker], "another worker", 20)
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
        [worker] = agent.workers()
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
