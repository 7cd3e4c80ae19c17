"""The store away, with and without a cache: what a user would lose is a model that this node has, or the reason why it has none."""

from pathlib import Path

from seeding.samples import KNOWN

from tests.agent_process import MOODY, running_agent
from tests.releases import publish
from tests.services import MinioServer, wait_for

PROMPT = KNOWN["falcon-tiny"].prompt
GREEDY = {"do_sample": False}


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
