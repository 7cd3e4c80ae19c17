"""The fetch against networks, stores, disks and deaths. What a user would lose: a model with a wrong byte in it, or a start that
hangs, or a download that begins again from nothing."""

import contextlib
import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fetching import (
    FETCH,
    MIB,
    cache_at,
    entry_of,
    fetch,
    holds,
    outcome,
    release_of,
    release_with,
    some_bytes,
    start_fetch,
    wrong_blobs,
)
from tests.proxies import (
    Answer,
    Toxiproxy,
    certificate_for_loopback,
    lying_proxy_to,
    proxy_that_hangs_after,
    toxiproxy_to,
)
from tests.services import ROOT, MinioServer, free_port, wait_for
from weightless.cache import NodeCache
from weightless.errors import (
    AccessDenied,
    FetchFailed,
    NotEnoughDisk,
    NotFound,
    StoreUnavailable,
    VerificationFailed,
    WeightlessError,
)
from weightless.fetch import Progress, read_back
from weightless.fetch.partial import finished_parts

FILES = {
    "config.json": b'{"a": 1}',
    "model.safetensors": some_bytes(9 * MIB + 12345, 1),
    "b/c.bin": some_bytes(300_000, 2),
}
SIZE = sum(map(len, FILES.values()))
IN_FLIGHT = FETCH.fetch_connections * MIB  # what an interruption may cost: the parts that were on their way


@pytest.fixture
def toxiproxy(minio_server: MinioServer) -> Iterator[Toxiproxy]:
    with toxiproxy_to(minio_server) as proxy:
        yield proxy


class Warnings(logging.Handler):
    """Sets `seen` at the first warning whose text has `words`."""

    def __init__(self, words: str) -> None:
        super().__init__(logging.WARNING)
        self._words = words
        self.seen = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self._words in record.getMessage():
            self.seen.set()


@contextlib.contextmanager
def after_warning(words: str, act: Callable[[], None]) -> Iterator[threading.Event]:
    """Do something as soon as the fetch has warned of this, while it goes on."""
    handler = Warnings(words)

    def wait() -> None:
        if handler.seen.wait(60):
            act()

    thread = threading.Thread(target=wait, daemon=True)
    logging.getLogger("weightless").addHandler(handler)
    thread.start()
    try:
        yield handler.seen
    finally:
        logging.getLogger("weightless").removeHandler(handler)
        handler.seen.set()
        thread.join()


def once_past(share: float, act: Callable[[], None]) -> Callable[[Progress], None]:
    """A progress callback that acts once, when so much of the release is there."""
    acted = threading.Event()

    def callback(progress: Progress) -> None:
        if progress.done >= share * progress.total and not acted.is_set():
            acted.set()
            act()

    return callback


# ---- the network


def test_a_connection_that_is_cut_again_and_again_costs_only_what_was_in_flight(
    minio_server: MinioServer, toxiproxy: Toxiproxy, tmp_path: Path
) -> None:
    """In the same process not even that: a part goes on at the byte where it broke."""
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    toxiproxy.add("limit_data", bytes=1_300_000)  # each connection dies after that many bytes
    result = fetch(minio_server.settings_at(toxiproxy.endpoint), cache, release, fetch_part_bytes=4 * MIB)
    assert holds(cache, release, FILES)
    assert result.retries >= 6
    assert result.bytes_from_store == SIZE


def test_a_store_that_goes_away_and_comes_back_is_waited_for(
    minio_server: MinioServer, toxiproxy: Toxiproxy, tmp_path: Path
) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    toxiproxy.add("bandwidth", rate=8000)
    away = once_past(0.2, lambda: toxiproxy.enable(False))
    with after_warning("trying again", lambda: toxiproxy.enable(True)) as warned:
        result = fetch(minio_server.settings_at(toxiproxy.endpoint), cache, release, away, fetch_attempts=20)
        assert warned.is_set()
    assert holds(cache, release, FILES)
    assert result.bytes_from_store <= SIZE + IN_FLIGHT


def test_a_stalled_connection_is_noticed_and_asked_again(
    minio_server: MinioServer, toxiproxy: Toxiproxy, tmp_path: Path
) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    toxiproxy.add("bandwidth", rate=8000)
    stall = once_past(0.2, lambda: toxiproxy.add("timeout", timeout=0))
    with after_warning("FETCH_STALL_SECONDS", toxiproxy.clear) as warned:
        result = fetch(minio_server.settings_at(toxiproxy.endpoint), cache, release, stall, fetch_attempts=20)
        assert warned.is_set()
    assert holds(cache, release, FILES)
    assert result.retries >= 1


def test_a_connection_that_dribbles_counts_as_stalled(
    minio_server: MinioServer, toxiproxy: Toxiproxy, tmp_path: Path
) -> None:
    files = {"model.safetensors": some_bytes(MIB, 1)}
    release, cache = release_of(minio_server, "m", files), cache_at(tmp_path / "cache")
    toxiproxy.add("slicer", average_size=100, size_variation=1, delay=200_000)  # 500 bytes a second, never silent
    with after_warning("stalled at less than", toxiproxy.clear) as warned:
        fetch(minio_server.settings_at(toxiproxy.endpoint), cache, release)
        assert warned.is_set()
    assert holds(cache, release, files)


def test_a_store_that_stays_away_is_an_error_that_says_so(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    nowhere = minio_server.settings_at(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(FetchFailed, match=r"refused; gave up after 2 attempts that brought nothing"):
        fetch(nowhere, cache, release, fetch_attempts=2)


def test_with_the_store_away_a_complete_release_needs_nothing_of_it(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    fetch(minio_server.settings, cache, release)
    result = fetch(minio_server.settings_at(f"http://127.0.0.1:{free_port()}"), cache, release, fetch_attempts=1)
    assert (result.bytes_from_store, result.bytes_from_cache) == (0, SIZE)


# ---- answers that lie


def flip_a_bit(answer: Answer) -> None:
    body = bytearray(answer.body)
    if len(body) > 1000:
        body[len(body) // 2] ^= 4
    answer.body = bytes(body)


def end_early(answer: Answer) -> None:
    answer.body, answer.cut = answer.body[: len(answer.body) // 2], True


def say_200_to_a_range(answer: Answer) -> None:
    if b" 206 " in answer.head:
        answer.head = answer.head.replace(b" 206 Partial Content", b" 200 OK", 1)
        answer.head = re.sub(rb"(?i)content-range:[^\r]*\r\n", b"", answer.head)


def send_the_whole_to_a_range(answer: Answer) -> None:
    if b" 206 " in answer.head:
        say_200_to_a_range(answer)
        answer.body = FILES["model.safetensors"]
        answer.head = re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(answer.body), answer.head)


def send_another_range(answer: Answer) -> None:
    answer.head = re.sub(rb"(?i)content-range: bytes \d+", b"Content-Range: bytes 7", answer.head)


def send_more(answer: Answer) -> None:
    answer.body += b"more"
    answer.head = re.sub(rb"(?i)content-length: \d+", b"Content-Length: %d" % len(answer.body), answer.head)


def say_another_version(answer: Answer) -> None:
    answer.head = re.sub(rb"(?i)x-amz-version-id: [^\r]*", b"x-amz-version-id: another", answer.head)


def forget_the_length(answer: Answer) -> None:
    answer.head = re.sub(rb"(?i)content-length:[^\r]*\r\n", b"", answer.head)
    answer.cut = True


def be_busy(answer: Answer) -> None:
    answer.body = b"<Error><Code>SlowDown</Code></Error>"
    answer.head = b"HTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n" % len(answer.body)


def speak_nonsense(answer: Answer) -> None:
    answer.head, answer.body, answer.cut = b"\x00\x01 nothing that HTTP knows\r\n\r\n", b"", True


LIES: dict[str, tuple[Callable[[Answer], None], type[WeightlessError], str]] = {
    "a flipped bit": (flip_a_bit, VerificationFailed, "required BLAKE3"),
    "a truncated body": (end_early, FetchFailed, "bytes early"),
    "a 200 to a range": (say_200_to_a_range, FetchFailed, "required HTTP 206, found 200"),
    "the whole object to a range": (send_the_whole_to_a_range, FetchFailed, "required HTTP 206, found 200"),
    "another range": (send_another_range, FetchFailed, "required bytes "),
    "a longer body": (send_more, FetchFailed, "found Content-Length"),
    "another version": (say_another_version, FetchFailed, "required this version, found another"),
    "no length": (forget_the_length, FetchFailed, "required a Content-Length"),
    "a busy store": (be_busy, FetchFailed, "SlowDown"),
    "nonsense": (speak_nonsense, FetchFailed, "gave up"),
}


@pytest.mark.parametrize("name", LIES)
def test_one_answer_that_lies_is_caught_and_asked_again(minio_server: MinioServer, tmp_path: Path, name: str) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    lie = LIES[name][0]
    lied = threading.Event()

    def once(answer: Answer) -> None:
        before = (answer.head, answer.body, answer.cut)
        if not lied.is_set() and len(answer.body) == MIB:  # a part of the large file
            lie(answer)
            if (answer.head, answer.body, answer.cut) != before:
                lied.set()

    with lying_proxy_to(minio_server, once) as proxy:
        result = fetch(minio_server.settings_at(proxy.endpoint), cache, release)
    assert lied.is_set()
    assert result.retries >= 1
    assert holds(cache, release, FILES)
    assert wrong_blobs(cache) == []


@pytest.mark.parametrize("name", LIES)
def test_answers_that_always_lie_end_in_an_error_and_never_in_a_file(
    minio_server: MinioServer, tmp_path: Path, name: str
) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    lie, error, words = LIES[name]
    with lying_proxy_to(minio_server, lie) as proxy, pytest.raises(error, match=words):
        fetch(minio_server.settings_at(proxy.endpoint), cache, release, fetch_attempts=3)
    assert not cache.is_complete(release)
    assert wrong_blobs(cache) == []
    assert not (cache.folder(release) / "model.safetensors").exists()

    fetch(minio_server.settings, cache, release)  # what was left behind spoils nothing
    assert holds(cache, release, FILES)


# ---- the bucket


def test_a_file_overwritten_in_mid_fetch_changes_nothing(
    minio_server: MinioServer, toxiproxy: Toxiproxy, tmp_path: Path
) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    toxiproxy.add("bandwidth", rate=8000)
    other = some_bytes(9 * MIB + 12345, 77)
    overwritten: list[str] = []
    overwrite = once_past(0.3, lambda: overwritten.append(minio_server.put("models", "m/model.safetensors", other)))
    fetch(minio_server.settings_at(toxiproxy.endpoint), cache, release, overwrite)
    assert overwritten
    assert holds(cache, release, FILES)


def test_a_version_that_was_deleted_is_named(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    version = release.location.versions["m/b/c.bin"]
    minio_server.client().remove_object("models", "m/b/c.bin", version_id=version)
    with pytest.raises(NotFound, match=rf"models/m/b/c.bin \(version {version}\).*publish the model again"):
        fetch(minio_server.settings, cache, release)


def test_wrong_keys_are_said_at_once(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    settings = minio_server.settings.model_copy(update={"s3_access_key": "nobody"})
    with pytest.raises(AccessDenied, match="nobody"):
        fetch(settings, cache, release)


@pytest.mark.parametrize("what", ["size", "digest"])
def test_a_release_that_does_not_fit_its_objects_is_refused(
    minio_server: MinioServer, tmp_path: Path, what: str
) -> None:
    body = FILES["model.safetensors"]
    version = minio_server.put("models", "m/model.safetensors", body)
    entry = entry_of("model.safetensors", body)
    wrong = {"size": entry.size + 5} if what == "size" else {"blake3": "0" * 64}
    release = release_with("m", [entry.model_copy(update=wrong)], {"m/model.safetensors": version})
    cache = cache_at(tmp_path / "cache")
    with pytest.raises((FetchFailed, VerificationFailed), match=r"m/model\.safetensors"):
        fetch(minio_server.settings, cache, release, fetch_attempts=2)
    assert wrong_blobs(cache) == []
    assert not cache.is_complete(release)


def test_names_that_people_use_and_empty_and_equal_files(minio_server: MinioServer, tmp_path: Path) -> None:
    files = {
        "with space/ümläut ☃.json": b"{}",
        "a+b=c&d%20e#f?.txt": b"signs that URLs know",
        "~tilde/…/x.bin": some_bytes(2 * MIB, 4),
        "empty": b"",
        "empty too": b"",
        "the same as x.bin": some_bytes(2 * MIB, 4),
    }
    release, cache = release_of(minio_server, "m", files), cache_at(tmp_path / "cache")
    result = fetch(minio_server.settings, cache, release)
    assert holds(cache, release, files)
    assert result.bytes_from_store == sum(map(len, dict.fromkeys(files.values())))
    assert cache.is_complete(release)


def test_tls_with_a_ca_of_its_own(minio_server: MinioServer, tmp_path: Path) -> None:
    release, cache = release_of(minio_server, "m", FILES), cache_at(tmp_path / "cache")
    certificate, context = certificate_for_loopback(tmp_path)
    with lying_proxy_to(minio_server, lambda answer: None, context) as proxy:
        settings = minio_server.settings_at(proxy.endpoint)
        with pytest.raises(StoreUnavailable, match=r"not trusted.*S3_CA_BUNDLE"):
            fetch(settings, cache, release)
        result = fetch(settings.model_copy(update={"s3_ca_bundle": certificate}), cache, release)
    assert holds(cache, release, FILES)
    assert result.retries == 0


# ---- deaths and company


def kill_at_random_points(minio_server: MinioServer, toxiproxy: Toxiproxy, tmp_path: Path, times: int) -> None:
    """Kill the fetch again and again on the same cache; then look at all that is under a final name, and finish."""
    files = {**FILES, **{f"small-{number}.json": some_bytes(4000, 100 + number) for number in range(30)}}
    release, cache = release_of(minio_server, "m", files), cache_at(tmp_path / "cache")
    toxiproxy.add("bandwidth", rate=6000)
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
    toxiproxy.clear()
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


# ---- reading back


def test_reading_back_says_what_a_version_really_holds(minio_server: MinioServer) -> None:
    old, new = some_bytes(2 * MIB + 7, 1), b""
    versions = [minio_server.put("models", "m/x", body) for body in (old, new)]
    for version, body in zip(versions, (old, new), strict=True):
        found, entry = read_back(minio_server.store(), "m/x", version, settings=FETCH), entry_of("x", body)
        assert (found.size, found.blake3, found.sha256) == (entry.size, entry.blake3, entry.sha256)


def test_reading_back_goes_on_after_a_cut(minio_server: MinioServer, toxiproxy: Toxiproxy) -> None:
    from weightless.store import Store

    body = some_bytes(7 * MIB, 1)
    version = minio_server.put("models", "m/x", body)
    toxiproxy.add("limit_data", bytes=2_500_000)
    store = Store(minio_server.settings_at(toxiproxy.endpoint))
    assert read_back(store, "m/x", version, settings=FETCH).blake3 == entry_of("x", body).blake3
