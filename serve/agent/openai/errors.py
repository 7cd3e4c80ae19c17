"""Errors in OpenAI's form: `{"error": {"message", "type", "param", "code"}}`.

The HTTP status, from which client libraries choose the class that they raise, is that of our own error. `code` is our `type`, but
for the two that clients know by another name.
"""

import json
from collections.abc import Callable
from typing import Any

from aiohttp import web

from serve.agent.errors import ApiError

_CODES = {"unauthorized": "invalid_api_key", "input_too_long": "context_length_exceeded"}


def error_of(status: int, error: dict[str, Any], rename: Callable[[str], str] = str) -> dict[str, Any]:
    """Our `{"code", "type", "field", "message"}` in OpenAI's words. `rename`: a field of a prediction → the client's field."""
    kind = str(error.get("type", ""))
    field = error.get("field")
    return {
        "error": {
            "message": str(error.get("message", "")),
            "type": "invalid_request_error" if status < 500 else "server_error",
            "param": rename(field) if isinstance(field, str) else None,
            "code": _CODES.get(kind, kind),
        }
    }


def body_of(error: ApiError) -> dict[str, Any]:
    """The form's object for an error of the door; its fields are the client's already."""
    return error_of(error.code, {"type": error.type, "field": error.field, "message": error.message})


def respond(error: ApiError) -> web.Response:
    """The answer to a request under `/v1` that failed."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    body = json.dumps(body_of(error)).encode() + b"\n"
    return web.Response(status=error.code, body=body, content_type="application/json", headers=headers)
