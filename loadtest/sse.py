"""Server-sent events as they arrive, one at a time.

Locust's `iter_lines` reads blocks of 1,024 bytes, so the first tokens of a stream would all be seen at once, late. Here each
line is taken from the socket's buffer as soon as its newline is there.
"""

import json
from collections.abc import Iterator
from typing import Any, Protocol


class LineSource(Protocol):
    """What geventhttpclient's response gives: a line with its separator, or b"" at the end of the body."""

    def readline(self, sep: bytes = b"\r\n") -> bytes: ...


def events(source: LineSource) -> Iterator[dict[str, Any]]:
    """The JSON objects of the stream's `data:` lines; `[DONE]`, comments and other fields are passed over.

    Raises:
        ValueError: a data line is not a JSON object.
    """
    while line := source.readline(b"\n"):
        text = line.strip()
        if not text.startswith(b"data:"):
            continue
        data = text[len(b"data:") :].strip()
        if data == b"[DONE]":
            continue
        event = json.loads(data)
        if not isinstance(event, dict):
            raise ValueError(f"required a JSON object in each event, found {data[:80]!r}")
        yield event
