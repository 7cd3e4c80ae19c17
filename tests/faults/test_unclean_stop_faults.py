"""A machine that stopped before its cached files had reached the disk, through the agent: what a user would lose is a model that
loads pages of zeros, or a node that hashes all its models at each boot."""

from pathlib import Path

from seeding.samples import KNOWN

from tests.agent_process import MOODY, running_agent
from tests.fetching import cache_at, damage, stop_uncleanly
from tests.releases import publish
from tests.services import MinioServer, wait_for

MODEL = "falcon-tiny"
PROMPT, SENTENCE = KNOWN[MODEL].prompt, KNOWN[MODEL].sentence


def test_what_did_not_reach_the_disk_is_found_fetched_again_and_served(
    minio_server: MinioServer, samples: Path, tmp_path: Path
) -> None:
    release, store = publish(minio_server, MODEL, samples / MODEL), minio_server.store()
    cache = cache_at(tmp_path / "cache")
    with running_agent(tmp_path, minio_server, HANDLER_DIR=MOODY) as agent:
        agent.wait_serving(MODEL, "v1")
        assert list(cache.layout.unsynced.glob("*.*")), "prefetched, and the moody handler syncs nothing"
        agent.stop()
        stop_uncleanly(cache)
        lost = max(release.content.files, key=lambda file: file.size)
        damage(cache.layout.blob(lost.blake3), bytes(lost.size))
        before = store.bytes_sent("models")
        del agent.env["HANDLER_DIR"]
        agent.start()
        agent.wait_serving(MODEL, "v1")
        assert agent.predict(MODEL, PROMPT, do_sample=False).json[0]["generated_text"] == SENTENCE
        assert store.bytes_sent("models") - before == lost.size, "the others were hashed and believed"
        assert "hashing them again" in agent.log
        assert f"cached file {lost.blake3} did not reach the disk whole; it will be fetched again" in agent.log


def test_what_serves_is_synced_and_believed_after_an_unclean_stop(
    minio_server: MinioServer, samples: Path, tmp_path: Path
) -> None:
    publish(minio_server, MODEL, samples / MODEL)
    cache = cache_at(tmp_path / "cache")
    with running_agent(tmp_path, minio_server) as agent:
        agent.wait_serving(MODEL, "v1")
        wait_for(lambda: not list(cache.layout.unsynced.glob("*.*")), "what the agent prefetched to be synced", 20)
        agent.stop()
        stop_uncleanly(cache)
        agent.start()
        agent.wait_serving(MODEL, "v1")
        assert "hashing them again" not in agent.log
