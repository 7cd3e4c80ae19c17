"""A backup of a real MinIO and what comes back from it: a user would lose releases, or serve others than before."""

from pathlib import Path

from tests.commands import run
from tests.releases import publish, remove_alias
from tests.services import MinioServer
from weightless.release import Release


def test_a_backup_brings_back_the_same_releases_into_an_empty_store(
    minio_server: MinioServer, two: tuple[Release, Release], tmp_path: Path
) -> None:
    run(minio_server, "promote", "tiny", "v2", "--no-wait")
    saved = run(minio_server, "backup", str(tmp_path / "saved"), "--json")
    assert saved.status == 0, saved.err
    assert (saved.json["models"], saved.json["releases"]) == (1, 2)
    # The weights are in both releases and came once.
    assert saved.json["fetched"] == 40 * 256 + len("{}") + len('{"second": true}')
    assert run(minio_server, "backup", str(tmp_path / "saved"), "--json").json["fetched"] == 0

    minio_server.clean()
    assert run(minio_server, "restore", str(tmp_path / "saved"), "--json").json == {
        "releases": ["tiny v1", "tiny v2"],
        "aliases": ["tiny"],
    }
    store = minio_server.store()
    assert [store.release("tiny", name).digest for name in ("v1", "v2")] == [release.digest for release in two]
    assert store.serving("tiny").name == "v2"
    events = run(minio_server, "history", "tiny", "--json").json
    assert [(event["release"], event["by"]) for event in events] == [
        ("v2", "anna@desk (restored)"),
        ("v1", "tests (restored)"),
    ]
    for release in (store.release("tiny", "v1"), store.release("tiny", "v2")):
        for file in release.content.files:
            with store.open(release.key(file), release.version(file)) as body:
                assert len(body.read()) == file.size

    again = run(minio_server, "restore", str(tmp_path / "saved"))
    assert again.out == "restored 0 releases (2 were there already) and 0 aliases\n"


def test_a_running_canary_comes_back_with_the_release_beside_it(
    minio_server: MinioServer, two: tuple[Release, Release], tmp_path: Path
) -> None:
    run(minio_server, "canary", "tiny", "v2", "--percent", "10", "--no-wait")
    run(minio_server, "canary", "tiny", "v2", "--percent", "25", "--no-wait")
    assert run(minio_server, "backup", str(tmp_path / "saved")).status == 0
    minio_server.clean()
    assert run(minio_server, "restore", str(tmp_path / "saved"), "--json").json["aliases"] == ["tiny"]
    now = minio_server.store().alias_history("tiny")[0].alias
    assert now is not None and now.canary is not None
    assert (now.release, now.canary.release, now.canary.percent) == ("v1", "v2", 25)
    assert now.canary.digest == two[1].digest
    events = run(minio_server, "history", "tiny", "--json").json
    assert [event["canary"] and event["canary"]["percent"] for event in events] == [25, 10, None]
    assert run(minio_server, "restore", str(tmp_path / "saved"), "--json").json == {"releases": [], "aliases": []}


def test_a_restore_leaves_the_alias_that_is_there(
    minio_server: MinioServer, two: tuple[Release, Release], tmp_path: Path
) -> None:
    assert run(minio_server, "backup", str(tmp_path / "saved")).status == 0
    run(minio_server, "promote", "tiny", "v2", "--no-wait")
    assert run(minio_server, "restore", str(tmp_path / "saved"), "--json").json == {"releases": [], "aliases": []}
    assert minio_server.store().serving("tiny").name == "v2"


def test_a_restore_that_was_cut_off_in_a_history_goes_on_with_it(
    minio_server: MinioServer, two: tuple[Release, Release], tmp_path: Path
) -> None:
    run(minio_server, "promote", "tiny", "v2", "--no-wait")
    assert run(minio_server, "backup", str(tmp_path / "saved")).status == 0
    minio_server.clean()
    assert run(minio_server, "restore", str(tmp_path / "saved")).status == 0
    store = minio_server.store()
    minio_server.client().remove_object(
        "releases", "tiny/serving", version_id=store.alias_history("tiny")[0].version_id
    )
    assert store.serving("tiny").name == "v1", "cut off before its last value was written"
    assert run(minio_server, "restore", str(tmp_path / "saved"), "--json").json["aliases"] == ["tiny"]
    assert store.serving("tiny").name == "v2"
    assert len(store.alias_history("tiny")) == 2


def test_a_restore_over_other_releases_writes_nothing(
    minio_server: MinioServer, two: tuple[Release, Release], tiny: Path, tmp_path: Path
) -> None:
    assert run(minio_server, "backup", str(tmp_path / "saved")).status == 0
    minio_server.clean()
    (tiny / "config.json").write_text('{"other": true}')
    other = publish(minio_server, "tiny", tiny)
    shown = run(minio_server, "restore", str(tmp_path / "saved"))
    assert shown.status == 1
    assert f"release v1 of tiny: the store has another one ({other.digest}); nothing was restored" in shown.err
    assert minio_server.store().releases("tiny") == ["v1"]


def test_a_damaged_backup_restores_nothing(
    minio_server: MinioServer, two: tuple[Release, Release], tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    assert run(minio_server, "backup", str(saved)).status == 0
    minio_server.clean()
    largest = max((saved / "blobs/blake3").iterdir(), key=lambda path: path.stat().st_size)
    largest.write_bytes(b"\0" * largest.stat().st_size)
    shown = run(minio_server, "restore", str(saved))
    assert shown.status == 1
    assert "is not the file that the release names; nothing was published" in shown.err
    assert minio_server.store().models() == []
    largest.unlink()
    assert "found files missing; nothing was restored" in run(minio_server, "restore", str(saved)).err
    (saved / "backup.json").unlink()
    assert "found no backup.json in it" in run(minio_server, "restore", str(saved)).err


def test_a_model_that_was_taken_out_of_service_stays_out_of_it(
    minio_server: MinioServer, two: tuple[Release, Release], tmp_path: Path
) -> None:
    run(minio_server, "promote", "tiny", "v2", "--no-wait")
    remove_alias(minio_server, "tiny")
    assert run(minio_server, "backup", str(tmp_path / "saved")).status == 0
    minio_server.clean()
    assert run(minio_server, "restore", str(tmp_path / "saved"), "--json").json["aliases"] == ["tiny"]
    store = minio_server.store()
    assert store.releases("tiny") == ["v1", "v2"]
    assert store.alias("tiny") is None
    events = run(minio_server, "history", "tiny", "--json").json
    assert [event["release"] for event in events] == [None, "v2", "v1"]
    assert run(minio_server, "restore", str(tmp_path / "saved"), "--json").json == {"releases": [], "aliases": []}
    run(minio_server, "rollback", "tiny", "--no-wait")
    assert store.serving("tiny").name == "v2"
