"""Continuous batching in an unchanged TorchServe: who comes later joins, who goes away leaves, and nobody waits for anybody."""

import asyncio
import http.client
import json
import re
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from serve.agent.archive import SlimArchive, build_slim
from tests.published import publish
from tests.services import ROOT, MinioServer, running_minio, wait_for
from tests.stock_torchserve import StockTorchServe, running_torchserve
from tests.tiny_models import make_causal
from weightless.modelfile import NodeSettings

MODEL = "llama"
LONG = 3000  # tokens: more than any test waits for
IN_FLIGHT = 3  # pieces and log lines that are on their way between worker, TorchServe and test


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MinioServer]:
    with running_minio(tmp_path_factory.mktemp("minio")) as running:
        running.clean()
        yield running


@pytest.fixture(scope="module")
def torchserve(tmp_path_factory: pytest.TempPathFactory, server: MinioServer) -> Iterator[StockTorchServe]:
    """A node with one model, whose steps take some milliseconds: what happens between them can be told apart."""
    folder = tmp_path_factory.mktemp("torchserve")
    sizes: dict[str, Any] = {
        "hidden_size": 256,
        "num_hidden_layers": 8,
        "intermediate_size": 1024,
        "max_position_embeddings": 4096,
    }
    release = publish(server, MODEL, make_causal(folder / "model", "llama", **sizes))
    environment = server.environment | {"CACHE_DIR": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    with running_torchserve(folder, environment) as running:
        node = NodeSettings(batch_size=4, max_new_tokens=LONG)
        asyncio.run(build_slim(SlimArchive(MODEL, "v1", node, release), ROOT / "handler", running.store / "llama.mar"))
        assert running.register("llama.mar")[0] == 200, running.log.read_text()[-4000:]
        yield running


def body(text: str, tokens: int, **more: Any) -> bytes:
    parameters = {"do_sample": False, "max_new_tokens": tokens, "repetition_penalty": 1.2}
    return json.dumps({"input": text, "parameters": parameters} | more).encode()


class Client:
    """One request on a connection of its own, read as it comes."""

    def __init__(self, torchserve: StockTorchServe, raw: bytes, **headers: str) -> None:
        self._connection = http.client.HTTPConnection(urllib.parse.urlsplit(torchserve.inference).netloc, timeout=120)
        told = {name.replace("_", "-"): value for name, value in headers.items()} | {"Content-Type": "application/json"}
        self._connection.request("POST", f"/predictions/{MODEL}", raw, told)
        self.answer = self._connection.getresponse()

    def events(self) -> Iterator[dict[str, Any]]:
        for line in self.answer:
            if line.startswith(b"data: "):
                yield json.loads(line[6:])

    def hang_up(self) -> None:
        self.answer.close()
        self._connection.close()


def tokens_of_those_who_left(torchserve: StockTorchServe) -> list[int]:
    found = re.findall(r"a client is gone: request \S+ leaves the batch after (\d+) tokens", torchserve.log.read_text())
    return [int(each) for each in found]


@pytest.fixture
def left(torchserve: StockTorchServe) -> Callable[[], int]:
    """Waits for a request to be dropped and says how many tokens it had. TorchServe asks the worker for nothing while nobody waits,
    and so tells it of the one that left together with the next that comes."""
    before = len(tokens_of_those_who_left(torchserve))

    def wait() -> int:
        assert torchserve.predict(MODEL, body("A", 1))[0] == 200
        wait_for(lambda: len(tokens_of_those_who_left(torchserve)) > before, "the worker to drop the request", 30)
        return tokens_of_those_who_left(torchserve)[-1]

    return wait


def test_requests_join_a_running_one_and_are_answered_while_it_runs(
    torchserve: StockTorchServe, left: Callable[[], int]
) -> None:
    """A static batch would have them wait for its end. Five for three places, a bad one and a stream among them."""
    bodies = [body(f"The weights {number}", 5 * number) for number in (1, 2, 3)]
    alone = [torchserve.predict(MODEL, each)[1] for each in bodies]
    running = Client(torchserve, body("A release", LONG, stream=True))
    events = running.events()
    first = next(events)
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(torchserve.predict, MODEL, each) for each in bodies]
        bad = pool.submit(torchserve.predict, MODEL, body("x", 5, parameters={"top_k": -1}))
        stream = pool.submit(lambda: list(Client(torchserve, body("The weights 2", 10, stream=True)).events()))
        assert [answer.result() for answer in answers] == [(200, text) for text in alone]
        assert bad.result()[0] == 400
        end = stream.result()[-1]
    assert end["generated_text"] == json.loads(alone[1])[0]["generated_text"]
    assert (end["finish_reason"], end["generated_tokens"]) == ("length", 10)
    assert first["token"] and next(events)["token"], "the long one still runs"
    running.hang_up()
    assert left() < LONG


def test_a_stream_whose_client_goes_away_leaves_within_two_steps(
    torchserve: StockTorchServe, left: Callable[[], int]
) -> None:
    """TorchServe sees it when it hands on the next piece, and asks no more. What it has not seen yet is counted by a witness: a
    stream in the same batch, whose pieces after the hanging up are counted until the worker says that the other is gone."""
    client = Client(torchserve, body("A release", LONG, stream=True))
    next(client.events())
    witness = Client(torchserve, body("A release", LONG, stream=True))
    pieces = witness.events()
    for _ in range(20):
        next(pieces)
    gone = len(tokens_of_those_who_left(torchserve))
    client.hang_up()
    steps = 0
    while len(tokens_of_those_who_left(torchserve)) == gone:
        next(pieces)
        steps += 1
    assert steps <= 2 + IN_FLIGHT
    witness.hang_up()
    assert left() > 20, "the witness leaves with the next that comes"


def test_a_whole_answer_whose_client_goes_away_leaves_too(torchserve: StockTorchServe, left: Callable[[], int]) -> None:
    client = Client(torchserve, body("A release", LONG), x_weightless_early="1")
    assert client.answer.status == 200 and client.answer.headers["X-Weightless-Late"] == "1"
    client.hang_up()
    assert left() < 30


def test_a_whole_answer_with_an_early_head_brings_its_status_and_headers_along(torchserve: StockTorchServe) -> None:
    raw = body("The weights", 12)
    plain = Client(torchserve, raw)
    assert plain.answer.headers["X-Weightless-Generated-Tokens"] == "12"
    assert "X-Weightless-Late" not in plain.answer.headers
    early = Client(torchserve, raw, x_weightless_early="1").answer
    line, _, rest = early.read().partition(b"\n")
    assert rest == plain.answer.read()
    assert json.loads(line)["status"] == 200
    assert json.loads(line)["headers"]["X-Weightless-Generated-Tokens"] == "12"


def test_a_killed_worker_leaves_nobody_hanging_and_comes_back(torchserve: StockTorchServe) -> None:
    running = Client(torchserve, body("A release", LONG, stream=True))
    events = running.events()
    next(events)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(torchserve.predict, MODEL, body("A release", LONG))
        for _ in range(100):
            next(events)
        [(_, text)] = [torchserve.call(f"{torchserve.management}/models/{MODEL}")]
        [worker] = json.loads(text)[0]["workers"]
        psutil.Process(worker["pid"]).kill()
        assert waiting.result(timeout=60)[0] in (500, 507), "TorchServe calls a killed worker out of memory"
    with pytest.raises((http.client.HTTPException, ValueError, StopIteration, OSError)):
        for _ in range(LONG):
            next(events)
    wait_for(lambda: torchserve.predict(MODEL, body("A", 2))[0] == 200, "the worker to come back", 60)
