"""Open loop: when requests are due, as if sent by many people who do not wait for each other."""

from random import Random


class Arrivals:
    """A Poisson process: gaps between arrivals are exponential, and each is due a gap after the one before it was *due*.

    So a request that goes out late does not delay those after it, and the rate holds however slow the answers are. Seconds on
    whatever clock `start` is of.
    """

    def __init__(self, rate: float, start: float, random: Random) -> None:
        """`rate`: arrivals a second."""
        if not rate > 0:
            raise ValueError(f"required a rate above 0, found {rate}")
        self._rate = rate
        self._due = start
        self._random = random

    def next(self) -> float:
        """When the next request is due."""
        self._due += self._random.expovariate(self._rate)
        return self._due

    def restart(self, now: float) -> None:
        """Forget what was due before `now`: nobody could be served then."""
        self._due = now
