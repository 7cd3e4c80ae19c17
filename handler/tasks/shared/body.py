"""From what TorchServe hands over for one request to checked values. Every refusal is an InvalidRequest that names the field."""

import json
import math
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, NoReturn

from tasks.shared.errors import InvalidRequest, describe

FIELDS = ("input", "parameters", "stream", "details")
MAX_CHARACTERS = (
    1 << 20
)  # of all inputs of one request: tokenizing more than this takes seconds in which nobody else is served


def read_json(row: object) -> dict[str, Any]:
    """The JSON object of one request.

    TorchServe has parsed the body already when its content type is application/json and it could; else it hands over bytes.
    """
    value = row.get("body", row.get("data")) if isinstance(row, Mapping) else None
    if isinstance(value, bytes | bytearray | str):
        value = _parse(value)
    if not isinstance(value, dict):
        found = "no body" if value is None else describe(value)
        raise InvalidRequest(None, f'required a JSON object such as {{"input": "..."}}, found {found}', "invalid_json")
    return value


def _parse(raw: bytes | bytearray | str) -> object:
    try:
        text = raw if isinstance(raw, str) else raw.decode("utf-8")
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            None, f"required a JSON body in UTF-8, found byte {error.start} that is not", "invalid_json"
        ) from None
    except json.JSONDecodeError as error:
        message = f"required a JSON body, found {error.msg} at line {error.lineno} column {error.colno}"
        raise InvalidRequest(None, message, "invalid_json") from None
    except RecursionError:
        raise InvalidRequest(None, "required a JSON body, found one nested too deep", "invalid_json") from None
    except ValueError:
        raise InvalidRequest(
            None, "required a JSON body, found a number with too many digits", "invalid_json"
        ) from None


class Body(NamedTuple):
    """The parts of a body that every task has. `single`: the input was a string, not a list of one."""

    inputs: tuple[str, ...]
    single: bool
    parameters: "Fields"
    stream: bool
    details: bool


def read_body(body: dict[str, Any], max_inputs: int) -> Body:
    """Check the shape that all tasks share: `input`, `parameters`, `stream`, `details`, and nothing else."""
    fields = Fields(body, "", FIELDS)
    if "input" not in body:
        raise InvalidRequest("input", "required input, a string or a list of strings; found none")
    value = body["input"]
    inputs = _texts([value] if isinstance(value, str) else value, max_inputs)
    parameters = body.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise InvalidRequest("parameters", f"required an object, found {describe(parameters)}")
    return Body(
        inputs=inputs,
        single=isinstance(value, str),
        parameters=Fields(parameters or {}, "parameters."),
        stream=fields.boolean("stream", False),
        details=fields.boolean("details", False),
    )


def _texts(value: object, max_inputs: int) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise InvalidRequest("input", f"required a string or a list of strings, found {describe(value)}")
    if len(value) > max_inputs:
        raise InvalidRequest("input", f"required at most {max_inputs} inputs, found {len(value)}")
    texts = tuple(
        checked_text(item, "input" if len(value) == 1 else f"input[{index}]") for index, item in enumerate(value)
    )
    total = sum(map(len, texts))
    if total > MAX_CHARACTERS:
        raise InvalidRequest("input", f"required at most {MAX_CHARACTERS} characters in all, found {total}")
    return texts


def checked_text(value: object, field: str) -> str:
    """A string that is Unicode text: JSON can spell half of a surrogate pair, which no tokenizer takes."""
    if not isinstance(value, str):
        raise InvalidRequest(field, f"required a string, found {describe(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        message = f"required Unicode text, found half of a surrogate pair at character {error.start}"
        raise InvalidRequest(field, message) from None
    return value


class Fields:
    """Typed reads of a JSON object. `prefix` is what its field names begin with in messages. null counts as absent."""

    def __init__(self, values: Mapping[str, object], prefix: str, known: Collection[str] | None = None) -> None:
        self._values = values
        self._prefix = prefix
        self._kind = "invalid_parameter" if prefix else "invalid_request"
        if known is not None:
            self.only(known)

    def only(self, known: Collection[str]) -> None:
        """Refuse fields that nobody reads: a misspelt parameter must not pass for one that was obeyed."""
        for name in self._values:
            if name not in known:
                field = self._prefix + (name if name.isidentifier() and len(name) <= 40 else "...")
                wanted = ", ".join(known) or "no fields"
                raise InvalidRequest(field, f"required {wanted}; found {describe(name)}", self._kind)

    def given(self, name: str) -> bool:
        return self._values.get(name) is not None

    def value(self, name: str) -> object:
        return self._values.get(name)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._values.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.refuse(name, "true or false")
        return value

    def integer(self, name: str, default: int | None, least: int, most: int) -> int | None:
        value = self._values.get(name)
        if value is None:
            return default
        if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
            value = int(value)  # JSON knows no integers: many clients write 8.0
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.refuse(name, f"an integer from {least} to {most}")
        return value

    def number(self, name: str, default: float, least: float, most: float) -> float:
        value = self._values.get(name)
        if value is None:
            return default
        wanted = f"a number from {least:g} to {most:g}"
        if isinstance(value, bool) or not isinstance(value, int | float):
            self.refuse(name, wanted)
        if not least <= value <= most or not math.isfinite(value):
            self.refuse(name, wanted)
        return float(value)

    def refuse(self, name: str, required: str) -> NoReturn:
        """Raise, saying what was required of the field and what was found in it."""
        raise InvalidRequest(
            f"{self._prefix}{name}", f"required {required}, found {describe(self._values.get(name))}", self._kind
        )
