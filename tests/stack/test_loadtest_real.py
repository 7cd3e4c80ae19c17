"""The load test against the real parts: MinIO, the agent, TorchServe, and the stock baseline that starts embedded archives."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from loadtest.turns import in_turns
from tests.agent_process import running_agent
from tests.published import publish
from tests.services import ROOT, MinioServer, free_port, wait_for
from tests.stack.test_loadtest_headless import loadtest, read, rows
from tests.stack.test_locust_ui import get, process

PACKAGES = ("torch", "torchserve", "transformers")
ARMS = ("slim-cold", "slim-warm", "mar", "mar-zygote", "worker")


@contextmanager
def baseline(folder: Path) -> Iterator[dict[str, str]]:
    """A stock TorchServe; yields what the agent must be told about it."""
    names = ("INFERENCE", "MANAGEMENT", "METRICS", "USAGE", "WORKER")
    ports = {f"BASELINE_{name}_PORT": str(free_port()) for name in names}
    store = folder / "store"
    told = {"STATE_DIR": str(folder), "BASELINE_STORE": str(store), "PYTHONPATH": str(ROOT)} | ports
    folder.mkdir()
    inference = f"http://127.0.0.1:{ports['BASELINE_INFERENCE_PORT']}"
    with process([sys.executable, "-m", "serve.baseline"], told, folder / "baseline.log"):
        wait_for(lambda: "Healthy" in get(f"{inference}/ping"), "the baseline", 60)
        yield {
            "BASELINE_INFERENCE_URL": inference,
            "BASELINE_MANAGEMENT_URL": f"http://127.0.0.1:{ports['BASELINE_MANAGEMENT_PORT']}",
            "BASELINE_USAGE_URL": f"http://127.0.0.1:{ports['BASELINE_USAGE_PORT']}",
            "BASELINE_STORE": str(store),
        }


def test_every_kind_of_request_and_start_on_the_real_stack(
    minio_server: MinioServer, samples: Path, tmp_path: Path
) -> None:
    served = publish(minio_server, "falcon-tiny", samples / "falcon-tiny")
    # Published to be measured, with no alias: the name that the load test looks for first, here with a small model behind it.
    release = publish(minio_server, "falcon-1g", samples / "falcon-tiny", promote=False)
    publish(minio_server, "minilm", samples / "minilm", task="embeddings")
    with baseline(tmp_path / "baseline") as told, running_agent(tmp_path / "agent", minio_server, **told) as agent:
        agent.wait_healthy()
        arguments = ("--profile", "quick", "--seconds", "2", "--cold-start-samples", "2", "--cold-start-model", "auto")
        run = loadtest(agent.url, tmp_path / "out", *arguments, "--cold-start-variants", *ARMS)
        assert run.returncode == 0, run.stderr
        run = loadtest(agent.url, tmp_path / "out", "--profile", "compare", "--seconds", "2", "--users", "1")
        assert run.returncode == 0, run.stderr

    found = read(tmp_path / "out", "quick")
    assert found["agent"]["models"]["falcon-tiny"]["digest"] == served.digest
    told = found["agent"]["versions"]
    assert {name: told[name] for name in PACKAGES} == {name: metadata.version(name) for name in PACKAGES}
    inference = rows(found, "inference")
    assert set(inference) == {"falcon-tiny v1 generate", "falcon-tiny v1 stream", "minilm v1 embed"}
    for row in inference.values():
        assert row["requests"] >= 2 and row["failures"] == 0, row
    stream = rows(found, "streaming")["falcon-tiny v1 stream"]
    assert 0 < stream["first_p50"] <= stream["first_p95"] and stream["tokens"] > 1, stream

    starts = found["cold_starts"]["starts"]
    assert [(s["arm"], s["error"]) for s in starts] == [(arm, None) for _, arm in in_turns(ARMS, 2)]
    for start in starts:
        assert (start["model"], start["release"], start["digest"]) == ("falcon-1g", "v1", release.digest)
        assert start["arm"] == "worker" or 0 < start["ready_s"] < start["first_s"]
        fetches = start["arm"] == "slim-cold"
        assert start["bytes_from_store"] == (release.content.size if fetches else 0), start
        assert (start["store_sent_bytes"] >= release.content.size) is fetches, "by MinIO's own counter"
        assert start["phases"]["load"] > 0 and start["peak_memory_bytes"] and start["forked"] is (start["arm"] != "mar")
    by = {row["what"]: row for row in found["tables"]["cold-start"]}
    assert by["embedded .mar"]["build"] > 0
    # An archive with the weights is as big as they are; the slim one is not.
    assert by["slim, empty cache"]["archive"] < by["embedded .mar"]["archive"] / 5
    assert {row["what"] for row in found["tables"]["due"]} == {
        "embedded .mar, to READY",
        "embedded .mar, to first token",
    }
    compared = rows(read(tmp_path / "out", "compare"), "inference")
    assert len(compared) == 4
    for row in compared.values():
        assert row["requests"] >= 1 and row["failures"] == 0 and row["tokens"] > 1, row
