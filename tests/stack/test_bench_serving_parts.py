"""The serving benchmark's parts on a real TorchServe and MinIO: the original handler, the bare model, the clients; then all of it.

Figures mean nothing at this size, but an arm that answers wrongly, or a client that counts wrongly, would make every ratio a lie.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from seeding.samples import KNOWN

from loadtest.bench import echo_handler, original, serving
from loadtest.bench.bare import Bare
from loadtest.bench.experiment import BenchFailed
from loadtest.bench.load import generation, requests, send
from loadtest.bench.node import Node
from tests.services import ROOT, MinioServer
from tests.stack.test_bench import bench
from tests.stock_torchserve import StockTorchServe, running_torchserve
from weightless.modelfile import NodeSettings

PROMPT, SENTENCE = KNOWN["falcon-tiny"].prompt, KNOWN["falcon-tiny"].sentence


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StockTorchServe]:
    """The stock TorchServe, where the benchmark's node has it: its store is <run>/baseline/store."""
    with running_torchserve(tmp_path_factory.mktemp("run") / "baseline", {}) as serve:
        yield serve


def node_of(stock: StockTorchServe, minio: MinioServer) -> Node:
    run = stock.store.parents[1]
    keys = run / "secrets" / "node"
    keys.mkdir(parents=True, exist_ok=True)
    (keys / "access_key").write_text(minio.access_key)
    (keys / "secret_key").write_text(minio.secret_key)
    ports = {
        name: url.rpartition(":")[2]
        for name, url in (
            ("BASELINE_INFERENCE_PORT", stock.inference),
            ("BASELINE_MANAGEMENT_PORT", stock.management),
        )
    }
    return Node(run, ports | {"MINIO_PORT": str(minio.port)})


def test_the_original_answers_each_of_many_users_rightly(
    stock: StockTorchServe, minio_server: MinioServer, samples: Path
) -> None:
    client = minio_server.client()
    for path in (samples / "falcon-tiny").iterdir():
        client.fput_object("models", f"falcon-tiny/{path.name}", str(path))
    with original.served(node_of(stock, minio_server), "falcon-tiny", "float32") as url:
        _, said = StockTorchServe.call(url, json.dumps(generation(PROMPT, 64)).encode(), "application/json")
        (answer,) = json.loads(said)
        assert answer["generated_text"] == SENTENCE
        bodies = [generation(PROMPT, number) for number in (1, 4, 2, 5)]
        assert [answer.count for answer in send(url, 3, bodies)] == [1, 4, 2, 5]
    with pytest.raises(BenchFailed, match="found 404"):
        send(url, 1, bodies)


def test_an_error_ends_the_load(stock: StockTorchServe) -> None:
    with pytest.raises(BenchFailed, match="required an answer, found 404"):
        send(f"{stock.inference}/predictions/nobody", 2, requests(4, stream=False))


def test_the_echo_client_gets_every_answer_of_a_real_torchserve(stock: StockTorchServe, tmp_path: Path) -> None:
    handler = str(echo_handler.__file__)
    command = [sys.executable, "-m", "model_archiver.model_packaging", "--model-name", "echo", "--version", "1.0"]
    subprocess.run([*command, "--handler", handler, "--export-path", str(stock.store)], check=True)
    assert stock.register("echo.mar")[0] == 200
    assert json.loads(stock.predict("echo", b'{"input": "x"}')[1]) == [{"generated_text": "x"}]
    port = stock.inference.rpartition(":")[2]
    client = [sys.executable, "-m", "loadtest.bench.echo_client", "127.0.0.1", port]
    told = subprocess.run([*client, "/predictions/echo", "8", "100"], check=True, cwd=ROOT, capture_output=True)
    found = json.loads(told.stdout)
    assert 0 < found["p50"] < found["seconds"]
    refused = subprocess.run([*client, "/predictions/nobody", "8", "100"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode != 0 and "required 200" in refused.stderr


def test_the_bare_model_generates_and_embeds(samples: Path) -> None:
    with Bare("generate", samples / "falcon-tiny", {"dtype": "float32"}) as bare:
        assert bare.threads >= 1
        seconds, tokens = bare.ask(generation(PROMPT, 5))
        assert seconds > 0 and tokens == 5
    with Bare("embed", samples / "minilm", NodeSettings().model_dump(mode="json")) as bare:
        assert bare.ask({"input": ["one", "two", "three"]})[1] == 3


def test_a_bare_model_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(BenchFailed, match=r"ended with status 1:\n(.|\n)*config"):
        Bare("embed", tmp_path, {})


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_experiment_gives_every_key_and_sample(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "serving", "--samples", "2", "--scale", "0.05")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert set(found["ratios"]) == {ratio.key for ratio in serving.EXPERIMENT.ratios}
    assert all(value > 0 for key, value in found["ratios"].items() if key != "door_added_ms"), found["ratios"]
    policies = {arm: facts["policy"] for arm, facts in found["facts"]["serving"]["served"].items()}
    assert policies == {slim.arm: slim.batching for slim in serving.SLIM}
    arms = [sample["arm"] for sample in found["samples"]]
    assert all(arms.count(f"{arm}, 16 users") == 1 for arm in (serving.ORIGINAL, *(s.arm for s in serving.SLIM)))
