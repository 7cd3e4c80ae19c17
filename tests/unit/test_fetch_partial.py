"""A file on its way: parts in any order, stops at any point, damage in between. A wrong byte must never get a final name."""

import json
import random
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.fetching import entry_of, some_bytes
from weightless.errors import CacheError
from weightless.fetch.partial import Partial, finished_parts

PART = 1000
BUFFER = memoryview(bytearray(300))  # smaller than a part: the digest is read back in several pieces


def opened(folder: Path, body: bytes) -> Partial:
    found = Partial.open(folder / "partial", entry_of("f", body), PART, 0o644)
    assert found is not None
    return found


def bring(partial: Partial, body: bytes, start: int, end: int, *, finish: bool = True) -> None:
    """What a thread of a transfer does with one part."""
    claimed = partial.claim(start)
    for at in range(start, end, 170):
        partial.write(memoryview(body)[at : min(at + 170, end)], at, claimed=claimed)
    if claimed:
        partial.unclaim()
    if finish:
        part = next(span for span in partial.left() if span.start == start)
        partial.finish(part)
        partial.catch_up(BUFFER)


@given(size=st.integers(0, 6 * PART), seed=st.integers(0, 99), stops=st.lists(st.integers(0, 6), max_size=3))
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_parts_with_stops_in_between_ends_with_the_right_digest(
    tmp_path: Path, size: int, seed: int, stops: list[int]
) -> None:
    body, order = some_bytes(size, seed), random.Random(seed)
    (tmp_path / "partial").unlink(missing_ok=True)
    partial = opened(tmp_path, body)
    for stop in [*stops, 99]:
        for _ in range(stop):
            left = partial.left()
            if not left:
                break
            part = order.choice(left)
            bring(partial, body, part.start, part.end)
        if partial.left():  # the process goes away in the middle of a part, and another comes
            part = order.choice(partial.left())
            bring(partial, some_bytes(size, seed + 1), part.start, (part.start + part.end) // 2, finish=False)
            partial.close()
            partial = opened(tmp_path, body)
            partial.catch_up(BUFFER)
    assert partial.hashed_whole()
    assert partial.found() == blake3(body).hexdigest()
    partial.commit(tmp_path / "final")
    assert (tmp_path / "final").read_bytes() == body
    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    (tmp_path / "final").unlink()


def test_bytes_of_an_earlier_process_are_hashed_again_before_they_count(tmp_path: Path) -> None:
    body = some_bytes(3 * PART, 1)
    partial = opened(tmp_path, body)
    bring(partial, body, 0, PART)
    bring(partial, body, PART, 2 * PART)
    partial.close()
    damaged = bytearray((tmp_path / "partial").read_bytes())
    damaged[10] ^= 1
    (tmp_path / "partial").write_bytes(damaged)

    partial = opened(tmp_path, body)
    assert partial.finished_bytes == 2 * PART
    partial.catch_up(BUFFER)
    bring(partial, body, 2 * PART, 3 * PART)
    assert partial.hashed_whole()
    assert partial.found() != partial.entry.blake3
    partial.start_over()
    assert [len(span) for span in partial.left()] == [PART, PART, PART]
    for part in partial.left():
        bring(partial, body, part.start, part.end)
    assert partial.found() == partial.entry.blake3
    partial.close()


@pytest.mark.parametrize(
    "text", ["", "{}", "[[5, 1]]", "[[0]]", '["ab"]', "[[0, 99999999]]", "null", "[[0, 1", '[[0, "x"]]', "[1, 2]"]
)
def test_a_sidecar_that_makes_no_sense_means_that_nothing_is_finished(tmp_path: Path, text: str) -> None:
    body = some_bytes(3 * PART, 1)
    (tmp_path / "partial").write_bytes(body)
    (tmp_path / "partial.parts").write_text(text)
    partial = opened(tmp_path, body)
    assert partial.finished_bytes == 0
    assert len(partial.left()) == 3
    partial.close()


def test_a_sidecar_without_its_file_means_that_nothing_is_finished(tmp_path: Path) -> None:
    (tmp_path / "partial.parts").write_text(json.dumps([[0, PART]]))
    partial = opened(tmp_path, some_bytes(3 * PART, 1))
    assert partial.finished_bytes == 0
    partial.close()


def test_the_sidecar_names_finished_parts_for_whoever_comes_next(tmp_path: Path) -> None:
    body = some_bytes(4 * PART, 1)
    partial = opened(tmp_path, body)
    bring(partial, body, PART, 2 * PART)
    bring(partial, body, 2 * PART, 3 * PART)
    spans = finished_parts(tmp_path / "partial.parts")
    assert [(span.start, span.end) for span in spans] == [(PART, 3 * PART)]
    partial.close()


def test_only_one_at_a_time(tmp_path: Path) -> None:
    body = some_bytes(PART, 1)
    partial = opened(tmp_path, body)
    assert Partial.open(tmp_path / "partial", partial.entry, PART, 0o644) is None
    bring(partial, body, 0, PART)
    partial.commit(tmp_path / "final")
    again = Partial.open(tmp_path / "partial", partial.entry, PART, 0o644)
    assert again is not None, "the lock outlived its holder"
    again.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_file_that_somebody_shortens_is_noticed(tmp_path: Path) -> None:
    body = some_bytes(2 * PART, 1)
    partial = opened(tmp_path, body)
    bring(partial, body, PART, 2 * PART)
    with (tmp_path / "partial").open("r+b") as file:
        file.truncate(0)
    with pytest.raises(CacheError, match="shortened"):
        bring(partial, body, 0, PART)
    partial.close()


def test_a_committed_file_cannot_be_written_by_accident(tmp_path: Path) -> None:
    body = some_bytes(PART, 1)
    partial = opened(tmp_path, body)
    bring(partial, body, 0, PART)
    partial.commit(tmp_path / "final")
    assert (tmp_path / "final").stat().st_mode & 0o777 == 0o444
