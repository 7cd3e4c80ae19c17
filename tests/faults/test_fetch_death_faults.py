"""The fetch and its own end: killed at any point, several at once, and a disk that is full. What a user would lose: a partial file
that counts as whole, or a download that everybody does again."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fetching import (
    FILES,
    MIB,
    SIZE,
    cache_at,
    fetch,
    holds,
    outcome,
    release_of,
    some_bytes,
    start_fetch,
    wrong_blobs,
)
from tests.proxies import (
    Toxiproxy,
    proxy_that_hangs_after,
)
from tests.services import ROOT, MinioServer, wait_for
from weightless.cache import NodeCache
from weightless.errors import (
    NotEnoughDisk,
)
from weightless.fetch import Progress
from weightless.fetch.partial import finished_parts


def kill_at_random_points(minio_server: MinioServer, toxiproxy: Toxiproxy, tmp_path: Path, times: int) -> None:
    """Kill the fetch again and again on the same cache; then look at all that is under a final name, and finish."""
    files = {**FILES, **{f"small-{number}.json": some_bytes(4000, 100 + number) for number in range(30)}}
    release, cache = release_of(minio_server, "m", files), cache_at(tmp_path / "cache")
    # KB/s of each of 3 connections: a whole fetch takes longer than any process lives (6000: 24 of 50 were killed in mid-fetch).
    toxiproxy.add("bandwidth", rate=2000)
    dice = random.Random(4)
    killed = 0
    for _ in range(times):
        process = start_fetch(toxiproxy.endpoint, minio_server, tmp_path / "cache", release)
        assert process.stdout is not None
        process.stdout.readline()  # it has begun
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(dice.uniform(0, 1.2))
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        process.stdout.close()
        assert wrong_blobs(cache) == [], "a partial file under a final name"
        for path in cache.folder(release).rglob("*"):
            if path.is_symlink():
                assert path.exists(), "a link to a file that is not there"
        if cache.is_complete(release):
            cache.prune(0)
            assert not cache.is_complete(release)
    assert killed >= times // 2, "most of them must be killed in mid-fetch for this to mean anything"
    fetch(minio_server.settings, cache, release)
    assert holds(cache, release, files)
    assert wrong_blobs(cache) == []


def test_killed_at_random_points(minio_server: MinioServer, toxiproxy: Toxiproxy, tmp_path: Path) -> None:
    kill_at_random_points(minio_server, toxiproxy, tmp_path, 10)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_at_many_random_points(minio_server: MinioServer, toxiproxy: Toxiproxy, tmp_path: Path) -> None:
    kill_at_random_points(minio_server, toxiproxy, tmp_path, 50)


def test_a_new_process_goes_on_where_a_killed_one_ended(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    with proxy_that_hangs_after(minio_server, 7) as proxy:
        process = start_fetch(proxy.endpoint, minio_server, cache.root, release)
        there = wait_for(lambda: finished_in(cache) >= 4 * MIB and finished_in(cache), "some parts to be finished")
        process.kill()
        process.communicate()
    seen: list[Progress] = []
    result = fetch(minio_server.settings, cache, release, seen.append)
    assert holds(cache, release, FILES)
    assert 0 < result.bytes_from_store <= len(FILES["model.safetensors"]) - there
    assert seen[0].done < seen[-1].done == seen[-1].total == SIZE


def finished_in(cache: NodeCache) -> int:
    """Bytes of the finished parts of partial files."""
    return sum(len(span) for path in cache.layout.partials.glob("*.parts") for span in finished_parts(path))


def test_four_cold_processes_at_once_download_once(minio_server: MinioServer, tmp_path: Path) -> None:
    files = {**FILES, **{f"small-{number}.json": some_bytes(4000, 100 + number) for number in range(200)}}
    release, cache = release_of(minio_server, "m", files), cache_at(tmp_path / "cache")
    four = [start_fetch(minio_server.endpoint, minio_server, tmp_path / "cache", release) for _ in range(4)]
    results = [outcome(process)["result"] for process in four]
    assert sum(result["bytes_from_store"] for result in results) == sum(map(len, files.values()))
    assert all(result["retries"] == 0 for result in results)
    assert holds(cache, release, files)
    assert list(cache.layout.partials.iterdir()) == []


def test_whoever_waits_takes_over_when_the_one_who_fetches_dies(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    with proxy_that_hangs_after(minio_server, 7) as proxy:
        first = start_fetch(proxy.endpoint, minio_server, cache.root, release)
        there = wait_for(lambda: finished_in(cache) >= 4 * MIB and finished_in(cache), "some parts to be finished")
        second = start_fetch(minio_server.endpoint, minio_server, cache.root, release)
        assert second.stdout is not None
        waited = [json.loads(second.stdout.readline())["done"] for _ in range(3)]
        assert waited[-1] >= there, "whoever waits does not see how far the other is"
        first.kill()
        first.communicate()
    result = outcome(second)["result"]
    assert holds(cache, release, FILES)
    assert 0 < result["bytes_from_store"] <= len(FILES["model.safetensors"]) - there


# ---- the disk


def in_a_small_disk(tmp_path: Path, size: int) -> list[str]:
    """A command that runs another with `cache` on a file system of its own of so many bytes."""
    mount = f'mount -t tmpfs -o size={size} tmpfs "{tmp_path / "cache"}" && exec "$@"'
    return ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh"]


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(minio_server: MinioServer, tmp_path: Path) -> None:
    release = release_of(minio_server, "m", FILES)
    (tmp_path / "cache").mkdir()
    before = in_a_small_disk(tmp_path, 8 * MIB)
    process = start_fetch(minio_server.endpoint, minio_server, tmp_path / "cache", release, *before)
    assert process.stdout is not None
    lines = [json.loads(line) for line in process.stdout]
    process.wait()
    process.stdout.close()
    assert lines[-1]["error"] == "NotEnoughDisk"
    assert re.search(r"required 9\.\d MiB on the disk of CACHE_DIR .*, found [78]\.\d MiB free", lines[-1]["message"])
    assert [line["done"] for line in lines[:-1]] == [0]


def test_a_disk_that_fills_up_in_mid_fetch_is_said(minio_server: MinioServer, tmp_path: Path) -> None:
    """The real thing: a tmpfs that another program fills while we fetch."""
    release = release_of(minio_server, "m", FILES)
    (tmp_path / "cache").mkdir()
    manifest = tmp_path / "m-v1.json"
    manifest.write_bytes(release.to_json())
    script = (  # the other program fills the disk right after we looked whether there is room
        "import sys\n"
        "from pathlib import Path\n"
        "from tests import fetch_child\n"
        "class Crowded(fetch_child.NodeCache):\n"
        "    def make_room(self, release, missing):\n"
        "        super().make_room(release, missing)\n"
        "        (self.root / 'somebody-else').write_bytes(bytes(8 << 20))\n"
        "fetch_child.NodeCache = Crowded\n"
        "fetch_child.main(Path(sys.argv[1]))\n"
    )
    environment = (
        os.environ | minio_server.environment | {"CACHE_DIR": str(tmp_path / "cache"), "FETCH_PART_BYTES": str(MIB)}
    )
    done = subprocess.run(
        [*in_a_small_disk(tmp_path, 14 * MIB), sys.executable, "-c", script, str(manifest)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["error"] == NotEnoughDisk.__name__
    assert "the disk became full" in last["message"]
