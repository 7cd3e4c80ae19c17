"""The node cache: what is kept, what goes, and who is in the way. If it were wrong, a worker would lose its model's files."""

import contextlib
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fetching import cache_at, entry_of, release_with, some_bytes
from weightless.cache import NodeCache
from weightless.errors import CacheError, NotEnoughDisk
from weightless.layout import MANIFEST
from weightless.release import Release
from weightless.settings import CacheSettings

KIB = 1 << 10


def release(model: str, files: Mapping[str, bytes], name: str = "v1") -> Release:
    entries = [entry_of(path, body) for path, body in files.items()]
    return release_with(model, entries, {f"{model}/{path}": "version" for path in files}, name)


def fill(cache: NodeCache, model: str, files: Mapping[str, bytes], name: str = "v1", used: float = 0) -> Release:
    """A complete release in the cache, last used `used` seconds ago: what a fetch leaves, without a store."""
    made = release(model, files, name)
    with cache.use(made):
        cache.make_room(made, cache.missing(made))
        for file in made.content.files:
            cache.layout.blob(file.blake3).write_bytes(files[file.path])
        cache.link(made)
    when = time.time() - used
    os.utime(cache.folder(made) / MANIFEST, (when, when))
    return made


def cached(cache: NodeCache) -> set[tuple[str, str]]:
    return {(entry.model, entry.name) for entry in cache.entries()}


def test_a_release_is_complete_when_every_file_and_link_is_there(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    made = fill(cache, "m", {"a": b"1", "b/c": b"22"})
    assert cache.is_complete(made)
    assert (cache.folder(made) / "b" / "c").read_bytes() == b"22"
    (cache.folder(made) / "b" / "c").unlink()
    assert not cache.is_complete(made)
    cache.link(made)
    assert cache.is_complete(made)
    cache.layout.blob(made.content.files[0].blake3).unlink()
    assert not cache.is_complete(made)
    assert [file.path for file in cache.missing(made)] == ["a"]


def test_a_file_of_another_size_counts_as_missing(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    made = fill(cache, "m", {"a": b"12345"})
    cache.layout.blob(made.content.files[0].blake3).write_bytes(b"1234")
    assert [file.path for file in cache.missing(made)] == ["a"]


def test_links_work_where_the_volume_is_mounted_elsewhere(tmp_path: Path) -> None:
    cache = cache_at(tmp_path / "here")
    made = fill(cache, "m", {"a/b/c": b"deep", "d": b"flat"})
    (tmp_path / "here").rename(tmp_path / "there")
    moved = cache_at(tmp_path / "there")
    assert moved.is_complete(made)
    assert (moved.folder(made) / "a/b/c").read_bytes() == b"deep"
    assert (moved.folder(made) / "d").read_bytes() == b"flat"


def test_a_link_to_something_else_is_put_right(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    made = fill(cache, "m", {"a": b"1", "b": b"2"})
    link = cache.folder(made) / "a"
    link.unlink()
    link.symlink_to(cache.folder(made) / "b")
    assert not cache.is_complete(made)
    cache.link(made)
    assert link.read_bytes() == b"1"


def test_equal_files_are_kept_once_and_releases_share_what_did_not_change(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    shared = some_bytes(100 * KIB, 1)
    fill(cache, "m", {"shared": shared, "copy": shared, "own": b"1" * KIB})
    fill(cache, "m", {"shared": shared, "own": b"2" * KIB}, "v2")
    assert len(list(cache.layout.blobs.iterdir())) == 3
    entries = {entry.name: entry for entry in cache.entries()}
    assert (entries["v1"].size, entries["v1"].own) == (201 * KIB, KIB)
    assert (entries["v2"].size, entries["v2"].own) == (101 * KIB, KIB)

    cache.prune(101 * KIB)
    assert cached(cache) == {("m", "v2")}
    assert cache.is_complete(release("m", {"shared": shared, "own": b"2" * KIB}, "v2")), (
        "a shared file went with the other"
    )


def test_least_recently_used_goes_first_and_only_as_much_as_must(tmp_path: Path) -> None:
    cache = cache_at(tmp_path, max_bytes=350 * KIB)
    for age, model in ((30, "old"), (20, "middle"), (10, "young")):
        fill(cache, model, {"w": some_bytes(100 * KIB, age)}, used=age)
    fill(cache, "new", {"w": some_bytes(100 * KIB, 4)})
    assert cached(cache) == {("middle", "v1"), ("young", "v1"), ("new", "v1")}


def test_using_a_release_makes_it_young(tmp_path: Path) -> None:
    cache = cache_at(tmp_path, max_bytes=250 * KIB)
    old = fill(cache, "old", {"w": some_bytes(100 * KIB, 1)}, used=30)
    fill(cache, "middle", {"w": some_bytes(100 * KIB, 2)}, used=20)
    with cache.use(old):
        pass
    fill(cache, "new", {"w": some_bytes(100 * KIB, 3)})
    assert cached(cache) == {("old", "v1"), ("new", "v1")}


def test_a_release_in_use_is_never_evicted(tmp_path: Path) -> None:
    cache = cache_at(tmp_path, max_bytes=250 * KIB)
    files = {"w": some_bytes(100 * KIB, 1)}
    old = fill(cache, "old", files, used=30)
    fill(cache, "young", {"w": some_bytes(100 * KIB, 2)})
    with cache.use(old):
        assert {entry.model for entry in cache.entries() if entry.in_use} == {"old"}
        fill(cache, "new", {"w": some_bytes(100 * KIB, 3)})
        assert cached(cache) == {("old", "v1"), ("new", "v1")}
        assert cache.prune(0).releases == (("new", "v1"),)
        assert cache.is_complete(old)
    assert cache.prune(0).releases == (("old", "v1"),)


def test_what_does_not_fit_beside_what_is_in_use_is_refused_with_figures(tmp_path: Path) -> None:
    cache = cache_at(tmp_path, max_bytes=1 << 20)
    used = fill(cache, "used", {"w": some_bytes(700 * KIB, 1)})
    with (
        cache.use(used),
        pytest.raises(NotEnoughDisk, match=r"new v1: required 0\.5 MiB within .* 1\.0 MiB, found 0\.3 MiB"),
    ):
        fill(cache, "new", {"w": some_bytes(500 * KIB, 2)})
    with pytest.raises(NotEnoughDisk, match=r"required 2\.0 MiB within CACHE_MAX_BYTES 1\.0 MiB"):
        fill(cache, "huge", {"w": some_bytes(2 << 20, 3)})


def test_pruning_frees_what_nobody_names_and_counts_it(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    made = fill(cache, "m", {"w": some_bytes(100 * KIB, 1)})
    cache.layout.blob("f" * 64).write_bytes(bytes(50 * KIB))
    cache.layout.partial("e" * 64).write_bytes(bytes(8 * KIB))
    cache.layout.partial("e" * 64 + ".parts").write_text("[]")
    (cache.folder(made).parent / ".v9.left-by-a-death").mkdir()
    pruned = cache.prune()
    assert pruned.releases == ()
    assert pruned.size >= 58 * KIB
    assert cache.is_complete(made)
    assert list(cache.layout.partials.iterdir()) == []
    assert [path.name for path in cache.folder(made).parent.iterdir()] == ["v1"]


def test_a_partial_file_that_a_release_still_needs_is_kept(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    made = release("m", {"w": some_bytes(100 * KIB, 1)})
    with cache.use(made):
        cache.make_room(made, cache.missing(made))
        partial = cache.layout.partial(made.content.files[0].blake3)
        partial.write_bytes(b"half")
    cache.prune()
    assert partial.exists(), "what was fetched before an interruption is lost"


def test_another_release_of_the_same_name_does_not_pass_for_this_one(tmp_path: Path) -> None:
    """The bucket was made anew and counts from v1 again, and the cache outlived it."""
    cache = cache_at(tmp_path)
    old = fill(cache, "m", {"w": b"old"})
    with cache.use(old):
        opened = (cache.folder(old) / "w").open("rb")
        new = release("m", {"w": b"new!"})
        assert not cache.is_complete(new)
        fill(cache, "m", {"w": b"new!"})
        assert cache.is_complete(new)
        assert not cache.is_complete(old)
        assert (cache.folder(new) / "w").read_bytes() == b"new!"
        cache.prune(0)
        assert cache.layout.blob(old.content.files[0].blake3).exists(), "in use, though another took its name"
    with opened:
        assert opened.read() == b"old"
    cache.prune(0)
    assert list(cache.layout.blobs.iterdir()) == []


def test_a_backups_releases_do_not_go_when_its_disk_is_full(tmp_path: Path) -> None:
    """`make backup` keeps releases in such a folder: one that went for the next would be missing at the restore."""
    saved = NodeCache(CacheSettings(cache_dir=tmp_path), evicts=False)
    fill(saved, "m", {"w": b"old"})
    large = release("m", {"w": b"new"}, "v2")
    (file,) = large.content.files
    with saved.use(large), pytest.raises(NotEnoughDisk, match="on the disk"):
        saved.make_room(large, [file.model_copy(update={"size": 1 << 60})])
    assert ("m", "v1") in cached(saved)


def test_cached_manifests_come_with_their_version_most_recently_used_first(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    fill(cache, "m", {"w": b"1"}, used=20)
    fill(cache, "m", {"w": b"2"}, "v2", used=30)
    incomplete = release("m", {"w": b"3"}, "v3").model_copy(update={"manifest_version": "abc"})
    with cache.use(incomplete):
        pass
    assert [found.name for found in cache.cached_manifests()] == ["v3", "v1", "v2"]
    found = cache.cached_manifests()[0]
    assert found == incomplete
    assert [file.path for file in cache.missing(found)] == ["w"]


def test_a_manifest_that_an_unclean_stop_left_empty_is_written_anew(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    made = fill(cache, "m", {"w": b"1"})
    (cache.folder(made) / MANIFEST).write_bytes(b"")
    assert cache.cached_manifests() == []
    assert cache.entries() == []
    assert not cache.is_complete(made)
    with cache.use(made):
        cache.link(made)
        assert cache.is_complete(made)
    cache.prune(0)
    assert list(cache.layout.releases.iterdir()) == []


def test_verify_finds_and_removes_what_is_not_what_it_says(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    made = fill(cache, "m", {"good": some_bytes(300 * KIB, 1), "bad": some_bytes(300 * KIB, 2)})
    bad = next(file.blake3 for file in made.content.files if file.path == "bad")
    with cache.layout.blob(bad).open("r+b") as file:
        file.seek(1000)
        file.write(b"!")
    seen: list[tuple[int, int]] = []
    found = cache.verify(lambda done, total: seen.append((done, total)))
    assert (found.files, found.size, found.bad) == (2, 600 * KIB, (bad,))
    assert seen[-1] == (600 * KIB, 600 * KIB)
    assert [file.path for file in cache.missing(made)] == ["bad"]
    assert cache.verify().bad == ()


def test_a_release_that_has_a_file_of_the_caches_own_name_is_refused(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    with pytest.raises(CacheError, match="rename the file"), cache.use(release("m", {MANIFEST: b"x"})):
        pass


def test_a_cache_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"CACHE_DIR .*file/cache: required a folder"):
        cache_at(tmp_path / "file" / "cache")


@pytest.mark.parametrize("mode", [0o755, 0o2770, 0o2775, 0o700])
def test_what_is_made_has_the_permissions_of_the_cache_whatever_the_umask(tmp_path: Path, mode: int) -> None:
    root = tmp_path / "cache"
    root.mkdir()
    root.chmod(mode)
    before = os.umask(0o077)
    try:
        cache = cache_at(root)
        fill(cache, "m", {"a/b": b"1"})
        with cache.unsynced.expecting(["f" * 64]):
            pass
    finally:
        os.umask(before)
    for path in root.rglob("*"):
        found = path.stat(follow_symlinks=False).st_mode & 0o7777
        if path.is_dir():
            assert found == mode, path
        elif not path.is_symlink() and path.parent != cache.layout.blobs:  # written by this test
            assert found == (mode & 0o666), path


# ---- what is not synced yet


def another_boot(cache: NodeCache) -> None:
    """What a restart of the machine leaves: lists with the id of a boot that is over."""
    for path in cache.layout.unsynced.iterdir():
        if "." in path.name:
            path.rename(path.with_name(f"00000000-0000-0000-0000-000000000000.{path.name.split('.')[1]}"))


def fill_unsynced(cache: NodeCache, files: Mapping[str, bytes]) -> Release:
    made = release("m", files)
    with cache.unsynced.expecting([file.blake3 for file in made.content.files]):
        return fill(cache, "m", files)


def test_after_an_unclean_stop_files_are_hashed_again_and_wrong_ones_go(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    made = fill_unsynced(cache, {"good": some_bytes(9000, 1), "bad": some_bytes(9000, 2)})
    assert cache.is_complete(made), "within the same boot what was written can be read"
    bad = next(file.blake3 for file in made.content.files if file.path == "bad")
    cache.layout.blob(bad).write_bytes(bytes(9000))  # the size is right, as after a lost write
    another_boot(cache)

    cache = cache_at(tmp_path)
    assert not cache.is_complete(made)
    assert len(cache.missing(made)) == 2, "neither may be used before it was hashed"
    cache.recover(made)
    assert [file.path for file in cache.missing(made)] == ["bad"]
    assert cache.unsynced.suspects() == set()


def test_what_was_synced_is_not_hashed_again(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    made = fill_unsynced(cache, {"w": some_bytes(9000, 1)})
    assert cache.sync(made) == 9000
    assert cache.sync(made) == 0
    another_boot(cache)
    assert cache.is_complete(made)


def test_a_fetch_that_was_given_up_keeps_its_list_until_the_rest_is_there(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    made = release("m", {"a": b"1", "b": b"2"})
    first, second = made.content.files
    with contextlib.suppress(RuntimeError), cache.use(made), cache.unsynced.expecting([first.blake3, second.blake3]):
        cache.make_room(made, cache.missing(made))
        cache.layout.blob(first.blake3).write_bytes(b"1")
        raise RuntimeError
    assert cache.sync(made) == 1
    cache.layout.blob(second.blake3).write_bytes(b"2")
    another_boot(cache)
    assert second.blake3 in {file.blake3 for file in cache.missing(made)}


def test_pruning_forgets_lists_of_what_is_gone_but_not_of_a_fetch_under_way(tmp_path: Path) -> None:
    cache = cache_at(tmp_path)
    fill_unsynced(cache, {"w": b"1"})
    with cache.unsynced.expecting(["f" * 64]):
        cache.prune(0)
        assert len([path for path in cache.layout.unsynced.iterdir() if "." in path.name]) == 1
    cache.prune(0)
    assert [path for path in cache.layout.unsynced.iterdir() if "." in path.name] == []
