"""Pruning where object lock keeps some versions: what a user would lose is a clear word on what stays and why, or, if half of a
release went, the release."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from minio.commonconfig import GOVERNANCE
from minio.retention import Retention
from seeding.prune import prune

from tests.seeding import broken, copy, seed, seed_settings
from tests.services import MinioServer, running_minio
from weightless.errors import ObjectLocked

MODEL = "falcon-tiny"


@pytest.fixture
def locking_minio(tmp_path: Path) -> Iterator[MinioServer]:
    """A MinIO whose buckets were made with object lock."""
    with running_minio(tmp_path / "minio") as server:
        for bucket in ("models", "releases"):
            server.client().make_bucket(bucket, object_lock=True)
        yield server


def test_what_is_locked_stays_whole_and_is_named_and_all_else_goes(
    locking_minio: MinioServer, samples: Path, tmp_path: Path
) -> None:
    store, client = locking_minio.store(), locking_minio.client()
    folder = copy(samples / MODEL, tmp_path / "folder")
    for number in range(5):
        (folder / "extra.json").write_text(f'{{"number": {number}}}')
        seed(locking_minio, MODEL, folder)
    extra = f"{MODEL}/extra.json"
    retained = store.release(MODEL, "v1").location.versions[extra]
    day = Retention(GOVERNANCE, datetime.now(UTC) + timedelta(days=1))
    client.set_object_retention("models", extra, day, version_id=retained)
    held = store.release(MODEL, "v2")
    manifest = f"{MODEL}/v2.json"
    client.enable_object_legal_hold("releases", manifest, version_id=held.manifest_version)

    def pruned() -> str:
        with pytest.raises(ObjectLocked) as caught:
            prune(locking_minio.settings, seed_settings(), MODEL, 1, timedelta(0))
        return str(caught.value)

    said = pruned()
    assert "found 2 under object lock" in said
    assert f"releases/{manifest} (version {held.manifest_version})" in said
    assert f"models/{extra} (version {retained})" in said
    assert "all others are deleted" in said
    assert store.releases(MODEL) == ["v2", "v4", "v5"], "v4 is what a rollback would serve"
    assert not broken(store, held), "a release that stays, stays whole"
    wanted = {store.release(MODEL, name).location.versions[extra] for name in ("v2", "v4", "v5")} | {retained}
    assert {one.version_id for one in store.object_versions(MODEL) if one.key == extra} == wanted

    client.disable_object_legal_hold("releases", manifest, version_id=held.manifest_version)
    said = pruned()
    assert "found 1 under object lock" in said
    assert retained in said
    assert store.releases(MODEL) == ["v4", "v5"]
