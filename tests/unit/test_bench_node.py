"""The stack that a benchmark measures is its own: on a wrong one it would fill somebody's store and empty somebody's cache."""

from pathlib import Path

from loadtest.bench.node import own_settings
from local.config import Setup
from local.programs import environment


def test_a_checkouts_env_does_not_reach_the_benchmarks_stack(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "S3_ENDPOINT=https://s3.example.com\nS3_ACCESS_KEY=ours\nS3_SECRET_KEY=ours\nCACHE_DIR=/srv/cache\n"
        "API_KEY_FILE=/nowhere\nSERVE_MODELS=ours\nAGENT_PORT=8080\n"
    )
    setup = Setup.load(own_settings(tmp_path / "run"), root=tmp_path)
    told = environment(setup, "node")
    assert setup.own_store
    assert setup.api_key is None
    assert told["CACHE_DIR"] == str(tmp_path / "run" / "cache")
    assert "ours" not in told.values()
    assert setup.ports["AGENT_PORT"] != 8080
