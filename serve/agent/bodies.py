"""Checks a prediction's body before any worker sees it: JSON, an object, with the fields that every task has.

Ranges of parameters depend on the task and are checked by the handler, in the same error form.
"""

import json
from typing import Any

from serve.agent.errors import ApiError, invalid

_NAMES = {bool: "true or false", dict: "an object", str: "a string", list: "a list", int: "a number", float: "a number"}


def checked_body(raw: bytes) -> dict[str, Any]:
    """The parsed body.

    Raises:
        ApiError: 400, naming the field and what was required and found.
    """
    body = json_object(raw)
    # in place of input, for the tasks that take them, which check them
    instead = body.get("messages") is not None or body.get("query") is not None
    if "input" not in body and not instead:
        raise invalid("input", "required a string or a list of strings, found none")
    if not instead:
        _check_input(body["input"])
    for name, kind in (("parameters", dict), ("stream", bool), ("details", bool)):
        if body.get(name) is not None and not isinstance(body[name], kind):
            raise invalid(name, f"required {_NAMES[kind]}, found {found(body[name])}")
    if body.get("stream") and not instead and not isinstance(body["input"], str):
        raise invalid("stream", "required a single string as input with stream, found a list")
    return body


def json_object(raw: bytes) -> dict[str, Any]:
    """The JSON object that these bytes spell; ApiError 400 if they spell none."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"required a JSON object in the body, found: {_why(raw, error)}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "invalid_json", f"required a JSON object in the body, found {found(body)}")
    return body


def found(value: Any) -> str:
    """A value's kind in JSON's words, for the end of a message."""
    if value is None:
        return "null"
    kind = _NAMES.get(type(value), type(value).__name__)
    return f"{kind} ({value!r:.40})" if isinstance(value, str | int | float) else kind


def _check_input(value: Any) -> None:
    if isinstance(value, list):
        if not value:
            raise invalid("input", "required at least one string, found an empty list")
        for index, item in enumerate(value):
            if not isinstance(item, str):
                raise invalid(f"input[{index}]", f"required a string, found {found(item)}")
            _check_text(f"input[{index}]", item)
    elif isinstance(value, str):
        _check_text("input", value)
    else:
        raise invalid("input", f"required a string or a list of strings, found {found(value)}")


def _check_text(field: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise invalid(field, "required Unicode text, found half of a surrogate pair") from None


def _why(raw: bytes, error: Exception) -> str:
    if not raw:
        return "an empty body"
    return "JSON nested too deeply" if isinstance(error, RecursionError) else str(error)
