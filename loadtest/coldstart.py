"""Cold starts as an experiment: what is started, in which order, and what one start told us.

An arm is one way to start a model. Arms alternate (A B B A …), so that a slow drift of the machine (a warming cache, a busy
neighbour) falls on all of them alike.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way to start a model: what is registered, and in which state the node's cache is."""

    name: str
    variant: str
    cache: str
    title: str

    @property
    def embedded(self) -> bool:
        """Whether it starts on the baseline, a stock TorchServe."""
        return self.variant != "slim"


ARMS = {
    arm.name: arm
    for arm in (
        Arm("slim-cold", "slim", "cold", "slim, empty cache"),
        Arm("slim-warm", "slim", "warm", "slim, warm cache"),
        Arm("mar", "mar", "cold", "embedded .mar"),
        Arm("tgz", "tgz", "cold", "embedded .tgz"),
        Arm("store", "store", "cold", "embedded .mar, stored"),
        Arm("no-archive", "no-archive", "cold", "embedded folder"),
    )
}


def interleaved(arms: Sequence[Arm], rounds: int) -> Iterator[tuple[int, Arm]]:
    """Round number (from 1) and arm: forward in odd rounds, backward in even ones, so A B, B A, A B …"""
    for number in range(1, rounds + 1):
        for arm in arms if number % 2 else reversed(arms):
            yield number, arm


@dataclass(frozen=True)
class ColdStart:
    """One start. Times in seconds from the trigger; `error` set and no times, or times and no error.

    `skipped`: it was not tried, since what it needs (the baseline) is not running; `error` says so.
    """

    arm: str
    model: str
    round: int
    at: float
    release: str | None = None
    digest: str | None = None
    ready_s: float | None = None
    first_s: float | None = None
    build_s: float | None = None
    archive_bytes: int | None = None
    bytes_from_store: int | None = None
    phases: dict[str, float] = field(default_factory=dict)
    skipped: bool = False
    error: str | None = None

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise ValueError(f"required one of {', '.join(ARMS)}, found arm {self.arm!r}")
        if (self.error is None) == (self.ready_s is None):
            raise ValueError("required either an error or the time to READY, found both or neither")
        if self.skipped and self.error is None:
            raise ValueError("required a reason for a start that was not tried, found none")
        if self.ready_s is not None and self.first_s is not None and self.first_s < self.ready_s:
            raise ValueError(f"required a first token after READY, found {self.first_s} s before {self.ready_s} s")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
