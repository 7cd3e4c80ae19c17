"""Numbers: three digits that mean something, and histograms that keep them at any scale.

Locust's own buckets keep two digits (58,760 ms becomes 59,000), too coarse to compare two starts; see
https://docs.locust.io/en/stable/ "customizing response time bucketing" for the hook that is used here.
"""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


def three_digits(value: float) -> float:
    """`value` rounded to three significant digits: 4.5312 → 4.53, 58760 → 58800; an int from 100 on."""
    if not math.isfinite(value):
        raise ValueError(f"required a finite number, found {value}")
    rounded = float(f"{value:.3g}")
    return int(rounded) if abs(rounded) >= 100 else rounded


@dataclass
class Histogram:
    """Counts of values at three significant digits, so memory is bounded (900 buckets a decade) and two of them add up.

    Count, sum, minimum and maximum are exact; a percentile is off by at most half a unit of its third digit.
    """

    buckets: dict[float, int] = field(default_factory=dict)
    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        key = three_digits(value)
        self.buckets[key] = self.buckets.get(key, 0) + 1
        self.count += 1
        self.total += value
        self.low = min(self.low, value)
        self.high = max(self.high, value)

    def merge(self, other: "Histogram") -> None:
        for key, count in other.buckets.items():
            self.buckets[key] = self.buckets.get(key, 0) + count
        self.count += other.count
        self.total += other.total
        self.low = min(self.low, other.low)
        self.high = max(self.high, other.high)

    def percentile(self, fraction: float) -> float | None:
        """The smallest value that at least `fraction` (0 to 1] of all values do not exceed; None without values."""
        if not 0 < fraction <= 1:
            raise ValueError(f"required a fraction above 0 and up to 1, found {fraction}")
        rank = math.ceil(round(fraction * self.count, 9))
        seen = 0
        for value in sorted(self.buckets):
            seen += self.buckets[value]
            if seen >= rank:
                return value
        return None

    @property
    def mean(self) -> float | None:
        return self.total / self.count if self.count else None

    def as_dict(self) -> dict[str, Any]:
        """What a worker sends to its master, and `from_dict` reads."""
        return {"buckets": list(self.buckets.items()), "total": self.total, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> "Histogram":
        buckets = dict(raw["buckets"])
        return cls(buckets, sum(buckets.values()), raw["total"], raw["low"], raw["high"])


@dataclass(frozen=True)
class Spread:
    """A handful of samples: median, minimum and maximum (five samples have no percentiles)."""

    samples: int
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """None where nothing was measured; samples that are None are left out."""
        known = [value for value in values if value is not None]
        return cls(len(known), statistics.median(known), min(known), max(known)) if known else None

    def as_dict(self) -> dict[str, float]:
        return {"samples": self.samples, "median": self.median, "min": self.low, "max": self.high}


def ratio(of: Spread | None, over: Spread | None) -> float | None:
    """One median over another, or None where one of them was not measured."""
    return of.median / over.median if of and over and over.median else None


def shown(value: float | None, unit: str = "") -> str:
    """A number for a table: three digits, thousands apart, `-` for nothing measured."""
    if value is None:
        return "-"
    digits = three_digits(value)
    text = f"{digits:,}" if isinstance(digits, int) else f"{digits:g}"
    return f"{text} {unit}" if unit else text
