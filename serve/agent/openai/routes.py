"""`/v1`: which path is translated how, and the list of models."""

import json
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from serve.agent.bodies import json_object
from serve.agent.door import Door, Form
from serve.agent.errors import ApiError
from serve.agent.openai.answers import Chat, Completion, Embedded
from serve.agent.openai.requests import ROUTES, Ask, split_model
from serve.agent.openai.streams import Stream
from serve.agent.routing import RoutingTable, Target

_FORMS: dict[str, Callable[[Ask], Form]] = {
    "completions": lambda ask: Stream(ask, chat=False) if ask.stream else Completion(ask),
    "chat/completions": lambda ask: Stream(ask, chat=True) if ask.stream else Chat(ask),
    "embeddings": Embedded,
}


class OpenAiRoutes:
    """Answers what comes under `/v1`, through the same door as `/predictions`."""

    def __init__(self, door: Door, table: RoutingTable) -> None:
        self._door = door
        self._table = table

    async def handle(self, request: web.BaseRequest, parts: list[str]) -> web.StreamResponse:
        """`parts`: the path after `/v1`.

        Raises:
            ApiError: for everything that is answered with an error.
        """
        path = "/".join(parts)
        if parts[:1] == ["models"]:
            _only(request, "GET")
            return self._models() if len(parts) == 1 else self._model("/".join(parts[1:]))
        if path in ROUTES:
            _only(request, "POST")
            return await self._predict(request, path)
        known = ", ".join(f"POST /v1/{name}" for name in ROUTES)
        raise ApiError(404, "no_such_path", f"/v1/{path[:100]}: required GET /v1/models or {known}")

    async def _predict(self, request: web.BaseRequest, path: str) -> web.StreamResponse:
        began = time.perf_counter()
        try:
            ask = ROUTES[path](json_object(await self._door.read(request)))
        except ApiError as error:
            self._door.refused("", error)
            raise
        raw = json.dumps(ask.body).encode()
        return await self._door.answer(request, ask.model, ask.release, raw, _FORMS[path](ask), began)

    def _models(self) -> web.Response:
        targets = [route.answering for _, route in sorted(self._table.routes.items())]
        return web.json_response({"object": "list", "data": [_described(target) for target in targets if target]})

    def _model(self, name: str) -> web.Response:
        model, release = split_model(name)
        route = self._table.find(model, release)
        target = route.named(release) if release is not None else route.answering
        if target is None or target.down is not None:
            raise ApiError(
                404, "model_not_found", f"model {model[:100]}: nothing answers for it now; GET /status says why"
            )
        return web.json_response(_described(target))


def _described(target: Target) -> dict[str, Any]:
    """OpenAI's four fields, and three of our own that its clients keep."""
    return {
        "id": target.model,
        "object": "model",
        "created": target.since,
        "owned_by": "weightless",
        "release": target.release,
        "digest": target.digest,
        "task": target.task,
    }


def _only(request: web.BaseRequest, method: str) -> None:
    if request.method != method:
        message = f"{request.path[:100]}: required {method}, found {request.method}"
        raise ApiError(405, "method_not_allowed", message)
