"""The agent's own figures for Prometheus. `exposition` joins them with TorchServe's."""

import prometheus_client as prom

from serve.agent.routing import RoutingTable, Target

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class DoorMetrics:
    """Requests by model, release and status; latency by model and release; gauges that are read when scraped."""

    def __init__(self, table: RoutingTable) -> None:
        self.registry = prom.CollectorRegistry()
        names = ("model", "release")
        self._requests = prom.Counter(
            "weightless_requests", "Predictions answered", (*names, "code"), registry=self.registry
        )
        self._latency = prom.Histogram(
            "weightless_request_seconds", "From the request's head to the answer's last byte", names,
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._inflight = prom.Gauge("weightless_inflight", "Requests in flight", ("model",), registry=self.registry)
        self._rollouts = prom.Counter(
            "weightless_rollouts", "Releases taken into service or refused", ("model", "result"), registry=self.registry
        )
        self._restarts = prom.Counter(
            "weightless_torchserve_restarts", "Times TorchServe came back", registry=self.registry
        )
        self._table = table
        self._children: dict[tuple[str, str, int], tuple[prom.Counter, prom.Histogram]] = {}

    def answered(self, target: Target, code: int, seconds: float) -> None:
        """One request that reached a version. The labelled children are kept: looking one up costs more than counting."""
        key = (target.model, target.release, code)
        children = self._children.get(key)
        if children is None:
            children = (self._requests.labels(*key[:2], str(code)), self._latency.labels(*key[:2]))
            self._children[key] = children
        children[0].inc()
        children[1].observe(seconds)

    def refused(self, table: RoutingTable, model: str, code: int) -> None:
        """One request that was answered with an error. A name that is not served becomes no label: clients choose those."""
        known = table.routes.get(model)
        release = known.current.release if known and known.current else ""
        self._requests.labels(model if known else "", release, str(code)).inc()

    def rollout(self, model: str, result: str) -> None:
        """`result`: serving, refused or superseded."""
        self._rollouts.labels(model, result).inc()

    def restarted(self) -> None:
        self._restarts.inc()

    def exposition(self) -> bytes:
        """Prometheus text."""
        for name, route in self._table.routes.items():
            self._inflight.labels(name).set(route.inflight)
        return prom.generate_latest(self.registry)
