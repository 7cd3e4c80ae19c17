"""Downloads from the hub, by the real client, from a small hub on loopback."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from seeding.hub import Hub, Snapshot, bytes_present

from tests.hub import LocalHub, repository, running_hub
from weightless.errors import FetchFailed, InvalidFolder, NotFound, VerificationFailed
from weightless.modelfile import HubSource

REPO = "maker/falcon-tiny"
SHARD = "model-00001-of-00002.safetensors"
SOURCE = HubSource(repo=REPO)


@pytest.fixture
def hub(samples: Path, tmp_path: Path) -> Iterator[LocalHub]:
    with running_hub(LocalHub({REPO: repository(samples / "falcon-tiny", tmp_path / "repo")})) as hub:
        yield hub


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def download(hub: LocalHub, folder: Path, token: str | None = None) -> tuple[Snapshot, int]:
    told: list[int] = []
    client = Hub(hub.endpoint, token)
    snapshot = client.snapshot(SOURCE, with_code=False)
    client.download(snapshot, folder, told.append)
    return snapshot, sum(told)


def test_the_commit_is_resolved_and_only_what_is_needed_comes(hub: LocalHub, samples: Path, tmp_path: Path) -> None:
    snapshot, told = download(hub, tmp_path / "download")
    assert snapshot.commit == hub.commit(REPO)
    assert contents(tmp_path / "download") == contents(samples / "falcon-tiny")
    assert told == snapshot.size == sum(map(len, contents(samples / "falcon-tiny").values()))
    assert not [path for path in hub.sent if path.endswith((".bin", ".py", ".md")) or "coreml" in path]


def test_code_comes_only_for_a_model_that_may_run_it(hub: LocalHub) -> None:
    chosen = {file.path for file in Hub(hub.endpoint, None).snapshot(SOURCE, with_code=True).files}
    assert "modeling_own.py" in chosen
    assert "coreml/config.json" not in chosen


def test_a_models_file_may_name_other_patterns(hub: LocalHub) -> None:
    source = HubSource(repo=REPO, patterns=("*.safetensors", "README.md"))
    assert {Path(file.path).suffix for file in Hub(hub.endpoint, None).snapshot(source, with_code=False).files} == {
        ".safetensors",
        ".md",
    }


def test_a_second_download_moves_no_file_again(hub: LocalHub, tmp_path: Path) -> None:
    snapshot, _ = download(hub, tmp_path / "download")
    hub.sent.clear()
    assert bytes_present(snapshot, tmp_path / "download") == snapshot.size
    _, told = download(hub, tmp_path / "download")
    assert hub.sent == {}
    assert told == snapshot.size, "progress must reach its end when everything is there"


def test_a_download_that_broke_off_goes_on_inside_the_file(hub: LocalHub, tmp_path: Path) -> None:
    """For Falcon-7B that is 10 GB not to be fetched twice: first a line that breaks, then a process that ends."""
    weights = os.urandom(45_000_000)
    (hub.repos[REPO] / SHARD).write_bytes(weights)
    hub.cut_after = 15_000_000  # the library writes 10 MB at a time
    folder = tmp_path / "download"
    client = Hub(hub.endpoint, None)
    snapshot = client.snapshot(SOURCE, with_code=False)
    moved: list[int] = []

    def stop_late(count: int) -> None:
        moved.append(count)
        if sum(moved) > 25_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.download(snapshot, folder, stop_late)
    assert hub.sent[SHARD] > hub.cut_after, "the line broke, and the same process went on"
    assert not (folder / SHARD).exists(), "no unfinished file may have its final name"
    kept = sum(path.stat().st_size for path in (folder / ".parts").iterdir())
    assert kept >= 10_000_000
    hub.cut_after = None
    hub.sent.clear()
    client.download(snapshot, folder, lambda count: None)
    assert (folder / SHARD).read_bytes() == weights
    assert hub.sent[SHARD] <= len(weights) - 10_000_000


def test_a_changed_repository_leaves_nothing_of_the_old_one(hub: LocalHub, samples: Path, tmp_path: Path) -> None:
    download(hub, tmp_path / "download")
    shutil.rmtree(hub.repos[REPO])
    shutil.copytree(samples / "minilm", hub.repos[REPO])
    download(hub, tmp_path / "download")
    assert contents(tmp_path / "download") == contents(samples / "minilm")


def test_a_flipped_bit_on_the_way_is_noticed(hub: LocalHub, tmp_path: Path) -> None:
    hub.flip = True
    with pytest.raises(VerificationFailed, match=r"safetensors .* required the digest that the hub names"):
        download(hub, tmp_path / "download")
    assert not (tmp_path / "download" / SHARD).exists()
    hub.flip = False
    download(hub, tmp_path / "download")


def test_a_private_repository_needs_the_token(hub: LocalHub, tmp_path: Path) -> None:
    hub.token = "hf_secret"
    with pytest.raises(NotFound, match="HF_TOKEN if it is private"):
        download(hub, tmp_path / "download")
    download(hub, tmp_path / "download", token="hf_secret")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (HubSource(repo="maker/nothing"), "no such repository, or a private one"),
        (HubSource(repo=REPO, revision="v9"), "required revision 'v9', found none"),
    ],
)
def test_what_does_not_exist_is_named(hub: LocalHub, source: HubSource, message: str) -> None:
    with pytest.raises(NotFound, match=message):
        Hub(hub.endpoint, None).snapshot(source, with_code=False)


def test_a_repository_without_safetensors_is_refused_before_anything_comes(hub: LocalHub) -> None:
    for shard in hub.repos[REPO].glob("*.safetensors*"):
        shard.unlink()
    with pytest.raises(InvalidFolder, match=r"required \*\.safetensors .* found pytorch_model-00001"):
        Hub(hub.endpoint, None).snapshot(SOURCE, with_code=False)
    assert hub.sent == {}


def test_a_hub_that_is_away_is_said(tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match=r"cannot be reached .*HTTPS_PROXY"):
        Hub("http://127.0.0.1:9", None).snapshot(SOURCE, with_code=False)


def test_two_downloads_into_one_folder_do_not_mix(hub: LocalHub, tmp_path: Path) -> None:
    client = Hub(hub.endpoint, None)
    snapshot = client.snapshot(SOURCE, with_code=False)
    refused: list[str] = []

    def second(count: int) -> None:
        if not refused:
            refused.append("")
            with pytest.raises(FetchFailed, match="another process is downloading"):
                Hub(hub.endpoint, None).download(snapshot, tmp_path / "download", lambda count: None)
            refused.append("refused")

    client.download(snapshot, tmp_path / "download", second)
    assert refused == ["", "refused"]
