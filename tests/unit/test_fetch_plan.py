"""Planning: if it were wrong, bytes would be asked for twice, or never."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fetching import entry_of
from weightless.fetch.plan import Span, fetch_order, merged, parts_left, reach, unique

SIZES = st.integers(0, 300)
PARTS = st.integers(1, 64)


@st.composite
def spans(draw: st.DrawFn) -> list[Span]:
    pairs = draw(st.lists(st.tuples(SIZES, SIZES), max_size=12))
    return [Span(min(pair), max(pair)) for pair in pairs]


def covered(found: list[Span]) -> set[int]:
    return {position for span in found for position in range(span.start, span.end)}


@given(spans())
def test_merging_keeps_every_byte_and_leaves_no_two_spans_that_touch(given_spans: list[Span]) -> None:
    found = merged(given_spans)
    assert covered(found) == covered(given_spans)
    assert all(len(span) for span in found)
    assert all(one.end < two.start for one, two in itertools.pairwise(found))


@given(SIZES, spans(), PARTS)
def test_what_is_left_is_every_byte_once_that_is_not_finished(size: int, finished: list[Span], part: int) -> None:
    left = parts_left(size, finished, part)
    assert covered(left) == set(range(size)) - covered(finished)
    assert sum(map(len, left)) == len(covered(left)), "a byte is asked for twice"
    assert left == sorted(left)


@given(SIZES, spans(), PARTS)
def test_no_part_crosses_a_boundary_or_is_empty(size: int, finished: list[Span], part: int) -> None:
    for span in parts_left(size, finished, part):
        assert len(span) > 0
        assert span.start // part == (span.end - 1) // part


@given(SIZES, PARTS, st.data())
def test_finishing_parts_in_any_order_ends_with_the_whole_file(size: int, part: int, data: st.DataObject) -> None:
    finished: list[Span] = []
    position = 0
    while left := parts_left(size, finished, part):
        finished = merged([*finished, data.draw(st.sampled_from(left))])
        position = reach(position, finished)
        assert set(range(position)) <= covered(finished), "the digest would go over bytes that are not there"
    assert reach(position, finished) == size


@given(st.integers(0, 300), spans())
def test_reach_stops_at_the_first_gap(position: int, found: list[Span]) -> None:
    end = reach(position, merged(found))
    assert set(range(position, end)) <= covered(found)
    assert end not in covered(found)


def test_a_span_that_ends_before_it_starts_is_refused() -> None:
    with pytest.raises(ValueError, match="found 3 and 2"):
        Span(3, 2)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=20), st.integers(1, 20))
def test_each_content_is_fetched_once_small_files_first(shapes: list[tuple[int, int]], part: int) -> None:
    files = [entry_of(f"f{number}", bytes([seed]) * size) for number, (size, seed) in enumerate(shapes)]
    ordered = fetch_order(unique(files), part)
    assert {file.blake3 for file in ordered} == {file.blake3 for file in files}
    assert len(ordered) == len({file.blake3 for file in files})
    small = [file.size for file in ordered if file.size <= part]
    large = [file.size for file in ordered if file.size > part]
    assert [file.size for file in ordered] == sorted(small) + sorted(large, reverse=True)
