"""The node cache against other processes, other users, deaths and unclean stops. What a user would lose: a model whose files vanish
under a running worker, or a node that cannot start because another container made the cache."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fetching import (
    MIB,
    cache_at,
    damage,
    fetch,
    holds,
    outcome,
    release_of,
    some_bytes,
    start_fetch,
    stop_uncleanly,
    wrong_blobs,
)
from tests.proxies import proxy_that_hangs_after
from tests.services import ROOT, MinioServer, free_port, wait_for
from weightless.cache import NodeCache
from weightless.errors import CacheError, FetchFailed
from weightless.release import Release

FILES = {"config.json": b'{"a": 1}', "model.safetensors": some_bytes(3 * MIB + 5, 1)}
SIZE = sum(map(len, FILES.values()))


@contextlib.contextmanager
def held_elsewhere(cache: NodeCache, release: Release) -> Iterator["subprocess.Popen[str]"]:
    """Another process that uses the release until it is killed."""
    manifest = cache.root.parent / "held.json"
    manifest.write_bytes(release.to_json())
    script = (
        "import sys; from pathlib import Path; from tests.fetching import cache_at; from weightless.release import Release\n"
        "release = Release.from_json('v1', Path(sys.argv[2]).read_bytes())\n"
        "with cache_at(Path(sys.argv[1])).use(release): print('held', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(cache.root), str(manifest)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_release_that_another_process_uses_stays_until_that_process_is_killed(
    minio_server: MinioServer, tmp_path: Path
) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    fetch(minio_server.settings, cache, release)
    with held_elsewhere(cache, release) as process:
        assert cache.prune(0).releases == ()
        assert cache.entries()[0].in_use
        assert holds(cache, release, FILES)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert cache.prune(0).releases == (("m", "v1"),)


def test_a_fetch_is_not_undone_by_pruning_at_the_same_time(minio_server: MinioServer, tmp_path: Path) -> None:
    """Two releases share a file; one is fetched while the other, and everything else that is not in use, is evicted."""
    shared = some_bytes(2 * MIB, 9)
    cache = cache_at(tmp_path / "cache")
    contents = [
        {"shared": shared, "own": some_bytes(MIB, number), "config.json": b"%d" % number} for number in range(4)
    ]
    releases = [release_of(minio_server, "m", files, f"v{number}") for number, files in enumerate(contents, start=1)]
    script = (
        "import sys; from pathlib import Path; from tests.fetching import cache_at\n"
        "cache = cache_at(Path(sys.argv[1])); print('pruning', flush=True)\n"
        "while True: cache.prune(0)\n"
    )
    pruner = subprocess.Popen(
        [sys.executable, "-c", script, str(cache.root)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert pruner.stdout is not None
        pruner.stdout.readline()
        dice = random.Random(3)
        for _ in range(25):
            number = dice.randrange(4)
            with cache.use(releases[number]):
                fetch(minio_server.settings, cache, releases[number])
                assert holds(cache, releases[number], contents[number])
                assert cache.is_complete(releases[number])
        assert pruner.poll() is None, "pruning failed"
    finally:
        pruner.kill()
        pruner.communicate()
    assert wrong_blobs(cache) == []


def test_after_an_unclean_stop_only_what_is_damaged_is_fetched_again(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    fetch(minio_server.settings, cache, release)
    stop_uncleanly(cache)
    away = minio_server.settings_at(f"http://127.0.0.1:{free_port()}")
    assert fetch(away, cache, release).bytes_from_store == 0, "all files are right: nothing is needed of the store"
    assert cache.is_complete(release)

    fetch(minio_server.settings, cache_at(tmp_path / "other"), release)
    cache = cache_at(tmp_path / "other")
    stop_uncleanly(cache)
    lost = next(file for file in release.content.files if file.path == "config.json")
    damage(cache.layout.blob(lost.blake3), bytes(lost.size))
    with pytest.raises(FetchFailed):
        fetch(away, cache, release, fetch_attempts=1)
    assert fetch(minio_server.settings, cache, release).bytes_from_store == lost.size
    assert holds(cache, release, FILES)


def test_a_synced_release_is_believed_after_an_unclean_stop(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    fetch(minio_server.settings, cache, release)
    assert cache.sync(release) == SIZE
    stop_uncleanly(cache)
    assert cache.is_complete(release)


def read_only(folder: Path) -> list[str]:
    """A command that runs another with this folder mounted read-only, as a container may."""
    mounts = f'mount --bind "{folder}" "{folder}" && mount -o remount,bind,ro "{folder}" && exec "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", mounts, "sh"]


def test_a_complete_cache_works_read_only(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    fetch(minio_server.settings, cache, release)
    nowhere = f"http://127.0.0.1:{free_port()}"

    result = outcome(start_fetch(nowhere, minio_server, cache.root, release, *read_only(cache.root)))
    assert result["result"]["bytes_from_store"] == 0
    assert result["result"]["bytes_from_cache"] == SIZE

    stop_uncleanly(cache)  # it cannot be noted that the files were hashed again, but they can be hashed
    result = outcome(start_fetch(nowhere, minio_server, cache.root, release, *read_only(cache.root)))
    assert result["result"]["bytes_from_store"] == 0

    damage(cache.layout.blob(release.content.files[0].blake3), bytes(release.content.files[0].size))
    result = outcome(start_fetch(nowhere, minio_server, cache.root, release, *read_only(cache.root)))
    assert result["error"] == CacheError.__name__
    assert "config.json" in result["message"]
    assert "read-only" in result["message"]


def test_a_read_only_cache_without_the_release_says_what_to_do(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    result = outcome(start_fetch(minio_server.endpoint, minio_server, cache.root, release, *read_only(cache.root)))
    assert result["error"] == CacheError.__name__
    assert "mount it writable" in result["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be several users")
def test_two_users_of_one_group_share_a_cache(minio_server: MinioServer) -> None:
    """Each with a umask that shuts the other out, as services have: one begins, the other goes on, both use it."""
    release = release_of(minio_server, "m", FILES)
    later = release_of(minio_server, "m", {**FILES, "more.bin": some_bytes(2 * MIB, 5)}, "v2")
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        folder.chmod(0o755)
        root = folder / "cache"
        root.mkdir()
        os.chown(root, -1, 4242)
        root.chmod(0o2770)

        def run(user: int, wanted: Release) -> dict[str, Any]:
            return outcome(start_fetch(minio_server.endpoint, minio_server, root, wanted, user=(user, 4242)))

        assert run(2001, release)["result"]["bytes_from_store"] == SIZE
        assert run(2002, release)["result"]["bytes_from_store"] == 0
        assert run(2002, later)["result"]["bytes_from_store"] == 2 * MIB
        assert run(2001, later)["result"]["bytes_from_store"] == 0
        cache = cache_at(root)
        assert {entry.name for entry in cache.entries() if entry.complete} == {"v1", "v2"}

        begun = start_fetch_of_half(minio_server, root, user=2001)
        assert 0 < run(2002, begun)["result"]["bytes_from_store"] <= begun.content.size - MIB
        assert cache.is_complete(begun)
    finally:
        shutil.rmtree(folder)


def start_fetch_of_half(server: MinioServer, root: Path, user: int) -> Release:
    """A fetch by this user that is killed when some parts are there."""
    release = release_of(server, "m", {"large": some_bytes(6 * MIB, 8)}, "v3")
    with proxy_that_hangs_after(server, 4) as proxy:
        process = start_fetch(proxy.endpoint, server, root, release, user=(user, 4242))
        wait_for(lambda: list((root / "partial").glob("*.parts")), "a part to be finished")
        process.kill()
        process.communicate()
    return release
