"""How one request of a batch is answered through TorchServe: bodies, statuses and headers by its place in the batch."""

import json
import logging
import time
from http import HTTPStatus
from typing import Any

from tasks.shared.contract import Figures
from tasks.shared.errors import InvalidRequest, RequestError

logger = logging.getLogger(__name__)


class Replies:
    """Words the answers of one batch. `sent`: when the door passed a request on (its header, ms since 1970), else when it came."""

    def __init__(self, context: Any, max_answer_bytes: int) -> None:
        self._context = context
        self._max_answer_bytes = max_answer_bytes

    def kind(self, index: int, streaming: bool) -> None:
        """Say what is coming."""
        self._context.set_response_content_type(index, "text/event-stream" if streaming else "application/json")

    def answer(self, index: int, result: Any, streaming: bool, begun: bool) -> bytes:
        """The last that a request hears: its answer in JSON, the last event of its stream, or its error."""
        if isinstance(result, Exception):
            return event(told(result).as_body()) if streaming and begun else self.refusal(index, result)
        answer = event(result) if streaming else json.dumps(result).encode()
        if len(answer) <= self._max_answer_bytes:
            return answer
        message = (
            f"required an answer of at most {self._max_answer_bytes} bytes, found {len(answer)}; send fewer inputs"
        )
        return self.answer(index, InvalidRequest("input", message), streaming, begun)

    def refusal(self, index: int, error: Exception) -> bytes:
        """An error in JSON with its own HTTP status, for this request alone."""
        said = told(error)
        self._context.set_response_status(said.code, HTTPStatus(said.code).phrase, index)
        self._context.set_response_content_type(index, "application/json")
        return json.dumps(said.as_body()).encode()

    def sent(self, index: int) -> float:
        """When the request was sent to this worker, of time.time()."""
        try:
            return float(self._context.get_request_header(index, "x-weightless-sent")) / 1000
        except (TypeError, ValueError):
            return time.time()

    def figures(self, index: int, figures: Figures | None, sent: float) -> None:
        """What was counted, as headers of the answer."""
        for name, value in headers(figures, sent).items():
            self._context.set_response_header(index, name, value)


def headers(figures: Figures | None, sent: float) -> dict[str, str]:
    """Decimal numbers; milliseconds count from `sent`."""
    if figures is None:
        return {}
    found = {
        "Prompt-Tokens": figures.prompt_tokens,
        "Generated-Tokens": figures.generated_tokens,
        "Batch": figures.batch,
        "Queue-Ms": None if figures.began is None else _ms(figures.began - sent),
        "First-Token-Ms": None if figures.first_token is None else _ms(figures.first_token - sent),
    }
    return {f"X-Weightless-{name}": str(value) for name, value in found.items() if value is not None}


def told(error: Exception) -> RequestError:
    """What a client hears of an error; one that nobody foresaw is logged with its place and told without it."""
    if isinstance(error, RequestError):
        return error
    logger.error("a request failed", exc_info=error)
    return RequestError(500, "internal_error", f"the handler failed on this request: {type(error).__name__}")


def event(value: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def _ms(seconds: float) -> float:
    return round(max(seconds, 0.0) * 1000, 1)
