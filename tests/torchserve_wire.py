"""The frontend's side of TorchServe's worker protocol, for tests that stand where its Java server stands."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ts.service

METRICS_FILE = Path(ts.service.__file__).parent / "configs" / "metrics.yaml"
"""TorchServe's own list of metrics, without which no worker starts."""


@dataclass(frozen=True)
class Answer:
    """What the worker said for one request. `next`: the header that says whether more of a stream follows."""

    request_id: str
    content_type: str
    status: int
    phrase: str
    headers: dict[str, str]
    body: bytes

    @property
    def next(self) -> str | None:
        return self.headers.get("ts_stream_next")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def request(
    number: int, body: bytes | None, content_type: str = "application/json", headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """One request as the worker's protocol layer hands it to the service: JSON bodies parsed if they can be, else bytes. None: the
    body that the worker has got already."""
    told = [{"name": name.encode(), "value": value.encode()} for name, value in (headers or {}).items()]
    if body is None:
        return {"requestId": f"id-{number}".encode(), "headers": told, "parameters": []}
    value: Any = body
    if content_type == "application/json":
        try:
            value = json.loads(body.decode())
        except (ValueError, RecursionError):
            value = bytearray(body)
    parameter = {"name": "body", "contentType": content_type, "value": value}
    return {"requestId": f"id-{number}".encode(), "headers": told, "parameters": [parameter]}


class Frame:
    """Reads one response frame after another from bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def frames(self) -> list[tuple[int, list[Answer]]]:
        """(code, answers) of each frame."""
        found = []
        while self._at < len(self._data):
            code, _ = self._int(), self._bytes()
            answers = []
            while (length := self._int()) != -1:
                answers.append(self._answer(length))
            found.append((code, answers))
        return found

    def _answer(self, length: int) -> Answer:
        request_id, content_type = self._take(length).decode(), self._bytes().decode()
        status, phrase = self._int(), self._bytes().decode()
        headers = {self._bytes().decode(): self._bytes().decode() for _ in range(self._int())}
        return Answer(request_id, content_type, status, phrase, headers, self._bytes())

    def _int(self) -> int:
        (value,) = struct.unpack("!i", self._take(4))
        return int(value)

    def _bytes(self) -> bytes:
        return self._take(self._int())

    def _take(self, length: int) -> bytes:
        taken = self._data[self._at : self._at + length]
        assert len(taken) == length, "the frame ends before its time"
        self._at += length
        return taken
