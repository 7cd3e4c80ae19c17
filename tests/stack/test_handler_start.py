"""A worker's start against a real MinIO, in this process: what it fetches, loads, links and writes down, and how it fails."""

import contextlib
import json
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from minio_handler import MinioModifiedHandler
from seeding.samples import KNOWN
from tasks import text_generation
from tasks.shared.loading import load_tokenizer
from ts.context import Context
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl

from serve.zygote.tokenizers import hold
from tests.published import publish
from tests.services import MinioServer, free_port, running_minio, wait_for
from tests.torchserve_wire import METRICS_FILE
from weightless import held
from weightless.errors import InvalidRelease, NotEnoughDisk, ReleaseNotFound, SettingsError, StoreUnavailable
from weightless.held import tokenizer_key
from weightless.locks import locked
from weightless.release import Release

KNOWN_V1 = KNOWN["falcon-tiny"]


class Start:
    """A worker-to-be: its cache, its model_dir and its ledger."""

    def __init__(self, folder: Path, server: MinioServer, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._monkeypatch = folder, monkeypatch
        self.model_dir, self.ledger_dir, self.cache_dir = folder / "model_dir", folder / "ledger", folder / "cache"
        self.model_dir.mkdir()
        self.point_at(server.environment)
        monkeypatch.setenv("CACHE_DIR", str(self.cache_dir))

    def point_at(self, environment: dict[str, str]) -> None:
        for name, value in environment.items():
            self._monkeypatch.setenv(name, value)

    def run(self, release: Release | None, model: str = "falcon-tiny", **config: Any) -> MinioModifiedHandler:
        """`release` None: follow the alias."""
        pin = {"release": release.name, "digest": release.digest} if release else {"release": "serving"}
        section = {"model": model, "ledger_dir": str(self.ledger_dir), "node": {"workers": 1}} | pin | config
        return self.raw({"weightless": section, "responseTimeout": 60})

    def raw(self, config: Any) -> MinioModifiedHandler:
        metrics = MetricsCacheYamlImpl(config_file_path=str(METRICS_FILE))
        metrics.initialize_cache()
        metrics.set_request_ids("a-load")
        metrics.model_name = "falcon-tiny"
        handler = MinioModifiedHandler()
        handler.initialize(Context("falcon-tiny", str(self.model_dir), {}, 1, None, "0.12", True, metrics, config))
        return handler

    @property
    def ledger(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.ledger_dir / f"{os.getpid()}.json").read_text())
        return found


@pytest.fixture
def start(tmp_path: Path, minio_server: MinioServer, monkeypatch: pytest.MonkeyPatch) -> Start:
    return Start(tmp_path, minio_server, monkeypatch)


def says(handler: MinioModifiedHandler, text: str = KNOWN_V1.prompt) -> str:
    body = {"input": text, "parameters": {"do_sample": False, "max_new_tokens": 40}}
    answer: Any = handler.task.run([handler.task.parse(body)], lambda events: None)[0]
    said: str = answer[0]["generated_text"]
    return said


def test_a_pinned_release_is_fetched_loaded_linked_and_written_down(
    start: Start, minio_server: MinioServer, samples: Path, caplog: pytest.LogCaptureFixture
) -> None:
    release = publish(minio_server, "falcon-tiny", samples / "falcon-tiny")
    with caplog.at_level("INFO"):
        handler = start.run(release)
    assert handler.initialized
    assert says(handler) == KNOWN_V1.sentence
    for file in release.content.files:
        assert (start.model_dir / file.path).is_symlink()
        assert (start.model_dir / file.path).stat().st_size == file.size
    ledger = start.ledger
    assert {"resolve", "fetch", "link", "import", "load"} <= set(ledger["phases"])
    assert ledger["bytes_from_store"] == release.content.size
    assert 0 < ledger["verify_s"] < ledger["phases"]["fetch"]
    assert ledger["fetch_mib_s"] * ledger["phases"]["fetch"] >= release.content.size / 2**20
    assert (ledger["stale"], ledger["device"], ledger["dtype"], ledger["task"]) == (
        False,
        "cpu",
        "float32",
        "text-generation",
    )
    assert "WeightlessStartFetch.Milliseconds:" in caplog.text
    assert '{"weightless":"start","model":"falcon-tiny"' in caplog.text
    lists = start.cache_dir / "unsynced"
    wait_for(
        lambda: not any("." in path.name for path in lists.iterdir()), "the fetched files to be synced to the disk"
    )
    again = start.run(release)
    assert says(again) == KNOWN_V1.sentence
    assert start.ledger["bytes_from_store"] == 0, "a second worker must move no bytes"


def test_the_tokenizer_is_loaded_while_the_weights_are_fetched(
    start: Start, minio_server: MinioServer, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = publish(minio_server, "falcon-tiny", samples / "falcon-tiny")
    partials = start.cache_dir / "partial"
    partials.mkdir(parents=True)
    weights = [file for file in release.content.files if file.path.endswith(".safetensors")]
    seen: list[set[str]] = []
    prepared = threading.Event()

    def prepare(folder: Path, settings: Any, node: Any) -> Any:
        tokenizer = load_tokenizer(folder, False)
        seen.append({path.name for path in folder.iterdir() if path.exists()})
        prepared.set()
        return tokenizer

    monkeypatch.setattr(text_generation, "prepare", prepare)
    with ThreadPoolExecutor(1) as threads:
        with contextlib.ExitStack() as somebody_else:  # fetches the weights, and is in no hurry
            for file in weights:
                somebody_else.enter_context(locked(partials / file.blake3))
            starting = threads.submit(start.run, release)
            assert prepared.wait(60), "the tokenizer must not wait for the weights"
        handler = starting.result()
    assert seen == [{".weightless.json", *(file.path for file in release.content.files if file not in weights)}]
    assert says(handler) == KNOWN_V1.sentence
    phases, within = start.ledger["phases"], start.ledger["during_fetch"]
    assert 0 < within <= phases["fetch"]
    again = start.run(release)
    assert says(again) == KNOWN_V1.sentence
    assert "during_fetch" not in start.ledger, "nothing is fetched that could be waited for"


def test_a_tokenizer_that_the_zygote_holds_is_taken_and_one_of_other_files_is_not(
    start: Start, minio_server: MinioServer, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = publish(minio_server, "falcon-tiny", samples / "falcon-tiny")
    monkeypatch.delitem(sys.modules, held.MODULE, raising=False)
    monkeypatch.setattr(text_generation, "prepare", lambda *_: pytest.fail("it is held: nothing is left to parse"))
    key = tokenizer_key(release)
    assert key is not None
    assert hold({key: str(samples / "falcon-tiny")}) == []
    for _ in ("cold", "warm"):
        assert says(start.run(release)) == KNOWN_V1.sentence
        assert start.ledger["tokenizer"] == "held by the zygote"

    monkeypatch.undo()
    start.point_at(minio_server.environment | {"CACHE_DIR": str(start.cache_dir)})
    folder = tmp_path / "folder"
    shutil.copytree(samples / "falcon-tiny", folder)
    config = folder / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"clean_up_tokenization_spaces": True}))
    other = publish(minio_server, "falcon-tiny", folder)
    assert says(start.run(other)) == KNOWN_V1.sentence
    assert "tokenizer" not in start.ledger
    start.run(release, cache_dir=str(tmp_path / "own"))
    assert "tokenizer" not in start.ledger, (
        "a start with a cache of its own is measured on a node that never had the release"
    )
    hold({})


def test_a_broken_tokenizer_fails_the_load_and_not_the_fetch(
    start: Start, minio_server: MinioServer, samples: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    shutil.copytree(samples / "falcon-tiny", folder)
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    release = publish(minio_server, "falcon-tiny", folder)
    for _ in ("cold", "warm"):
        with pytest.raises(KeyError, match="added_tokens"):
            start.run(release)
        assert start.ledger["failed"] == "load"


def test_an_archive_that_follows_the_alias_serves_what_it_points_at(
    start: Start, minio_server: MinioServer, samples: Path
) -> None:
    publish(minio_server, "falcon-tiny", samples / "falcon-tiny")
    second = publish(minio_server, "falcon-tiny", samples / "falcon-tiny-v2", promote=False)
    assert says(start.run(None)) == KNOWN_V1.sentence
    assert (start.ledger["release"], start.ledger["resolved"]) == ("serving", "v1")
    publish(minio_server, "falcon-tiny", samples / "falcon-tiny-v2")
    assert says(start.run(None)) == KNOWN["falcon-tiny-v2"].sentence
    assert says(start.run(second)) == KNOWN["falcon-tiny-v2"].sentence


def test_with_the_store_away_a_cached_release_starts_and_says_it_is_stale(
    tmp_path: Path, start: Start, samples: Path
) -> None:
    with running_minio(tmp_path / "minio") as server:
        server.clean()
        start.point_at(server.environment)
        release = publish(server, "falcon-tiny", samples / "falcon-tiny")
        start.run(release)
    for pin in (release, None):
        assert says(start.run(pin)) == KNOWN_V1.sentence
        assert start.ledger["stale"] is True
    other = Release.make("v2", release.content.model_copy(update={"created": "2026-11-23T00:00:00Z"}), release.location)
    with pytest.raises(StoreUnavailable, match="no complete copy of release v2 of falcon-tiny"):
        start.run(other)


def test_with_the_store_away_and_nothing_cached_the_start_fails_and_says_why(
    start: Start, minio_server: MinioServer
) -> None:
    start.point_at({"S3_ENDPOINT": f"http://127.0.0.1:{free_port()}"})
    with pytest.raises(
        StoreUnavailable, match=r"cannot be reached .*; and this node has no complete copy of any release"
    ):
        start.run(None)
    assert start.ledger["error"].startswith("StoreUnavailable: ")
    assert start.ledger["failed"] == "resolve"


def test_an_unknown_release_and_a_replaced_manifest_fail(
    start: Start, minio_server: MinioServer, samples: Path
) -> None:
    release = publish(minio_server, "falcon-tiny", samples / "falcon-tiny")
    with pytest.raises(ReleaseNotFound, match="v7"):
        start.run(release.model_copy(update={"name": "v7"}))
    with pytest.raises(InvalidRelease, match="required digest blake3:0000"):
        start.run(release.model_copy(update={"digest": "blake3:" + "0" * 64}))
    assert not (start.model_dir / "config.json").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "required a section `weightless`, found none"),
        ({"weightless": {"release": "v1"}}, "weightless.model: required a string, found None"),
        ({"weightless": {"model": "m", "release": 1}}, "weightless.release: required a string, found 1"),
        ({"weightless": {"model": "m", "release": "v1"}}, "weightless.digest: required for release v1"),
        ({"weightless": {"model": "m", "release": "latest"}}, "release 'latest': required v1, v2"),
    ],
)
def test_an_archive_that_names_no_release_fails(start: Start, config: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        start.raw(config)


def test_a_models_code_does_not_come_onto_the_import_path(
    start: Start, minio_server: MinioServer, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TorchServe puts model_dir on PYTHONPATH: a file json.py among the weights would be imported by everything."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (samples / "falcon-tiny").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "json.py").write_text("raise SystemExit")
    (folder / "minio_handler.py").write_text("raise SystemExit")
    (start.model_dir / "config.json").write_text("the archive's own")
    release = publish(minio_server, "falcon-tiny", folder)
    assert says(start.run(release)) == KNOWN_V1.sentence
    linked = {path.name for path in start.model_dir.iterdir()}
    assert "tokenizer.json" in linked
    assert not linked & {"json.py", "minio_handler.py"}
    assert (start.model_dir / "config.json").read_text() == "the archive's own"
    monkeypatch.setenv("ALLOW_REMOTE_CODE", "1")
    start.run(release)
    assert (start.model_dir / "json.py").is_symlink()


def test_a_release_of_an_unknown_task_fails_naming_the_known_ones(
    start: Start, minio_server: MinioServer, samples: Path
) -> None:
    release = publish(minio_server, "falcon-tiny", samples / "falcon-tiny", task="juggling")
    with pytest.raises(ValueError, match=r"task 'juggling': required one of embeddings, .*, text-generation"):
        start.run(release)


def test_the_files_in_use_are_kept_while_the_worker_lives(
    start: Start, minio_server: MinioServer, samples: Path
) -> None:
    first = publish(minio_server, "falcon-tiny", samples / "falcon-tiny")
    second = publish(minio_server, "falcon-tiny", samples / "falcon-tiny-v2")
    handler = start.run(first)
    start.point_at({"CACHE_MAX_BYTES": str(second.content.size)})
    with pytest.raises(NotEnoughDisk, match="left beside the releases in use"):
        start.run(second)
    assert all((start.model_dir / file.path).exists() for file in first.content.files)
    assert says(handler) == KNOWN_V1.sentence
    handler._lease.close()  # the worker ends
    assert says(start.run(second)) == KNOWN["falcon-tiny-v2"].sentence
    assert not all((start.model_dir / file.path).exists() for file in first.content.files)
