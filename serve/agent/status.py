"""`/status` and `/healthz`: what the node serves, what it is doing, and why something is not served."""

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from serve import __version__
from serve.agent.controller import Controller
from serve.agent.desired import DesiredState
from serve.agent.gpu import Device
from serve.agent.lane import Lane
from serve.agent.reconciler import Reconciler
from serve.agent.routing import RoutingTable, Target
from serve.agent.torchserve import TorchServe
from serve.zygote.supervisor import Zygote

_PACKAGES = ("torch", "torchserve", "transformers")


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
        self._versions = _versions()

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
        refusal = controller.current.refusal
        return refusal.message if refusal is not None else down or controller.state

    def healthz(self) -> dict[str, Any]:
        missing = self.unhealthy()
        return {"status": "ok"} if not missing else {"status": "unavailable", "missing": missing}

    def as_dict(self) -> dict[str, Any]:
        desired = self._desired
        names = set(self._reconciler.controllers) | set(desired.missing({}))
        return {
            "version": __version__,
            "versions": self._versions,
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
        wanted, current, lane = controller.wanted, controller.route.current, controller.current
        return {
            "state": controller.state,
            "serving": current.release if current and current.down is None else None,
            "wanted": wanted.alias.release if wanted and wanted.alias else None,
            "digest": current.digest if current else None,
            "version": current.version if current else None,
            "stale": self._desired.stale,
            "summary": _summary(controller),
            "error": _error(lane, current),
            "since": _iso(lane.since),
            **_rollout(lane),
            "workers": len(lane.health.workers) if lane.health else 0,
            "task": current.task if current else None,
            "inflight": controller.route.inflight,
            "phases": lane.phases,
            "answers": current.tally.as_dict() if current else None,
            "canary": _canary(controller),
        }


def _versions() -> dict[str, str]:
    """Of what answers requests here; from the packages' metadata, since the agent imports none of them."""
    found = {"weightless": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _canary(controller: Controller) -> dict[str, Any] | None:
    """The release on trial, as far as it came: `serving` None while it takes no requests, and `error` why."""
    lane, target, wanted = controller.canary, controller.route.canary, controller.wanted
    tried = wanted.canary if wanted else None
    if wanted is None or tried is None or tried.alias is None:
        return None
    return {
        "release": tried.alias.release,
        "percent": wanted.percent,
        "serving": target.release if target and target.down is None else None,
        "share": controller.route.percent if target else 0,
        "version": target.version if target else None,
        "error": _error(lane, target),
        **_rollout(lane),
        "workers": len(lane.health.workers) if lane.health else 0,
        "inflight": target.inflight if target else 0,
        "phases": lane.phases,
        "answers": target.tally.as_dict() if target else None,
    }


def _rollout(lane: Lane) -> dict[str, Any]:
    rollout = lane.rollout
    return {"step": rollout.step.value if rollout else None, "progress": rollout.progress if rollout else None}


def _error(lane: Lane, target: Target | None) -> dict[str, Any] | None:
    if lane.refusal is not None:
        refusal = lane.refusal
        return {
            "type": refusal.kind,
            "message": refusal.message,
            "release": refusal.release,
            "since": _iso(refusal.since),
            "attempts": refusal.attempts,
            "retries": refusal.retry_at is not None,
        }
    if target is not None and target.down is not None:
        return {"type": "WorkerLost", "message": target.down, "release": target.release, "since": None}
    return None


def _summary(controller: Controller) -> str:
    """One line for people: `serving v2; v3 refused: …, since …`."""
    current, refusal, rollout = controller.route.current, controller.current.refusal, controller.current.rollout
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
    if (canary := _canary(controller)) is not None:
        said.append(f"canary {canary['release']} {canary['percent']} %: " + _trial(canary))
    return "; ".join(said)


def _trial(canary: dict[str, Any]) -> str:
    if canary["serving"]:
        return "serving"
    return str(canary["step"] or (canary["error"] or {}).get("message") or "waiting for the release beside it")


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
