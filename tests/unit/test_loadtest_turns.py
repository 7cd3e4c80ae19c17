"""In which order arms are measured."""

from itertools import pairwise

import pytest

from loadtest.turns import in_turns


def test_two_arms_alternate() -> None:
    assert list(in_turns("AB", 3)) == [(1, "A"), (1, "B"), (2, "B"), (2, "A"), (3, "A"), (3, "B")]


@pytest.mark.parametrize("count", [3, 4, 7, 10])
def test_every_arm_has_its_turn_in_each_round_and_comes_after_every_other_equally_often(count: int) -> None:
    arms = "ABCDEFGHIJ"[:count]
    rounds = count if count % 2 == 0 else 2 * count
    taken = list(in_turns(arms, rounds))
    rows = [[arm for number, arm in taken if number == wanted] for wanted in range(1, rounds + 1)]
    assert all(sorted(row) == list(arms) for row in rows)
    pairs = [pair for row in rows for pair in pairwise(row)]
    assert {pairs.count((one, other)) for one in arms for other in arms if one != other} == {rounds // count}


def test_no_round_and_no_arm() -> None:
    assert list(in_turns("ABC", 0)) == list(in_turns("", 2)) == []
