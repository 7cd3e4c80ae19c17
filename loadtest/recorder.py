"""What a run measured: one series for each kind of request, and every cold start, kept apart from each other.

Cold starts have an event and a list of their own and never reach Locust's request statistics, where a start of 15 s would
spoil the percentiles of requests of 15 ms. In distributed mode a worker hands over what it has with each report
(`drain`), and the master adds it up (`merge`).
"""

import time
from dataclasses import dataclass, field, fields
from typing import Any

from loadtest.coldstart import ColdStart
from loadtest.figures import Histogram

POINTS_KEPT = 2000  # an hour at one point every 2 s, for each series


@dataclass(frozen=True)
class Key:
    """What one series is about. `stage` is empty on the page and names the step in a headless run."""

    stage: str
    kind: str
    model: str
    release: str


@dataclass(frozen=True)
class Outcome:
    """One request as its user saw it. Milliseconds; `at` is the wall clock when it ended."""

    at: float
    latency_ms: float
    ok: bool
    tokens: int = 0
    first_ms: float | None = None
    gaps_ms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Point:
    """What happened in one interval of a series, for charts over time."""

    at: float
    seconds: float
    users: int
    requests: int
    tokens: int
    p50_ms: float | None
    p95_ms: float | None


@dataclass
class Series:
    """All requests of one kind. Latency counts from when the request was due, to its last byte; failures have none."""

    latency: Histogram = field(default_factory=Histogram)
    first: Histogram = field(default_factory=Histogram)
    gaps: Histogram = field(default_factory=Histogram)
    requests: int = 0
    failures: int = 0
    good: int = 0
    tokens: int = 0
    began: float | None = None
    ended: float | None = None

    def add(self, outcome: Outcome, slo_ms: float) -> None:
        self.requests += 1
        start = outcome.at - outcome.latency_ms / 1000
        self.began = start if self.began is None else min(self.began, start)
        self.ended = outcome.at if self.ended is None else max(self.ended, outcome.at)
        if not outcome.ok:
            self.failures += 1
            return
        self.latency.add(outcome.latency_ms)
        self.good += outcome.latency_ms <= slo_ms
        self.tokens += outcome.tokens
        if outcome.first_ms is not None:
            self.first.add(outcome.first_ms)
        for gap in outcome.gaps_ms:
            self.gaps.add(gap)

    def merge(self, other: "Series") -> None:
        for mine, theirs in ((self.latency, other.latency), (self.first, other.first), (self.gaps, other.gaps)):
            mine.merge(theirs)
        self.requests += other.requests
        self.failures += other.failures
        self.good += other.good
        self.tokens += other.tokens
        self.began = min((t for t in (self.began, other.began) if t is not None), default=None)
        self.ended = max((t for t in (self.ended, other.ended) if t is not None), default=None)

    @property
    def seconds(self) -> float:
        """From the start of the first request to the end of the last."""
        return self.ended - self.began if self.began is not None and self.ended is not None else 0.0

    def rate(self, count: int) -> float | None:
        """`count` over the seconds of the series; None before the first request."""
        return count / self.seconds if self.seconds > 0 else None

    def as_dict(self) -> dict[str, Any]:
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value.as_dict() if isinstance(value, Histogram) else value for name, value in plain.items()}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Series":
        plain: dict[str, Any] = {k: Histogram.from_dict(v) if isinstance(v, dict) else v for k, v in raw.items()}
        return cls(**plain)


@dataclass
class Load:
    """What a series did while so many users were at work, for latency over load."""

    latency: Histogram = field(default_factory=Histogram)
    seconds: float = 0.0

    def add(self, one: Series, seconds: float) -> None:
        self.latency.merge(one.latency)
        self.seconds += seconds


class Recorder:
    """Everything one process has measured. Not thread-safe: greenlets only."""

    def __init__(self) -> None:
        self.stage = ""
        self.slo_ms = 2000.0
        self.epoch = 0
        self.series: dict[Key, Series] = {}
        self.points: dict[Key, list[Point]] = {}
        self.loads: dict[Key, dict[int, Load]] = {}
        self.cold_starts: list[ColdStart] = []
        self._users = 0
        self._recent: dict[Key, Series] = {}
        self._ticked = time.time()

    def record(self, kind: str, model: str, release: str, outcome: Outcome) -> None:
        one = Series()
        one.add(outcome, self.slo_ms)
        self._add(Key(self.stage, kind, model, release), one)

    def record_cold_start(self, start: ColdStart) -> None:
        self.cold_starts.append(start)

    def tick(self, users: int, now: float | None = None) -> None:
        """Close the interval since the last tick: one point for each series, and its load if the users were as many as before."""
        now = time.time() if now is None else now
        seconds, self._ticked = max(now - self._ticked, 1e-3), now
        recent, self._recent = self._recent, {}
        steady, self._users = users == self._users, users
        for key in self.series:
            one = recent.get(key, Series())
            if one.requests or key.stage == self.stage:
                p50, p95 = one.latency.percentile(0.5), one.latency.percentile(0.95)
                points = self.points.setdefault(key, [])
                points.append(Point(now, seconds, users, one.requests, one.tokens, p50, p95))
                del points[:-POINTS_KEPT]
            if steady:
                self.loads.setdefault(key, {}).setdefault(users, Load()).add(one, seconds)

    def forget_requests(self) -> None:
        """Drop the requests of this stage; those of stages before it and cold starts stay."""
        for kept in (self.series, self.points, self.loads):
            for key in [key for key in kept if key.stage == self.stage]:
                del kept[key]
        self._recent.clear()
        self._ticked = time.time()

    def end_warmup(self, epoch: int) -> None:
        """Drop the requests so far, here and in what workers hand over that was recorded before they heard of it."""
        self.forget_requests()
        self.epoch = epoch

    def forget_all(self) -> None:
        """For a new run."""
        self.end_warmup(0)
        self.cold_starts.clear()

    def drain(self) -> dict[str, Any]:
        """What came since the last drain, as plain data; for a worker, which keeps nothing."""
        sent = {
            "epoch": self.epoch,
            "series": [[k.stage, k.kind, k.model, k.release, s.as_dict()] for k, s in self.series.items()],
            "cold_starts": [start.as_dict() for start in self.cold_starts],
        }
        self.forget_requests()
        self.cold_starts.clear()
        return sent

    def merge(self, sent: dict[str, Any]) -> None:
        """On the master: add what a worker drained."""
        for *key, raw in sent["series"] if sent["epoch"] == self.epoch else ():
            self._add(Key(*key), Series.from_dict(raw))
        self.cold_starts.extend(ColdStart(**start) for start in sent["cold_starts"])

    def _add(self, key: Key, one: Series) -> None:
        self.series.setdefault(key, Series()).merge(one)
        self._recent.setdefault(key, Series()).merge(one)
