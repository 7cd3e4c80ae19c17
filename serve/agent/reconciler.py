"""All models: a controller for each that is wanted, a few rollouts at a time, all told when TorchServe comes and goes."""

import asyncio
import contextlib

from serve.agent.controller import Controller
from serve.agent.desired import DesiredState
from serve.agent.errors import ApiError
from serve.agent.metrics import DoorMetrics
from serve.agent.rollout import Tools
from serve.agent.routing import RoutingTable


class Reconciler:
    """Controllers by model. A model whose alias is gone keeps its controller, which says `stopped`."""

    def __init__(self, tools: Tools, table: RoutingTable, desired: DesiredState, metrics: DoorMetrics) -> None:
        self.controllers: dict[str, Controller] = {}
        self._tools = tools
        self._table = table
        self._desired = desired
        self._metrics = metrics
        self._slots = asyncio.Semaphore(tools.settings.parallel_rollouts)
        self._tasks: list[asyncio.Task[None]] = []
        self._up = False
        self._was_up = False

    def changed(self, model: str) -> None:
        """What is wanted of a model changed."""
        controller = self.controllers.get(model)
        if controller is None:
            controller = Controller(model, self._tools, self._table.route(model), self._slots, self._metrics)
            self.controllers[model] = controller
            controller.torchserve(self._up)
            self._tasks.append(asyncio.create_task(controller.run()))
        wanted = self._desired.wanted.get(model)
        if wanted is None:
            self._table.routes.pop(model, None)  # unknown to clients from now on; what is in flight is drained
        else:
            self._table.routes[model] = controller.route
        controller.tell(wanted)

    async def torchserve_up(self) -> None:
        if self._was_up:
            self._metrics.restarted()
        self._up = self._was_up = True
        for controller in self.controllers.values():
            controller.torchserve(True)

    def torchserve_down(self) -> None:
        self._up = False
        for controller in self.controllers.values():
            controller.torchserve(False)

    def retry(self, model: str) -> None:
        controller = self.controllers.get(model)
        if controller is None:
            raise ApiError(
                404,
                "model_not_found",
                f"model {model[:100]}: not known here; known are {', '.join(self.controllers) or 'none'}",
            )
        controller.retry()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
