"""TorchServe's own queue of requests is full: what a user would lose is a client that waits for its timeout where the server could
have said at once that there are too many."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.agent_process import MOODY, running_agent
from tests.releases import publish
from tests.services import MinioServer, wait_for

QUEUED, BEYOND = 2, 5
SLEEP_S = (
    8  # the worker's time for one request: all that is asked here is whether the others are refused before it is over
)


def test_requests_beyond_a_full_queue_are_refused_at_once_and_those_within_are_answered(
    minio_server: MinioServer, moody_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "moody.yaml").write_text(f"node: {{job_queue_size: {QUEUED}, batching: static}}\n")
    publish(minio_server, "moody", moody_model)
    with (
        running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY) as agent,
        ThreadPoolExecutor(1 + QUEUED + BEYOND) as pool,
    ):
        agent.wait_serving("moody", "v1")
        served = pool.submit(agent.predict, "moody", f"sleep {SLEEP_S}")
        wait_for(lambda: agent.model("moody")["inflight"] == 1, "the worker to be busy", 5, 0.01)
        asked = [pool.submit(agent.predict, "moody", "say x") for _ in range(QUEUED + BEYOND)]
        wait_for(lambda: sum(one.done() for one in asked) == BEYOND, "all beyond the queue to be refused", SLEEP_S)
        assert not served.done(), "they waited"
        refused = [one.result() for one in asked if one.done()]
        for answer in refused:
            assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
            assert answer.headers["Content-Type"].startswith("application/json")
            assert answer.json["error"]["type"] == "overloaded"
            assert "queue" in answer.json["error"]["message"]
        assert served.result().status == 200
        assert sum(one.result().status == 200 for one in asked) == QUEUED
        assert agent.predict("moody", "say x").status == 200
