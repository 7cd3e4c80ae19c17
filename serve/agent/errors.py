"""Errors as HTTP clients see them: one JSON form for what the door refuses and for what TorchServe or a handler answers.

`{"error": {"code": 400, "type": "invalid_parameter", "field": "parameters.top_k", "message": "required …, found …"}}`
"""

import json
from dataclasses import dataclass
from typing import Any

from aiohttp import web

RETRY_AFTER_S = 1


@dataclass
class ApiError(Exception):
    """A request that gets no answer from a model: HTTP status, a stable type, the field at fault if there is one."""

    code: int
    type: str
    message: str
    field: str | None = None
    retry_after_s: int | None = None

    def body(self) -> bytes:
        error = {"code": self.code, "type": self.type, "field": self.field, "message": self.message}
        return json.dumps({"error": {key: value for key, value in error.items() if value is not None}}).encode() + b"\n"

    def response(self, headers: dict[str, str] | None = None) -> web.Response:
        headers = dict(headers or {})
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        return web.Response(status=self.code, body=self.body(), content_type="application/json", headers=headers)


def invalid(field: str, message: str) -> ApiError:
    """400: a field of the body is missing or of a wrong type. (The handler says `invalid_parameter` for a value in parameters.)"""
    return ApiError(400, "invalid_request", message, field=field)


def unavailable(message: str, kind: str = "unavailable", retry_after_s: int = RETRY_AFTER_S) -> ApiError:
    """503 with Retry-After: nothing is wrong with the request, it can be sent again."""
    return ApiError(503, kind, message, retry_after_s=retry_after_s)


def from_torchserve(status: int, body: bytes, model: str, version: str) -> ApiError | None:
    """What an error answer of TorchServe means, or None if the handler already answered in our form.

    TorchServe answers `{"code", "type", "message"}`; each case below was read in its source or seen.
    """
    answer = _parsed(body)
    if isinstance(answer.get("error"), dict):
        return None
    kind, message = str(answer.get("type", "")), str(answer.get("message", "")) or body[:200].decode(errors="replace")
    if kind == "ServiceUnavailableException":  # TorchServe says "no worker to serve" for a full queue too, the likelier
        return unavailable(
            f"model {model}: required room in the queue of version {version} (job_queue_size), found it full, or no worker at all",
            "overloaded",
        )
    if status == 404:  # just unregistered
        return unavailable(f"model {model}: version {version} takes no requests now ({message})")
    if message in ("Worker died.", "Worker scaled down."):
        return unavailable(f"model {model}: its worker died while it served this request", "worker_died")
    if status == 507:
        return ApiError(507, "out_of_memory", f"model {model}: the worker ran out of memory; send less at once")
    if message == "Prediction failed":
        return ApiError(500, "prediction_failed", f"model {model}: the handler failed; `make logs` has its traceback")
    return ApiError(status if status < 500 else 502, "torchserve", f"model {model}: TorchServe answered: {message}")


def kind_of(body: bytes) -> str:
    """The type in an error answer that is in our form."""
    return str(_parsed(body)["error"].get("type"))


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(body)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
