"""When requests of the open loop are due, against what a Poisson process is: a generator that waits for a slow server, or bunches
its requests, would measure another load than it says."""

import math
from random import Random
from statistics import mean, variance

import pytest

from loadtest.arrivals import Arrivals


class Uniform(Random):
    """Gives known numbers in place of random ones."""

    def __init__(self, *numbers: float) -> None:
        super().__init__()
        self._numbers = iter(numbers)

    def random(self) -> float:
        return next(self._numbers)


def test_gaps_are_exponential() -> None:
    """By hand, -ln(1-u)/rate: at 2/s a u of 0.5 is 0.3466 s, of 0 nothing, of 1-1/e half a second."""
    arrivals = Arrivals(2, 100.0, Uniform(0.5, 0.0, 1 - 1 / math.e))
    due = [arrivals.next() for _ in range(3)]
    assert due == pytest.approx([100.34657, 100.34657, 100.84657], abs=1e-5)


def test_arrivals_in_a_second_have_the_mean_and_the_variance_of_a_poisson_process() -> None:
    """At 5/s both are 5; at a fixed beat the variance would be 0. Of 20,000 seconds the mean is off by some 0.016, the variance
    by 0.05."""
    arrivals, seconds = Arrivals(5, 0.0, Random(1)), 20_000
    counts = [0] * seconds
    while (due := arrivals.next()) < seconds:
        counts[int(due)] += 1
    assert mean(counts) == pytest.approx(5, abs=0.08)
    assert variance(counts) == pytest.approx(5, abs=0.25)
    # Of independent seconds e^-5 are empty: 135 of 20,000, give or take 12.
    assert counts.count(0) == pytest.approx(seconds * math.exp(-5), abs=60)


def test_what_was_due_while_nobody_was_served_is_forgotten() -> None:
    arrivals = Arrivals(1, 0.0, Uniform(0.5, 0.5))
    assert arrivals.next() == pytest.approx(math.log(2))
    arrivals.restart(50.0)
    assert arrivals.next() == pytest.approx(50 + math.log(2))


@pytest.mark.parametrize("rate", [0, -1, math.nan])
def test_a_rate_must_be_one(rate: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Arrivals(rate, 0.0, Random(1))
