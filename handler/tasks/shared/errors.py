"""What can be wrong with one request, and how it is said.

RequestError            one request fails, all others of its batch are answered
└── InvalidRequest      the request itself is wrong: 400, naming the field
DeviceLost              the accelerator is gone for this process: the worker must end, so that TorchServe starts another
"""

from typing import Any


class RequestError(Exception):
    """One request's failure: HTTP status, a type for programs, a message for people, the field if one is to blame."""

    def __init__(self, code: int, kind: str, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.kind = kind
        self.message = message
        self.field = field

    def as_body(self) -> dict[str, Any]:
        """`{"error": {"code", "type", "field" if known, "message"}}`."""
        error: dict[str, Any] = {"code": self.code, "type": self.kind}
        if self.field is not None:
            error["field"] = self.field
        return {"error": error | {"message": self.message}}


class InvalidRequest(RequestError):
    """The request is wrong in `field`; `message` says what was required and what was found."""

    def __init__(self, field: str | None, message: str, kind: str = "invalid_request") -> None:
        super().__init__(400, kind, message, field)


class DeviceLost(Exception):
    """After this error no call to the accelerator succeeds any more in this process."""


def describe(value: object) -> str:
    """The value as an error message shows it: JSON's words, ASCII, short whatever came, and never failing."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        # str() of an int of more than 4300 digits raises
        return str(value) if value.bit_length() < 100 else f"an integer of {value.bit_length()} bits"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, str):
        shown = ascii(value[:40])
        return shown if len(value) <= 40 else f"{shown}... ({len(value)} characters)"
    if isinstance(value, dict):
        return f"an object of {len(value)} fields"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}" if value else "an empty list"
    return f"a {type(value).__name__}"
