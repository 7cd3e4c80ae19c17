"""Four cold workers of one model at once, in an unchanged TorchServe: what a user would lose is three quarters of the network."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from seeding.samples import KNOWN

from serve.agent.archive import SlimArchive, build_slim
from tests.fetching import MIB, some_bytes
from tests.proxies import Toxiproxy
from tests.releases import publish
from tests.services import ROOT, MinioServer, wait_for
from tests.stock_torchserve import StockTorchServe, running_torchserve
from weightless.modelfile import NodeSettings
from weightless.release import Release

MODEL = "falcon-tiny"
WORKERS = 4


def test_four_cold_workers_at_once_are_one_download_by_minios_own_count(
    minio_server: MinioServer, toxiproxy: Toxiproxy, samples: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(samples / MODEL, tmp_path / MODEL))
    (folder / "extra.json").write_bytes(some_bytes(24 * MIB, 1))
    release, store = publish(minio_server, MODEL, folder), minio_server.store()
    toxiproxy.add(
        "bandwidth", rate=3000
    )  # KB/s: the fetch lasts while all four arrive, none of which starts in one moment
    environment = minio_server.environment | {"S3_ENDPOINT": toxiproxy.endpoint, "CACHE_DIR": str(tmp_path / "cache")}
    with running_torchserve(tmp_path / "torchserve", environment) as torchserve:
        archive = build(torchserve, release)
        before = store.bytes_sent("models")
        status, said = torchserve.register(archive, initial_workers=WORKERS)
        assert status == 200, said + torchserve.log.read_text()[-4000:]
        assert store.bytes_sent("models") - before == release.content.size
        wait_for(lambda: len(starts(torchserve)) == WORKERS, "each worker's word in TorchServe's log", 20)
        told = starts(torchserve)
        assert sum(start["bytes_from_store"] for start in told) == release.content.size
        assert sum(start["phases"]["fetch"] > 1 for start in told) > 1, (
            "one after another: nobody waited for the download"
        )
        body = {"input": KNOWN[MODEL].prompt, "parameters": {"do_sample": False}}
        for _ in range(WORKERS):
            status, said = torchserve.predict(MODEL, json.dumps(body).encode())
            assert (status, json.loads(said)) == (200, [{"generated_text": KNOWN[MODEL].sentence}])


def build(torchserve: StockTorchServe, release: Release) -> str:
    archive = torchserve.store / f"{MODEL}.mar"
    node = NodeSettings(workers=WORKERS, batching="static", response_timeout_s=60)
    asyncio.run(build_slim(SlimArchive(MODEL, "v1", node, release), ROOT / "handler", archive))
    return archive.name


def starts(torchserve: StockTorchServe) -> list[dict[str, Any]]:
    """The workers' ledgers."""
    lines = torchserve.log.read_text().splitlines()
    return [json.loads(line[line.index("{") :]) for line in lines if '"weightless":"start"' in line]
