"""The fetch against networks that cut, stall and dribble, and a bucket that changes meanwhile. What a user would lose: a start that
hangs, a download that begins again from nothing, or a model with a wrong byte in it."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.fetching import (
    FETCH,
    FILES,
    MIB,
    SIZE,
    cache_at,
    entry_of,
    fetch,
    holds,
    release_of,
    some_bytes,
)
from tests.proxies import (
    Toxiproxy,
)
from tests.services import MinioServer, free_port
from weightless.errors import (
    FetchFailed,
)
from weightless.fetch import Progress
from weightless.fetch.readback import read_back

IN_FLIGHT = FETCH.fetch_connections * MIB  # what an interruption may cost: the parts that were on their way


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
        fetch(minio_server.settings_at(toxiproxy.endpoint), cache, release, fetch_stall_seconds=5)  # its head takes 2 s
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


def test_many_small_files_over_connections_that_are_cut(
    minio_server: MinioServer, toxiproxy: Toxiproxy, tmp_path: Path
) -> None:
    """Their requests are sent ahead on several connections; what was asked on one that dies must be asked again."""
    files = {f"{number:03}.json": some_bytes(3000 + number, number) for number in range(120)}
    release, cache = release_of(minio_server, "m", files), cache_at(tmp_path / "cache")
    toxiproxy.add("limit_data", bytes=20_000)  # each connection dies after four or five of them
    result = fetch(minio_server.settings_at(toxiproxy.endpoint), cache, release)
    assert holds(cache, release, files)
    assert result.retries >= 10
    assert result.bytes_from_store == sum(map(len, files.values()))


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
