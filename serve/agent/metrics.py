"""The agent's own figures for Prometheus; docs/metrics.md says what each means. `exposition` joins them with TorchServe's.

What the door can see it measures; what only the worker knows comes in headers of its answer, and of a stream in its last event.
"""

import math
import re
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate

import prometheus_client as prom
from prometheus_client.core import HistogramMetricFamily

from serve.agent.routing import RoutingTable, Target

_NAMES = ("model", "release")
_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_WAIT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_BETWEEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
_TOKENS = tuple(2.0**power for power in range(15))  # 1 to 16384
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256)

_HISTOGRAMS = {
    "request_seconds": ("From the request's head to the answer's last byte", _REQUEST_S),
    "queue_seconds": ("From the door until the worker began with the request", _WAIT_S),
    "time_to_first_token_seconds": ("From the request's head to the first piece of its answer", _WAIT_S),
    "inter_token_seconds": ("Between two pieces of a stream", _BETWEEN_S),
    "prompt_tokens": ("Tokens that a request brought", _TOKENS),
    "generated_tokens": ("Tokens that a request was answered with", _TOKENS),
    "batch_size": ("Requests that shared the worker's forward pass with this one, itself included", _BATCH),
}

_OF_ANY = (("x-weightless-queue-ms", "queue_seconds", 1e-3), ("x-weightless-batch", "batch_size", 1))
_OF_WHOLE = (
    *_OF_ANY,
    ("x-weightless-first-token-ms", "time_to_first_token_seconds", 1e-3),
    ("x-weightless-prompt-tokens", "prompt_tokens", 1),
    ("x-weightless-generated-tokens", "generated_tokens", 1),
)
"""Header of a worker's answer, histogram, factor."""

# In the last event of a stream. Within a text they do not match: a quote has a backslash before it there.
_TOKENS_TOLD = re.compile(rb'"(prompt_tokens|generated_tokens)": (\d{1,9})\b')
_TYPE = re.compile(rb'"type": "([a-z_]+)"')
_KIND = re.compile(r"[a-z_]{1,40}")


class Histogram:
    """One series of one thread. prometheus_client's own takes two locks and a loop for each value: 2 µs, where this takes 0.3."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def cumulated(self) -> tuple[list[tuple[str, float]], float]:
        """Each bound with the count of values up to it, and the sum of all, as Prometheus has them."""
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        return list(zip(names, map(float, accumulate(self._counts)), strict=True)), self._sum


class ReleaseMetrics:
    """The figures of one release of one model, children looked up once: looking one up costs more than counting."""

    def __init__(self, parents: "DoorMetrics", model: str, release: str) -> None:
        self.histograms = {name: Histogram(bounds) for name, (_, bounds) in _HISTOGRAMS.items()}
        self._parents = parents
        self._codes: dict[int, prom.Counter] = {}
        self._labels = (model, release)
        self.first_token = self.histograms["time_to_first_token_seconds"].observe
        self.inter_token = self.histograms["inter_token_seconds"].observe

    def answered(self, code: int, seconds: float) -> None:
        """One request that was passed on to a worker."""
        counter = self._codes.get(code)
        if counter is None:
            counter = self._codes[code] = self._parents.requests.labels(*self._labels, str(code))
        counter.inc()
        self.histograms["request_seconds"].observe(seconds)

    def failed(self, kind: str) -> None:
        """One of them that got an error, or a stream that ended in one."""
        self._parents.errors.labels(*self._labels, kind if _KIND.fullmatch(kind) else "other").inc()

    def told(self, headers: Mapping[str, str], stream: bool) -> None:
        """What the worker says in its answer's headers (names in lower case); a stream's come before it knows the rest."""
        for header, name, factor in _OF_ANY if stream else _OF_WHOLE:
            said = headers.get(header)
            if said is not None:
                value = _number(said) * factor
                if value >= 0:
                    self.histograms[name].observe(value)

    def ended(self, chunk: bytes) -> None:
        """What the last event of a stream says, in the last chunk that came."""
        event = chunk.rpartition(b"\n\ndata: ")[2].removeprefix(b"data: ")
        if event.startswith(b'{"error"'):
            said = _TYPE.search(event)
            self.failed(said[1].decode() if said else "other")
        for name, count in _TOKENS_TOLD.findall(event):
            self.histograms[name.decode()].observe(int(count))


class StreamClock:
    """Times the pieces of one stream as they come: the first, and the gaps between them.

    The last piece's gap is left out: it is the closing event, sent when the answer is complete already.
    """

    def __init__(self, figures: ReleaseMetrics, began: float) -> None:
        self._figures = figures
        self._began = began
        self._last = 0.0
        self._gap: float | None = None

    def piece(self) -> None:
        now = time.perf_counter()
        if not self._last:
            self._figures.first_token(now - self._began)
        else:
            if self._gap is not None:
                self._figures.inter_token(self._gap)
            self._gap = now - self._last
        self._last = now


class DoorMetrics:
    """Counts by model and release, of names that are served only: a client chooses what it asks for."""

    def __init__(self, table: RoutingTable) -> None:
        self.registry = prom.CollectorRegistry()
        self.requests = self._counter("requests", "Predictions asked for, by HTTP status", *_NAMES, "code")
        self.errors = self._counter("errors", "Predictions that failed, by the error's type", *_NAMES, "type")
        self._rollouts = self._counter("rollouts", "Releases taken into service or refused", "model", "result")
        self._restarts = self._counter("torchserve_restarts", "Times TorchServe came back")
        self._inflight = prom.Gauge("weightless_inflight", "Requests in flight", ("model",), registry=self.registry)
        self._table = table
        self._releases: dict[tuple[str, str], ReleaseMetrics] = {}
        self.registry.register(self)

    def of(self, target: Target) -> ReleaseMetrics:
        """The figures of what this target serves."""
        key = (target.model, target.release)
        found = self._releases.get(key)
        if found is None:
            found = self._releases[key] = ReleaseMetrics(self, *key)
        return found

    def refused(self, model: str, code: int, kind: str) -> None:
        """One request that no worker answered. A name that is not served becomes no label."""
        known = self._table.routes.get(model)
        names = (model if known else "", known.current.release if known and known.current else "")
        self.requests.labels(*names, str(code)).inc()
        self.errors.labels(*names, kind).inc()

    def rollout(self, model: str, result: str) -> None:
        """`result`: serving, refused or superseded."""
        self._rollouts.labels(model, result).inc()

    def restarted(self) -> None:
        self._restarts.inc()

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The histograms, for the registry."""
        for name, (text, _) in _HISTOGRAMS.items():
            family = HistogramMetricFamily(f"weightless_{name}", text, labels=_NAMES)
            for labels, release in self._releases.items():
                family.add_metric(labels, *release.histograms[name].cumulated())
            yield family

    def exposition(self) -> bytes:
        """Prometheus text."""
        for name, route in self._table.routes.items():
            self._inflight.labels(name).set(route.inflight)
        return prom.generate_latest(self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> prom.Counter:
        return prom.Counter(f"weightless_{name}", text, labels, registry=self.registry)


def _number(said: str) -> float:
    """-1 for what is no finite number: a handler may be anybody's."""
    try:
        value = float(said)
    except ValueError:
        return -1.0
    return value if value < math.inf else -1.0
