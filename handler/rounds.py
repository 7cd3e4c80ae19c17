"""TorchServe's continuous batching: it asks again after every step, with the requests that run and those that are new.

A round is one step of the task. What TorchServe does was read in its ContinuousBatching.java: a request stays in the rounds until
an answer without `ts_stream_next: true`; one that a round leaves out is asked for again, with its body; and only when it hands an
answer on does it see that the client is gone, and takes the request out. So a stream gets something in every round, if only an
empty piece. A whole answer is left out of all rounds but the last, and keeps its own status and headers; unless the client asks for
an early head (`x-weightless-early`, the agent does), so that its going away is noticed: status and headers are then in the body.
"""

import json
import logging
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from replies import Replies, event, headers, told
from tasks.shared.body import read_json
from tasks.shared.contract import Joinable, Running
from tasks.shared.errors import DeviceLost

logger = logging.getLogger(__name__)


@dataclass
class _Guest:
    """A request that joined. `begun`: its client has got the head of the answer."""

    running: Running
    streaming: bool
    early: bool
    sent: float
    begun: bool = field(default=False)


class Rounds:
    """The requests that run in a worker, from one round to the next."""

    def __init__(self, task: Joinable) -> None:
        self._task = task
        self._guests: dict[str, _Guest] = {}

    def play(self, data: list[Any], context: Any, max_answer_bytes: int) -> list[bytes]:
        """One round: what TorchServe sent, to what it shall hand on now. Requests that say nothing are taken out of the reply."""
        replies, ids = Replies(context, max_answer_bytes), context.request_ids
        here = set(ids.values())
        for gone in [name for name in self._guests if name not in here]:
            running = self._guests.pop(gone).running
            self._task.leave(running)
            logger.info(
                "a client is gone: request %s leaves the batch after %s tokens", gone, running.count().generated_tokens
            )
        answers = [b""] * len(data)
        for index, row in enumerate(data):
            if ids[index] not in self._guests:
                answers[index] = self._welcome(replies, context, index, row)
        failure = self._step()
        last: dict[int, bool | None] = {}
        for index in range(len(data)):
            guest = self._guests.get(ids[index])
            if guest is None:  # refused
                last[index] = None
                continue
            result = failure or guest.running.result()
            if result is not None:
                self._task.leave(self._guests.pop(ids[index]).running)
                last[index] = True if guest.begun else None
                answers[index] = self._farewell(replies, index, guest, result)
            elif guest.streaming or guest.early:
                last[index] = False
                answers[index] = self._piece(replies, context, index, guest)
            else:
                del ids[index]  # TorchServe's reply has an answer for each that is left
        context.stopping_criteria = {index: lambda _, last=last: last for index, last in last.items()}
        return answers

    def _welcome(self, replies: Replies, context: Any, index: int, row: Any) -> bytes:
        try:
            request = self._task.parse(read_json(row))
            running = self._task.join(request)
        except Exception as error:
            return replies.refusal(index, error)
        early = context.get_request_header(index, "x-weightless-early") is not None
        self._guests[context.request_ids[index]] = _Guest(running, request.stream, early, replies.sent(index))
        return b""

    def _step(self) -> Exception | None:
        """One step of the task; what it raised costs all that run, but not the worker."""
        try:
            self._task.step()
        except DeviceLost as error:
            logger.critical("the device is lost (%s); this worker ends and TorchServe starts another", error)
            raise SystemExit(1) from error
        except Exception as error:
            logger.error("a step of %d requests failed", len(self._guests), exc_info=error)
            return error
        return None

    def _piece(self, replies: Replies, context: Any, index: int, guest: _Guest) -> bytes:
        """What a round that is not the last has for a client: some events, the head of an answer, or nothing."""
        replies.kind(index, guest.streaming)
        if not guest.begun and guest.streaming:
            replies.figures(index, guest.running.count(), guest.sent)
        if not guest.begun and not guest.streaming:
            context.set_response_header(index, "X-Weightless-Late", "1")
        guest.begun = True
        return b"".join(event(each) for each in guest.running.events())

    def _farewell(self, replies: Replies, index: int, guest: _Guest, result: Any) -> bytes:
        replies.kind(index, guest.streaming)
        if guest.streaming:
            pieces = b"".join(event(each) for each in guest.running.events())
            if not guest.begun:
                replies.figures(index, guest.running.count(), guest.sent)
            return pieces + replies.answer(index, result, streaming=True, begun=guest.begun)
        answer = replies.answer(index, result, streaming=False, begun=guest.begun)
        if not guest.begun:
            replies.figures(index, guest.running.count(), guest.sent)
            return answer
        status = told(result).code if isinstance(result, Exception) else HTTPStatus.OK
        late = {"status": int(status), "headers": headers(guest.running.count(), guest.sent)}
        return json.dumps(late).encode() + b"\n" + answer
