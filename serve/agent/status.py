"""`/status` and `/healthz`: what the node serves, what it is doing, and why something is not served."""

from datetime import UTC, datetime
from typing import Any

from serve import __version__
from serve.agent.controller import Controller
from serve.agent.desired import DesiredState
from serve.agent.gpu import Device
from serve.agent.reconciler import Reconciler
from serve.agent.routing import RoutingTable
from serve.agent.torchserve import TorchServe
from serve.zygote.supervisor import Zygote


class Status:
    """Reads the parts of the agent; changes nothing."""

    def __init__(
        self,
        table: RoutingTable,
        desired: DesiredState,
        reconciler: Reconciler,
        torchserve: TorchServe,
        zygote: Zygote,
        device: Device,
    ) -> None:
        self._table = table
        self._desired = desired
        self._reconciler = reconciler
        self._torchserve = torchserve
        self._zygote = zygote
        self._device = device

    def unhealthy(self) -> list[str]:
        """What keeps this node from doing its work; empty when it is healthy. An old release that still serves is healthy."""
        if self._torchserve.state != "up":
            return [f"TorchServe is {self._torchserve.state}"]
        if not self._desired.known and not self._desired.wanted:
            return [self._desired.error or "the aliases were not read yet"]
        return [f"{model}: {self._why_missing(model)}" for model in self._desired.missing(self._table.serving())]

    def _why_missing(self, model: str) -> str:
        controller = self._reconciler.controllers.get(model)
        if controller is None or controller.wanted is None:
            return "no alias says which release to serve; `make seed` publishes one, `make promote` points at one"
        current = controller.route.current
        down = current.down if current is not None else None
        return controller.refusal.message if controller.refusal is not None else down or controller.state

    def healthz(self) -> dict[str, Any]:
        missing = self.unhealthy()
        return {"status": "ok"} if not missing else {"status": "unavailable", "missing": missing}

    def as_dict(self) -> dict[str, Any]:
        desired = self._desired
        names = set(self._reconciler.controllers) | set(desired.missing({}))
        return {
            "version": __version__,
            "healthy": not self.unhealthy(),
            "device": self._device.as_dict(),
            "torchserve": {
                "pid": self._torchserve.pid,
                "state": self._torchserve.state,
                "restarts": self._torchserve.restarts,
            },
            "zygote": self._zygote.status.as_dict(),
            "store": {"stale": desired.stale, "error": desired.error, "since": _iso(desired.error_since)},
            "models": {name: self._model(name) for name in sorted(names)},
        }

    def _model(self, name: str) -> dict[str, Any]:
        controller = self._reconciler.controllers.get(name)
        if controller is None:
            return {
                "state": "stopped",
                "serving": None,
                "wanted": None,
                "error": {"type": "NoAlias", "message": self._why_missing(name)},
            }
        wanted, current = controller.wanted, controller.route.current
        return {
            "state": controller.state,
            "serving": current.release if current and current.down is None else None,
            "wanted": wanted.alias.release if wanted and wanted.alias else None,
            "digest": current.digest if current else None,
            "version": current.version if current else None,
            "stale": self._desired.stale,
            "summary": _summary(controller),
            "error": _error(controller),
            "since": _iso(controller.since),
            "step": controller.rollout.step.value if controller.rollout else None,
            "progress": controller.rollout.progress if controller.rollout else None,
            "workers": len(controller.health.workers) if controller.health else 0,
            "task": current.task if current else None,
            "inflight": controller.route.inflight,
            "phases": controller.phases,
        }


def _error(controller: Controller) -> dict[str, Any] | None:
    if controller.refusal is not None:
        refusal = controller.refusal
        return {
            "type": refusal.kind,
            "message": refusal.message,
            "release": refusal.release,
            "since": _iso(refusal.since),
            "attempts": refusal.attempts,
            "retries": refusal.retry_at is not None,
        }
    current = controller.route.current
    if current is not None and current.down is not None:
        return {"type": "WorkerLost", "message": current.down, "release": current.release, "since": None}
    return None


def _summary(controller: Controller) -> str:
    """One line for people: `serving v2; v3 refused: …, since …`."""
    current, refusal, rollout = controller.route.current, controller.refusal, controller.rollout
    answering = controller.route.answering
    said = [f"serving {answering.release}" if answering else "serving nothing"]
    if current is not None and current.down is not None:
        said.append(f"{current.release}: {current.down}")
    if rollout is not None and rollout.wanted.alias is not None:
        said.append(f"{rollout.wanted.alias.release}: {rollout.step.value}")
    if refusal is not None:
        said.append(
            f"{refusal.release or 'the wanted release'} refused: {refusal.message}, since {_iso(refusal.since)}"
        )
    return "; ".join(said)


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
