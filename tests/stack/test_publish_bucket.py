"""Publication of what lies in the bucket already: that it is the folder that somebody uploaded there, whole and at rest."""

from pathlib import Path

import pytest

from tests.seeding import MODEL, SETTINGS, SHARD, change, contents, held, seed
from tests.services import MinioServer
from weightless.errors import Conflict, InvalidFolder
from weightless.publish import publish_bucket, visible
from weightless.store import Store


def upload_all(server: MinioServer, folder: Path) -> None:
    for path, body in contents(folder).items():
        server.put("models", f"{MODEL}/{path}", body)


def test_what_lies_in_the_bucket_becomes_a_release(minio_server: MinioServer, store: Store, folder: Path) -> None:
    upload_all(minio_server, folder)
    minio_server.put("models", f"{MODEL}/.git/HEAD", b"x")
    minio_server.put("models", f"{MODEL}/gone.json", b"{}")
    minio_server.client().remove_object("models", f"{MODEL}/gone.json")
    seeded = seed(minio_server, MODEL, "bucket")
    assert (seeded.release, seeded.uploaded) == ("v1", 0)
    assert held(store, store.serving(MODEL)) == contents(folder)
    assert seed(minio_server, MODEL, "bucket").new is False
    change(folder / SHARD)
    minio_server.put("models", f"{MODEL}/{SHARD}", (folder / SHARD).read_bytes())
    assert seed(minio_server, MODEL, "bucket").release == "v2"
    assert held(store, store.serving(MODEL)) == contents(folder)


def test_a_folder_and_the_bucket_that_it_was_uploaded_to_are_one_release(
    minio_server: MinioServer, folder: Path
) -> None:
    first = seed(minio_server, MODEL, folder)
    second = seed(minio_server, MODEL, "bucket")
    assert (second.release, second.new) == (first.release, False)


def test_an_incomplete_folder_in_the_bucket_is_refused(minio_server: MinioServer, store: Store, folder: Path) -> None:
    upload_all(minio_server, folder)
    minio_server.put("models", f"{MODEL}/{SHARD}", (folder / SHARD).read_bytes()[:-10])
    with pytest.raises(
        InvalidFolder, match=rf"models/{MODEL}: {SHARD}: required 952080 bytes by its header, found 952070"
    ):
        seed(minio_server, MODEL, "bucket")
    minio_server.client().remove_object("models", f"{MODEL}/{SHARD}")
    with pytest.raises(InvalidFolder, match=rf"missing {SHARD}"):
        seed(minio_server, MODEL, "bucket")
    assert store.releases(MODEL) == []
    with pytest.raises(InvalidFolder, match=r"required a model below nothing/, found nothing"):
        seed(minio_server, "nothing", "bucket")


def test_a_bucket_that_changes_while_it_is_read_is_not_published(
    minio_server: MinioServer, store: Store, folder: Path
) -> None:
    upload_all(minio_server, folder)
    versions = visible(store.object_versions(MODEL))
    minio_server.put("models", f"{MODEL}/{SHARD}", b"the next upload began")
    with pytest.raises(Conflict, match="changed while it was read"):
        publish_bucket(store, MODEL, versions, SETTINGS, {})
    assert store.releases(MODEL) == []
