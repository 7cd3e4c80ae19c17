"""What an experiment is: arms that take turns, samples of them, and ratios of the samples' medians."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loadtest.turns import in_turns
from weightless.errors import WeightlessError

if TYPE_CHECKING:
    from loadtest.bench.node import Node


class BenchFailed(WeightlessError):
    """An experiment cannot go on; the message says what was required and found."""


class Absent(Exception):
    """A ratio's samples were not taken in this run."""


@dataclass(frozen=True)
class Sample:
    """One measurement of one arm. `figures`: numbers by name, whose last word is the unit (ready_s, rate_mib_s)."""

    experiment: str
    arm: str
    figures: Mapping[str, float]
    at: float


class Samples:
    """All samples of a run, in the order in which they were taken."""

    def __init__(self) -> None:
        self.all: list[Sample] = []

    def values(self, arm: str, figure: str) -> list[float]:
        """Raises Absent if there are none."""
        found = [sample.figures[figure] for sample in self.all if sample.arm == arm and figure in sample.figures]
        if not found:
            raise Absent(f"{arm} {figure}")
        return found

    def median(self, arm: str, figure: str) -> float:
        return statistics.median(self.values(arm, figure))

    def arms(self, experiment: str) -> list[str]:
        """In the order of their first samples."""
        return list(dict.fromkeys(sample.arm for sample in self.all if sample.experiment == experiment))


@dataclass(frozen=True)
class Ratio:
    """A figure of results.json. `value` computes it from the samples; `at_most` or `at_least` is where we want it to be, if
    anywhere: one without is said beside the ones that look better.
    """

    key: str
    meaning: str
    value: Callable[[Samples], float]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def reach(self) -> str:
        if self.at_most is not None:
            return f"≤ {self.at_most:g}"
        return f"≥ {self.at_least:g}" if self.at_least is not None else "said"

    def reached(self, found: float) -> bool | None:
        """None where nothing is aimed at."""
        if self.at_most is not None:
            return found <= self.at_most
        return None if self.at_least is None else found >= self.at_least


def over(arm: str, base: str, figure: str, base_figure: str | None = None) -> Callable[[Samples], float]:
    """The median of `figure` of one arm over that of another."""
    return lambda samples: samples.median(arm, figure) / samples.median(base, base_figure or figure)


def median(arm: str, figure: str) -> Callable[[Samples], float]:
    return lambda samples: samples.median(arm, figure)


@dataclass(frozen=True)
class Experiment:
    """`long`: it is run only when it is named."""

    name: str
    about: str
    run: Callable[["Bench"], None]
    ratios: tuple[Ratio, ...]
    long: bool = False


@dataclass
class Bench:
    """What an experiment works with. `scratch`: an empty folder on the disk that is measured. `count`: samples of each arm.

    `scale`: 1 is the benchmark; less makes the data smaller, to try the benchmark itself.
    """

    scratch: Path
    count: int = 5
    scale: float = 1.0
    tell: Callable[[str], None] = print
    samples: Samples = field(default_factory=Samples)
    facts: dict[str, Any] = field(default_factory=dict)
    _experiment: str = ""
    _node: "Node | None" = None
    _exit: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    @property
    def node(self) -> "Node":
        """The stack that is measured, started when it is first asked for and shared by the experiments."""
        from loadtest.bench.node import running_node

        if self._node is None:
            self.tell("starting a stack of its own")
            self._node = self._exit.enter_context(running_node(self.scratch / "stack"))
        return self._node

    def run(self, experiment: Experiment) -> None:
        self._experiment = experiment.name
        self.tell(f"{experiment.name}: {experiment.about}")
        experiment.run(self)

    def rounds(self, arms: Sequence[str], count: int | None = None) -> Iterator[tuple[int, str]]:
        """Number of the round (from 1) and arm, in turns."""
        return in_turns(arms, count or self.count)

    def record(self, arm: str, **figures: float) -> None:
        """Keep a sample, and show it."""
        kept = {name: float(f"{value:.6g}") for name, value in figures.items()}
        self.samples.all.append(Sample(self._experiment, arm, kept, round(time.time(), 3)))
        self.tell(f"  {arm:<34} {'  '.join(f'{name} {value:.4g}' for name, value in kept.items())}")

    def fact(self, name: str, value: Any) -> None:
        """Something about the run that is no sample: settings, the state of a cache, what was left out and why."""
        self.facts.setdefault(self._experiment, {})[name] = value

    def close(self) -> None:
        self._exit.close()


def as_plain(samples: Samples) -> list[dict[str, Any]]:
    return [asdict(sample) for sample in samples.all]
