"""Publication against a real MinIO with the real mc: what a folder becomes, and that no wrong release can come of it."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from seeding.mc import configured_mc
from seeding.prune import prune
from seeding.upload import McUploader

from tests.seeding import MODEL, SETTINGS, SHARD, broken, change, contents, copy, held, seed, seed_settings
from tests.services import MinioServer, tool
from weightless.errors import ModelNotFound, NotEnoughDisk, StoreError, VerificationFailed
from weightless.publish import Published, Source, Upload, Uploader, point_alias, publish_folder, visible
from weightless.release import Alias, Canary
from weightless.store import Store


def listing(store: Store) -> dict[str, bytes]:
    """The model's folder as anybody browses it."""
    found = {}
    for version in visible(store.object_versions(MODEL)):
        with store.open(version.key) as response:
            found[version.key.removeprefix(f"{MODEL}/")] = response.read()
    return found


def publish(server: MinioServer, folder: Path, wrap: Callable[[Uploader], Uploader] = lambda up: up) -> Published:
    """`publish_folder` with something between it and mc."""
    files = {path: len(body) for path, body in contents(folder).items()}
    with configured_mc(server.settings, tool("mc")) as mc:
        upload = wrap(McUploader(mc, "models"))
        return publish_folder(server.store(), MODEL, Source(folder, files), SETTINGS, {"folder": "x"}, upload)


# ---- what a folder becomes


def test_a_folder_becomes_a_release_that_is_served(minio_server: MinioServer, store: Store, folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref: refs/heads/main")
    seeded = seed(minio_server, MODEL, folder)
    release = store.serving(MODEL)
    assert (seeded.release, seeded.new, seeded.promoted, seeded.serving) == ("v1", True, True, "v1")
    assert seeded.digest == release.digest
    expected = {path: body for path, body in contents(folder).items() if not path.startswith(".git/")}
    assert held(store, release) == listing(store) == expected
    for file in release.content.files:
        assert file.sha256 == hashlib.sha256(expected[file.path]).hexdigest()
    assert release.content.settings.generation == {"max_length": 200, "top_k": 10, "do_sample": True}
    assert release.content.source == {"folder": "folder"}
    alias = store.alias(MODEL)
    assert alias is not None
    assert alias.alias is not None
    assert "@" in str(alias.alias.by), "the history says who moved the alias"


def test_seeding_twice_publishes_once(minio_server: MinioServer, store: Store, folder: Path) -> None:
    first = seed(minio_server, MODEL, folder)
    versions = store.object_versions(MODEL)
    second = seed(minio_server, MODEL, folder)
    assert (second.release, second.new, second.uploaded, second.promoted) == ("v1", False, 0, False)
    assert second.digest == first.digest
    assert store.releases(MODEL) == ["v1"]
    assert store.object_versions(MODEL) == versions
    assert len(store.alias_history(MODEL)) == 1


def test_only_a_changed_file_is_uploaded_also_when_size_and_time_hide_it(
    minio_server: MinioServer, store: Store, folder: Path
) -> None:
    seed(minio_server, MODEL, folder)
    change(folder / SHARD)
    seeded = seed(minio_server, MODEL, folder)
    assert (seeded.release, seeded.uploaded) == ("v2", (folder / SHARD).stat().st_size)
    first, second = store.release(MODEL, "v1"), store.release(MODEL, "v2")
    differing = {
        key for key in first.location.versions if first.location.versions[key] != second.location.versions[key]
    }
    assert differing == {f"{MODEL}/{SHARD}"}
    assert held(store, second) == contents(folder)
    assert not broken(store, first), "the release before must stay whole"


def test_a_removed_file_is_in_no_new_release_and_not_in_the_listing(
    minio_server: MinioServer, store: Store, folder: Path
) -> None:
    (folder / "extra.json").write_text("{}")
    seed(minio_server, MODEL, folder)
    minio_server.put("models", f"{MODEL}/notes-of-a-colleague.txt", b"not ours to hide")
    (folder / "extra.json").unlink()
    seed(minio_server, MODEL, folder)
    assert "extra.json" not in held(store, store.serving(MODEL))
    assert set(listing(store)) == {*contents(folder), "notes-of-a-colleague.txt"}
    assert held(store, store.release(MODEL, "v1"))["extra.json"] == b"{}"


def test_a_folder_as_it_was_is_its_old_release_and_shows_again(
    minio_server: MinioServer, store: Store, folder: Path, tmp_path: Path
) -> None:
    before = copy(folder, tmp_path / "before")
    seed(minio_server, MODEL, folder)
    change(folder / SHARD)
    (folder / "generation_config.json").unlink()
    seed(minio_server, MODEL, folder)
    again = seed(minio_server, MODEL, before)
    assert (again.release, again.new, again.uploaded, again.promoted, again.serving) == ("v1", False, 0, True, "v1")
    assert listing(store) == contents(before), "who publishes from the bucket now must publish this"
    shown = store.object_versions(MODEL)
    point_alias(store, store.release(MODEL, "v2"), "somebody@example")
    assert seed(minio_server, MODEL, before).promoted
    assert store.object_versions(MODEL) == shown, "shown already: nothing is copied again"


def test_other_settings_are_another_release_of_the_same_bytes(
    minio_server: MinioServer, store: Store, folder: Path, tmp_path: Path
) -> None:
    seed(minio_server, MODEL, folder)
    (tmp_path / f"{MODEL}.yaml").write_text("release: {generation: {top_k: 3}}")
    seeded = seed(minio_server, MODEL, folder, settings=seed_settings(models_config_dir=tmp_path))
    assert (seeded.release, seeded.new, seeded.uploaded) == ("v2", True, 0)
    assert store.release(MODEL, "v2").location == store.release(MODEL, "v1").location


def test_without_promotion_the_alias_stays(minio_server: MinioServer, store: Store, folder: Path) -> None:
    assert seed(minio_server, MODEL, folder, promote=False).serving is None
    assert store.alias(MODEL) is None
    seed(minio_server, MODEL, folder)
    change(folder / SHARD)
    assert seed(minio_server, MODEL, folder, promote=False).serving == "v1"
    assert store.releases(MODEL) == ["v1", "v2"]


def test_names_that_people_give_files_arrive_as_they_are(minio_server: MinioServer, store: Store, folder: Path) -> None:
    for name in ("größe 中文.json", "with space/and more.txt", "empty.txt", "plus+percent%20.json", "quote'\"$(x).txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("" if name == "empty.txt" else name)
    seed(minio_server, MODEL, folder)
    assert held(store, store.serving(MODEL)) == contents(folder)


# ---- what goes wrong on the way


def test_two_who_upload_at_once_get_no_mixed_release(minio_server: MinioServer, store: Store, folder: Path) -> None:
    """The other one's upload of the same key lands between ours and our reading: the listing then shows theirs."""

    def interleaved(upload: Uploader) -> Uploader:
        def both(files: Sequence[Upload], moved: Callable[[int], None]) -> None:
            upload(files, moved)
            for file in files:
                body = bytearray(file.source.read_bytes())
                body[0] ^= 1
                minio_server.put("models", file.key, bytes(body))

        return both

    published = publish(minio_server, folder, interleaved)
    assert held(store, published.release) == contents(folder)
    assert listing(store) != contents(folder)


def damaged(upload: Uploader) -> Uploader:
    """The file is changed between our reading and mc's: what arrives is whole, and not what was hashed."""

    def flip(files: Sequence[Upload], moved: Callable[[int], None]) -> None:
        for file in files:
            if file.key.endswith(SHARD):
                change(file.source)
        upload(files, moved)

    return flip


def silent(upload: Uploader) -> Uploader:
    """An upload that says it succeeded and moved nothing."""
    return lambda files, moved: None


@pytest.mark.parametrize("fault", [damaged, silent])
def test_what_did_not_arrive_as_it_was_hashed_is_not_published(
    minio_server: MinioServer, store: Store, folder: Path, fault: Callable[[Uploader], Uploader]
) -> None:
    seed(minio_server, MODEL, folder)
    change(folder / SHARD)
    with pytest.raises(VerificationFailed, match=rf"{SHARD}: required an object version with BLAKE3 .*seed again"):
        publish(minio_server, folder, fault)
    assert store.releases(MODEL) == ["v1"]
    assert store.serving(MODEL).name == "v1"


def test_both_digests_of_a_release_are_those_of_its_bytes_whatever_becomes_of_the_source(
    minio_server: MinioServer, store: Store, folder: Path
) -> None:
    publish(minio_server, folder)
    change(folder / SHARD)
    meant = contents(folder)

    def changing(upload: Uploader) -> Uploader:
        def run(files: Sequence[Upload], moved: Callable[[int], None]) -> None:
            upload(files, moved)
            (folder / SHARD).write_bytes(b"x" * len(meant[SHARD]))

        return run

    release = publish(minio_server, folder, changing).release
    assert held(store, release) == meant
    for file in release.content.files:
        assert file.sha256 == hashlib.sha256(meant[file.path]).hexdigest(), f"{file.path}: of other bytes"


def test_one_failed_upload_stops_all_and_says_why(minio_server: MinioServer, store: Store, folder: Path) -> None:
    def refusing(upload: Uploader) -> Uploader:
        def refuse(files: Sequence[Upload], moved: Callable[[int], None]) -> None:
            raise StoreError("no more room")

        return refuse

    with pytest.raises(StoreError, match="no more room"):
        publish(minio_server, folder, refusing)
    assert store.releases(MODEL) == []


def test_what_an_ended_seeding_had_uploaded_is_not_uploaded_again(
    minio_server: MinioServer, store: Store, folder: Path
) -> None:
    for path, body in contents(folder).items():
        minio_server.put("models", f"{MODEL}/{path}", body)
    published = publish(minio_server, folder)
    assert (published.new, published.uploaded) == (True, 0)
    assert held(store, published.release) == contents(folder)


def test_a_release_whose_objects_were_deleted_counts_for_nothing(
    minio_server: MinioServer, store: Store, folder: Path
) -> None:
    seed(minio_server, MODEL, folder)
    key = f"{MODEL}/{SHARD}"
    minio_server.client().remove_object("models", key, version_id=store.serving(MODEL).location.versions[key])
    seeded = seed(minio_server, MODEL, folder)
    assert (seeded.release, seeded.new, seeded.uploaded) == ("v2", True, (folder / SHARD).stat().st_size)
    assert not broken(store, store.serving(MODEL))


def test_a_manifest_that_was_replaced_by_hand_is_not_believed(
    minio_server: MinioServer, store: Store, folder: Path
) -> None:
    seed(minio_server, MODEL, folder)
    good = store.release(MODEL, "v1")
    raw = good.to_json().replace(b"text-generation", b"embeddings")
    minio_server.put("releases", f"{MODEL}/v1.json", raw)
    seeded = seed(minio_server, MODEL, folder)
    assert (seeded.release, seeded.new) == ("v2", True)
    assert store.serving(MODEL).content.files == good.content.files


def test_many_who_publish_at_once_each_get_a_whole_release(
    minio_server: MinioServer, store: Store, samples: Path
) -> None:
    """Two folders, each seeded by two people at the same moment."""
    folders = [samples / "falcon-tiny", samples / "falcon-tiny-v2"] * 2
    barrier = threading.Barrier(len(folders))

    def one(folder: Path) -> str:
        barrier.wait()
        return seed(minio_server, MODEL, folder).release

    with ThreadPoolExecutor(len(folders)) as pool:
        names = list(pool.map(one, folders))
    assert set(names) == set(store.releases(MODEL))
    wanted = [contents(folder) for folder in folders[:2]]
    for name, folder in zip(names, folders, strict=True):
        assert held(store, store.release(MODEL, name)) == contents(folder)
    assert held(store, store.serving(MODEL)) in wanted


def test_the_first_starts_alias_gives_way_to_a_persons(minio_server: MinioServer, store: Store, samples: Path) -> None:
    seed(minio_server, MODEL, samples / "falcon-tiny-v2")
    seeded = seed(minio_server, MODEL, samples / "falcon-tiny", only_first=True)
    assert (seeded.release, seeded.promoted, seeded.serving) == ("v2", False, "v1")


def test_the_alias_ends_at_the_later_of_two(minio_server: MinioServer, store: Store, samples: Path) -> None:
    """While we publish v1, somebody publishes and promotes v2: their promotion stands."""
    seed(minio_server, MODEL, samples / "falcon-tiny", promote=False)
    seed(minio_server, MODEL, samples / "falcon-tiny-v2", promote=False)
    first, second = store.release(MODEL, "v1"), store.release(MODEL, "v2")
    real = store.put_alias

    def late(model: str, alias: Alias, expected: object) -> None:
        if alias.release == "v1":
            real(model, Alias.of(second, "somebody"), None)
        real(model, alias, None)

    store.put_alias = late  # type: ignore[method-assign]
    assert point_alias(store, first, "us") is False
    assert store.serving(MODEL).name == "v2"


# ---- refusals, and what is deleted


def test_a_model_with_no_source_is_refused_with_the_ways_to_give_one(minio_server: MinioServer, tmp_path: Path) -> None:
    with pytest.raises(
        ModelNotFound, match=r"--hf org/repo \(HF=….*Models with a file: .*falcon-7b, falcon-tiny, minilm"
    ):
        seed(minio_server, "unheard-of", None, settings=seed_settings(samples_dir=tmp_path))


def test_a_full_disk_is_said_before_anything_is_written(
    minio_server: MinioServer, store: Store, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from seeding import disk
    from seeding import seed as module

    monkeypatch.setattr(module, "store_space", lambda mc: disk.Space(10**12, 1000))
    with pytest.raises(
        NotEnoughDisk, match=r"the store: required 1\.7 MB and .* to spare, found 1\.0 kB free; make room"
    ):
        seed(minio_server, MODEL, folder)
    assert store.object_versions(MODEL) == []


def test_pruning_keeps_what_is_kept_whole(minio_server: MinioServer, store: Store, folder: Path) -> None:
    for _ in range(5):
        seed(minio_server, MODEL, folder)
        change_more(folder / SHARD)
    canary = Canary.of(store.release(MODEL, "v3"), 10)
    store.put_alias(MODEL, Alias.of(store.release(MODEL, "v2"), "somebody", canary), store.alias(MODEL))
    told = prune(minio_server.settings, seed_settings(), MODEL, 1, timedelta(0), dry_run=True)
    pruned = prune(minio_server.settings, seed_settings(), MODEL, 1)
    assert (told.deleted, told.kept) == (pruned.deleted, pruned.kept) == (["v1", "v4"], ["v2", "v3", "v5"])
    assert pruned.versions == 0, "too young to delete"
    pruned = prune(minio_server.settings, seed_settings(), MODEL, 1, timedelta(0))
    assert (told.versions, told.bytes) == (pruned.versions, pruned.bytes), "what was told would go is what went"
    assert (pruned.versions, pruned.bytes) == (2, 2 * (folder / SHARD).stat().st_size)
    assert store.releases(MODEL) == ["v2", "v3", "v5"]
    for name in ("v2", "v3", "v5"):
        assert not broken(store, store.release(MODEL, name))
    assert store.serving(MODEL).name == "v2"


def change_more(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-1] = (body[-1] + 1) % 256
    path.write_bytes(body)
