"""The slim archive in an unchanged TorchServe, with nothing but the store's address and keys in its environment."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest
from seeding.samples import KNOWN, MEANING

from serve.agent.archive import SlimArchive, build_slim
from tests.published import publish
from tests.services import ROOT, MinioServer, running_minio, wait_for
from tests.stock_torchserve import StockTorchServe, running_torchserve
from weightless.modelfile import NodeSettings
from weightless.release import Release

KNOWN_V1 = KNOWN["falcon-tiny"]
GREEDY = {"do_sample": False, "max_new_tokens": 40}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    with running_minio(tmp_path_factory.mktemp("minio")) as running:
        running.clean()
        yield running


@pytest.fixture(scope="module")
def torchserve(tmp_path_factory: pytest.TempPathFactory, server: MinioServer) -> Iterator[StockTorchServe]:
    folder = tmp_path_factory.mktemp("torchserve")
    with running_torchserve(folder, server.environment | {"CACHE_DIR": str(folder / "cache")}) as running:
        yield running


def mar(torchserve: StockTorchServe, model: str, version: str, release: Release | None, **node: Any) -> str:
    """Build the slim archive into the model store; its name."""
    name = f"{model}-{version}.mar"
    archive = SlimArchive(model, version, NodeSettings(**node), release)
    size = asyncio.run(build_slim(archive, ROOT / "handler", torchserve.store / name))
    assert size < 150_000, f"a slim archive must stay under 150 kB, found {size}"
    return name


@pytest.fixture(scope="module")
def falcon(torchserve: StockTorchServe, server: MinioServer, samples: Path) -> Release:
    release = publish(server, "falcon-tiny", samples / "falcon-tiny", generation={"max_length": 200, "top_k": 10})
    archive = mar(torchserve, "falcon-tiny", "v1", release, batch_size=8, max_batch_delay_ms=200, batching="static")
    assert torchserve.register(archive)[0] == 200, torchserve.log.read_text()[-4000:]
    return release


def body(text: Any, **more: Any) -> bytes:
    return json.dumps({"input": text, "parameters": GREEDY} | more).encode()


def test_a_batch_of_concurrent_requests_with_a_bad_one_among_them(torchserve: StockTorchServe, falcon: Release) -> None:
    bodies = [body(KNOWN_V1.prompt)] * 3 + [body(KNOWN_V1.prompt, parameters={"top_k": "x"}), b"{not json"]
    bodies += [body([KNOWN_V1.prompt, KNOWN_V1.prompt], details=True)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda each: torchserve.predict("falcon-tiny", each), bodies))
    assert [status for status, _ in answers] == [200, 200, 200, 400, 400, 200]
    for _, text in answers[:3]:
        assert json.loads(text) == [{"generated_text": KNOWN_V1.sentence}]
    assert json.loads(answers[3][1])["error"]["field"] == "parameters.top_k"
    assert json.loads(answers[4][1])["error"]["type"] == "invalid_json"
    [[first], [second]] = json.loads(answers[5][1])
    assert first == second
    assert (first["generated_text"], first["finish_reason"]) == (KNOWN_V1.sentence, "stop")


def events(torchserve: StockTorchServe, raw: bytes) -> tuple[str, list[tuple[float, dict[str, Any]]]]:
    """Content type, and the events of a stream with the time each came."""
    url = f"{torchserve.inference}/predictions/falcon-tiny"
    request = urllib.request.Request(url, data=raw, headers={"Content-Type": "application/json"})
    found = []
    with urllib.request.urlopen(request, timeout=120) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                found.append((time.monotonic(), json.loads(line[6:])))
        return str(answer.headers["Content-Type"]), found


def test_streams_and_plain_answers_in_one_batch(torchserve: StockTorchServe, falcon: Release) -> None:
    with ThreadPoolExecutor(4) as pool:
        streams = [pool.submit(events, torchserve, body(KNOWN_V1.prompt, stream=True)) for _ in range(2)]
        plain = pool.submit(torchserve.predict, "falcon-tiny", body(KNOWN_V1.prompt))
        assert json.loads(plain.result()[1]) == [{"generated_text": KNOWN_V1.sentence}]
        for stream in streams:
            content_type, found = stream.result()
            assert content_type.startswith("text/event-stream")
            pieces = [event["token"] for _, event in found[:-1]]
            assert "".join(pieces) == KNOWN_V1.answer
            assert len(pieces) > 3
            end = found[-1][1]
            assert (end["generated_text"], end["finish_reason"]) == (KNOWN_V1.sentence, "stop")
            assert end["prompt_tokens"] > 0 and end["generated_tokens"] > 3


def test_defaults_come_from_the_release(torchserve: StockTorchServe, falcon: Release) -> None:
    status, text = torchserve.predict("falcon-tiny", json.dumps({"input": "To", "details": True}).encode())
    [answer] = json.loads(text)
    assert status == 200
    assert answer["finish_reason"] in ("stop", "length")
    assert answer["prompt_tokens"] + answer["generated_tokens"] <= 200


def test_embeddings_by_several_workers_over_one_copy_of_the_files(
    torchserve: StockTorchServe, server: MinioServer, samples: Path
) -> None:
    release = publish(server, "minilm", samples / "minilm", task="embeddings")
    archive = mar(torchserve, "minilm", "v1", release, batch_size=4, workers=2, response_timeout_s=60)
    assert torchserve.register(archive, initial_workers=2)[0] == 200, torchserve.log.read_text()[-4000:]
    wait_for(lambda: len(ledger_lines(torchserve, "minilm")) == 2, "both workers' words in TorchServe's log", 20)
    starts = [json.loads(line[line.index("{") :]) for line in ledger_lines(torchserve, "minilm")]
    assert sum(start["bytes_from_store"] for start in starts) == release.content.size, (
        "two workers must fetch each byte once"
    )
    meaning = MEANING["minilm"]
    status, text = torchserve.predict("minilm", body([meaning.anchor, meaning.near, meaning.far], parameters={}))
    assert status == 200
    anchor, near, far = (numpy.array(entry["embedding"]) for entry in json.loads(text))
    assert anchor @ near > 0.5 > anchor @ far


def ledger_lines(torchserve: StockTorchServe, model: str) -> list[str]:
    return [
        line for line in torchserve.log.read_text().splitlines() if f'"weightless":"start","model":"{model}"' in line
    ]


def test_an_archive_that_follows_the_alias_takes_the_new_release_at_its_next_start(
    torchserve: StockTorchServe, server: MinioServer, falcon: Release, samples: Path
) -> None:
    publish(server, "follower", samples / "falcon-tiny")
    archive = mar(torchserve, "follower", "1", None)
    assert torchserve.register(archive)[0] == 200
    assert KNOWN_V1.sentence in torchserve.predict("follower", body(KNOWN_V1.prompt))[1]
    publish(server, "follower", samples / "falcon-tiny-v2")
    assert KNOWN_V1.sentence in torchserve.predict("follower", body(KNOWN_V1.prompt))[1]
    assert torchserve.unregister("follower", "1")[0] == 200
    assert torchserve.register(archive)[0] == 200
    assert KNOWN["falcon-tiny-v2"].sentence in torchserve.predict("follower", body(KNOWN_V1.prompt))[1]
    assert torchserve.predict("falcon-tiny", body(KNOWN_V1.prompt))[0] == 200, "unregistering must not touch the cache"


def test_a_release_that_does_not_exist_is_not_ready_and_the_log_says_why(
    torchserve: StockTorchServe, falcon: Release
) -> None:
    archive = mar(torchserve, "falcon-tiny", "v9", falcon.model_copy(update={"name": "v9"}), startup_timeout_s=20)
    text = torchserve.call(f"{torchserve.management}/models?url={archive}&initial_workers=1", method="POST")
    assert text[0] in (200, 202, 500)
    wanted = "ReleaseNotFound: release v9 of falcon-tiny"
    wait_for(lambda: wanted in torchserve.log.read_text(), wanted, 60)
    torchserve.unregister("falcon-tiny", "v9")
