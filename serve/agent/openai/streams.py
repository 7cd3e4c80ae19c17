"""From the handler's server-sent events to OpenAI's: `data: {chunk}` for each piece, at the end `data: [DONE]`."""

import json
import time
import uuid
from typing import Any

from serve.agent.errors import ApiError
from serve.agent.openai.answers import usage_of
from serve.agent.openai.errors import body_of, error_of
from serve.agent.openai.requests import Ask

_END = b"\n\n"


class Stream:
    """Translates one stream. `chat`: pieces are deltas of a message, else texts of a completion."""

    def __init__(self, ask: Ask, chat: bool) -> None:
        self.task: str | None = ask.task
        self._ask = ask
        self._chat = chat
        self._begun = False
        self._left = b""
        self._head = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": int(time.time()),
            "model": ask.model if ask.release is None else f"{ask.model}/{ask.release}",
        }

    def whole(self, status: int, body: bytes) -> bytes:
        """An error, or a stream so short that its last event is its first."""
        if status >= 400:
            return json.dumps(error_of(status, json.loads(body)["error"], self._ask.rename)).encode()
        return self.piece(body)

    def piece(self, chunk: bytes) -> bytes:
        *events, self._left = (self._left + chunk).split(_END)
        return b"".join(self._event(json.loads(event.removeprefix(b"data: "))) for event in events)

    def broken(self, error: ApiError) -> bytes:
        return _data(body_of(error))

    def _event(self, event: dict[str, Any]) -> bytes:
        if "error" in event:
            return _data(error_of(event["error"].get("code", 500), event["error"], self._ask.rename))
        first = b"" if self._begun or not self._chat else self._choice({"role": "assistant", "content": ""}, None)
        self._begun = True
        if "finish_reason" not in event:
            return first + self._choice({"content": event["token"]}, None)
        return first + self._choice({}, event["finish_reason"]) + self._usage(event) + b"data: [DONE]\n\n"

    def _choice(self, delta: dict[str, str], finish_reason: str | None) -> bytes:
        said: dict[str, Any] = {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
        return _data(self._head | {"choices": [choice]} | ({"usage": None} if self._ask.usage else {}))

    def _usage(self, event: dict[str, Any]) -> bytes:
        if not self._ask.usage:
            return b""
        counts = usage_of(event["prompt_tokens"], event["generated_tokens"])
        return _data(self._head | {"choices": [], "usage": counts})


def _data(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + _END
