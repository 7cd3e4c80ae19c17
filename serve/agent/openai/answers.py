"""From a worker's whole answer to OpenAI's objects."""

import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from serve.agent.errors import ApiError
from serve.agent.openai.errors import body_of, error_of
from serve.agent.openai.requests import Ask


def usage_of(prompt: int, generated: int) -> dict[str, int]:
    """Counts of tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


class _Answer:
    """What all forms share: errors are worded alike, and an answer that comes whole has no pieces."""

    def __init__(self, ask: Ask) -> None:
        self.task: str | None = ask.task
        self._ask = ask
        self._model = ask.model if ask.release is None else f"{ask.model}/{ask.release}"
        self._created = int(time.time())

    def whole(self, status: int, body: bytes) -> bytes:
        answer = json.loads(body)
        if status >= 400:
            return json.dumps(error_of(status, answer["error"], self._ask.rename)).encode()
        return json.dumps(self._said(answer)).encode()

    def piece(self, chunk: bytes) -> bytes:
        raise NotImplementedError("the handler streams only what was asked for as a stream")

    def broken(self, error: ApiError) -> bytes:
        return b"data: " + json.dumps(body_of(error)).encode() + b"\n\n"

    def _said(self, answer: Any) -> dict[str, Any]:
        raise NotImplementedError


class Completion(_Answer):
    """`text_completion`."""

    def _said(self, answer: Any) -> dict[str, Any]:
        answers = [one for group in answer for one in group] if self._ask.several else answer
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": self._created,
            "model": self._model,
            "choices": [
                {
                    "index": index,
                    "text": one["generated_text"],
                    "logprobs": None,
                    "finish_reason": one["finish_reason"],
                }
                for index, one in enumerate(answers)
            ],
            "usage": _counted(answers),
        }


class Chat(_Answer):
    """`chat.completion`."""

    def _said(self, answer: Any) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer[0]["generated_text"], "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer[0]["finish_reason"]}
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice],
            "usage": _counted(answer),
        }


class Embedded(_Answer):
    """A list of `embedding`s, each as the worker encoded it: numbers, or base64."""

    def _said(self, answer: Any) -> dict[str, Any]:
        tokens = sum(one["prompt_tokens"] for one in answer)
        return {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": one["embedding"]}
                for index, one in enumerate(answer)
            ],
            "model": self._model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }


def _counted(answers: Sequence[dict[str, Any]]) -> dict[str, int]:
    return usage_of(sum(one["prompt_tokens"] for one in answers), sum(one["generated_tokens"] for one in answers))
