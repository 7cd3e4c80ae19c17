"""The buckets as the library sees them, on a real MinIO: what would mix up releases or aliases if it were wrong."""

import json

import pytest

from tests.services import MinioServer
from weightless.errors import AccessDenied, Conflict, InvalidRelease, ModelNotFound, ReleaseNotFound, StoreUnavailable
from weightless.release import Alias, Content, FileEntry, Location, Release, ReleaseSettings
from weightless.settings import StoreSettings
from weightless.store import Store


def a_release(server: MinioServer, name: str, body: bytes = b"{}") -> Release:
    version = server.put("models", "tiny/config.json", body)
    file = FileEntry(path="config.json", size=len(body), blake3="a" * 64, sha256="b" * 64)
    content = Content(
        model="tiny",
        created="2026-11-22T16:10:03Z",
        source={"folder": "here"},
        files=(file,),
        settings=ReleaseSettings(task="text-generation"),
    )
    return Release.make(name, content, Location(bucket="models", versions={"tiny/config.json": version}))


def test_a_release_comes_back_as_it_was_written(minio_server: MinioServer, store: Store) -> None:
    written = store.put_release(a_release(minio_server, "v1"))
    assert written.manifest_version
    assert store.release("tiny", "v1", version_id=written.manifest_version, digest=written.digest) == written
    assert store.releases("tiny") == ["v1"]
    assert store.models() == ["tiny"]


def test_releases_are_in_order_of_their_numbers(minio_server: MinioServer, store: Store) -> None:
    for name in ("v10", "v2", "v1"):
        store.put_release(a_release(minio_server, name))
    assert store.releases("tiny") == ["v1", "v2", "v10"]


def test_a_release_cannot_be_written_twice(minio_server: MinioServer, store: Store) -> None:
    store.put_release(a_release(minio_server, "v1"))
    with pytest.raises(Conflict, match="v1 of tiny"):
        store.put_release(a_release(minio_server, "v1", b"{ }"))


def test_a_replaced_manifest_is_never_taken_for_the_release(minio_server: MinioServer, store: Store) -> None:
    first = store.put_release(a_release(minio_server, "v1"))
    store.put_alias("tiny", Alias.of(first), expected=None)
    other = a_release(minio_server, "v1").model_dump(mode="json")
    impostor = a_release(minio_server, "v1").content.model_copy(update={"created": "2020-01-01T00:00:00Z"})
    forged = Release.make("v1", impostor, Location(**other["location"]))
    minio_server.put("releases", "tiny/v1.json", forged.to_json())
    assert store.serving("tiny") == first  # the alias names the version
    with pytest.raises(InvalidRelease, match="replaced"):
        store.release("tiny", "v1", digest=first.digest)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda doc: doc["content"]["files"][0].update(path="../config.json"),
        lambda doc: doc["content"]["files"][0].update(size=-1),
        lambda doc: doc["content"].update(files=[]),
        lambda doc: doc["location"].update(versions={}),
        lambda doc: doc.update(schema=2),
        lambda doc: doc.update(digest="blake3:" + "0" * 64),
    ],
)
def test_a_spoilt_manifest_is_refused(minio_server: MinioServer, store: Store, spoil) -> None:  # type: ignore[no-untyped-def]
    document = json.loads(a_release(minio_server, "v1").to_json())
    spoil(document)
    minio_server.put("releases", "tiny/v1.json", json.dumps(document).encode())
    with pytest.raises(InvalidRelease, match="v1"):
        store.release("tiny", "v1")


def test_two_people_moving_the_alias_at_once(minio_server: MinioServer, store: Store) -> None:
    first, second = (store.put_release(a_release(minio_server, name)) for name in ("v1", "v2"))
    store.put_alias("tiny", Alias.of(first), expected=None)
    with pytest.raises(Conflict):
        store.put_alias("tiny", Alias.of(second), expected=None)
    seen = store.alias("tiny")
    store.put_alias("tiny", Alias.of(second), expected=seen)
    with pytest.raises(Conflict):
        store.put_alias("tiny", Alias.of(first), expected=seen)
    assert store.serving("tiny").name == "v2"
    assert [version.alias.release for version in store.alias_history("tiny") if version.alias] == ["v2", "v1"]


def test_a_change_of_any_alias_shows_in_one_listing(minio_server: MinioServer, store: Store) -> None:
    first = store.put_release(a_release(minio_server, "v1"))
    assert store.alias_etags() == {}
    store.put_alias("tiny", Alias.of(first, by="ada"), expected=None)
    before = store.alias_etags()
    version = store.alias("tiny")
    assert version and before == {"tiny": version.etag}
    store.put_alias("tiny", Alias.of(first, by="bob"), expected=version)
    assert store.alias_etags() != before


def test_what_does_not_exist_is_named_with_what_does(minio_server: MinioServer, store: Store) -> None:
    assert store.alias("tiny") is None
    with pytest.raises(ModelNotFound, match="make seed MODEL=tiny"):
        store.release("tiny", "v1")
    store.put_release(a_release(minio_server, "v1"))
    with pytest.raises(ReleaseNotFound, match="there are v1"):
        store.release("tiny", "v7")
    with pytest.raises(ModelNotFound, match="promote one of v1"):
        store.serving("tiny")


def test_a_range_of_a_pinned_version_is_read(minio_server: MinioServer, store: Store) -> None:
    version = minio_server.put("models", "tiny/weights", b"0123456789")
    minio_server.put("models", "tiny/weights", b"abcdefghij")
    with store.open("tiny/weights", version, offset=2, length=3) as response:
        assert (response.status, response.read()) == (206, b"234")
    with store.open("tiny/weights", version) as response:
        assert response.read() == b"0123456789"


def test_wrong_keys_and_a_store_that_is_away(minio_server: MinioServer) -> None:
    wrong = StoreSettings.model_validate(
        {"s3_endpoint": minio_server.endpoint, "s3_access_key": "nobody", "s3_secret_key": "wrong-secret"}
    )
    with pytest.raises(AccessDenied, match="access key nobody"):
        Store(wrong).check()
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        Store(minio_server.settings_at("http://127.0.0.1:1")).check()


def test_minios_own_counter_counts_what_was_read(minio_server: MinioServer, store: Store) -> None:
    version = minio_server.put("models", "tiny/weights", b"x" * 3_000_000)
    before, of_models = store.bytes_sent(), store.bytes_sent("models")
    with store.open("tiny/weights", version) as response:
        assert len(response.read()) == 3_000_000
    assert 3_000_000 <= store.bytes_sent() - before < 3_100_000
    assert store.bytes_sent("models") - of_models == 3_000_000, "and nothing of another bucket, such as the aliases"
