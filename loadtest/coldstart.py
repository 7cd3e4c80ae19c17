"""Cold starts as an experiment: what is started, and what one start told us.

An arm is one way to start a model.
"""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Arm:
    """One way to start a model: what is registered, where, and in which state caches and network are."""

    name: str
    title: str
    variant: str
    cache: str = "cold"
    on: str = "baseline"
    page_cache: str = "warm"
    link: str | None = None

    @property
    def builds(self) -> bool:
        """Whether an archive with the weights is built before its first start."""
        return self.variant in FORMS

    @property
    def stock(self) -> bool:
        """Whether it starts on the baseline, a stock TorchServe."""
        return self.on == "baseline"

    def order(self) -> dict[str, str | None]:
        """What the agent is told."""
        names = ("variant", "cache", "on", "page_cache", "link")
        return {name: getattr(self, name) for name in names}


FORMS = {
    "mar": "embedded .mar",
    "store": "embedded .mar, stored",
    "tgz": "embedded .tgz",
    "no-archive": "embedded folder",
}
SAME_WORKERS = "-zygote"
"""Ends the name of an embedded arm whose workers are forked by the zygote, as the slim ones are."""
ARMS = {
    arm.name: arm
    for arm in (
        Arm("slim-cold", "slim, empty cache", "slim", on="zygote"),
        Arm("slim-warm", "slim, warm cache", "slim", "warm", on="zygote"),
        Arm("slim-disk", "slim, warm cache, from disk", "slim", "warm", on="zygote", page_cache="dropped"),
        Arm("slim-10gbit", "slim, empty cache, 10 Gb/s", "slim", on="zygote", link="10gbit"),
        Arm("slim-1gbit", "slim, empty cache, 1 Gb/s", "slim", on="zygote", link="1gbit"),
        Arm("slim-cut", "slim, empty cache, store cut off", "slim", on="zygote", link="cut"),
        *(Arm(form, title, form) for form, title in FORMS.items()),
        *(Arm(f"{form}-disk", f"{title}, from disk", form, page_cache="dropped") for form, title in FORMS.items()),
        *(Arm(form + SAME_WORKERS, f"{title}, on the zygote", form, on="zygote") for form, title in FORMS.items()),
        Arm("worker", "one more worker", "worker", on="zygote"),
        Arm("worker-stock", "one more worker, stock", "worker"),
    )
}
PAIRS = (
    *((slim, form) for form in FORMS for slim in ("slim-cold", "slim-warm")),
    *(("slim-cold", form + SAME_WORKERS) for form in FORMS),
    *(("slim-disk", f"{form}-disk") for form in FORMS),
    ("worker", "worker-stock"),
    *((arm, "slim-cold") for arm in ("slim-10gbit", "slim-1gbit", "slim-cut")),
)
"""What is compared with what: the first over the second."""


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
    store_sent_bytes: int | None = None
    disk_bytes: int | None = None
    peak_memory_bytes: int | None = None
    link_bytes_per_s: float | None = None
    retries: int | None = None
    forked: bool | None = None
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

    @property
    def moved_bytes(self) -> int | None:
        """Out of the store: by MinIO's own counter, or, of a store that has none, as the worker counted them."""
        return self.bytes_from_store if self.store_sent_bytes is None else self.store_sent_bytes

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)
