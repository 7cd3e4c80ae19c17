"""One prompt on its way to an answer: its tokens, its text as far as it is certain, and why it ended.

A scheduling policy pushes tokens into sequences; it needs to know nothing else about them.
"""

import time
from dataclasses import dataclass, field
from typing import Any

import torch

from tasks.generation.parameters import Parameters
from tasks.shared.errors import RequestError

_CONTEXT = (
    6  # tokens of the prompt that are decoded again with the first ones of the answer, for the space between them
)


class TextSoFar:
    """Turns tokens into text piece by piece: joined, the pieces are the text of all tokens together.

    A token may hold half of a character, or need the one before it to know whether a space comes between: a piece is given
    out once its end is a whole character.
    """

    def __init__(self, tokenizer: Any, prompt: list[int]) -> None:
        self._tokenizer = tokenizer
        self._ids = prompt[-_CONTEXT:]
        self._start = 0
        self._given = len(self._ids)

    def push(self, token: int, last: bool = False) -> str:
        """The text that became certain with this token; with `last`, all that is left."""
        self._ids.append(token)
        before = self._decode(self._ids[self._start : self._given])
        now = self._decode(self._ids[self._start :])
        if len(now) <= len(before) or (now.endswith("\ufffd") and not last):
            return ""
        self._start, self._given = self._given, len(self._ids)
        return now[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


@dataclass(eq=False)
class Sequence:
    """`limit`: how many tokens may be generated. `ids`: the prompt and what was generated so far; a policy that had to stop
    half-way goes on from there. `finish_reason`: "stop" (end of text, or a stop string), "length", or None while running.
    `deadline`: of time.monotonic(). `began`, `first_token`: of time.time(), when the model first saw it and when it first said
    something; `batch`: how many sequences began or ran with it.
    """

    prompt: list[int]
    limit: int
    parameters: Parameters
    tokenizer: Any
    end_ids: frozenset[int]
    device: str = "cpu"
    seed: int | None = None
    deadline: float | None = None
    ids: list[int] = field(init=False)
    text: str = field(init=False, default="")
    finish_reason: str | None = field(init=False, default=None)
    error: RequestError | None = field(init=False, default=None)
    generator: torch.Generator | None = field(init=False, default=None)
    began: float | None = field(init=False, default=None)
    first_token: float | None = field(init=False, default=None)
    batch: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.ids = list(self.prompt)
        self._decoder = TextSoFar(self.tokenizer, self.prompt)
        self._taken = 0
        if self.seed is not None:
            self.generator = torch.Generator(self.device).manual_seed(self.seed)

    @property
    def generated(self) -> int:
        """Number of tokens generated, the end token included."""
        return len(self.ids) - len(self.prompt)

    @property
    def remaining(self) -> int:
        return self.limit - self.generated

    @property
    def done(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def begin(self, batch: int) -> None:
        """The model is about to see it, among `batch` sequences."""
        if self.began is None:
            self.began, self.batch = time.time(), batch

    def push(self, token: int) -> None:
        """Append a generated token. Tokens that a policy pushes after the end are ignored."""
        if self.done:
            return
        if self.first_token is None:
            self.first_token = time.time()
        self.ids.append(token)
        ended, full = token in self.end_ids, self.remaining <= 0
        before = len(self.text)
        self.text += self._decoder.push(token, last=ended or full)
        if self._cut_at_stop(before) or ended:
            self.finish_reason = "stop"
        elif full:
            self.finish_reason = "length"

    def fail(self, error: RequestError) -> None:
        """End without an answer."""
        if not self.done:
            self.error = error

    def check(self, now: float) -> None:
        """Fail if the deadline is over: TorchServe would give the worker up before this answer is ready."""
        if self.deadline is not None and now > self.deadline:
            self.fail(RequestError(
                504, "timeout", f"required {self.limit} tokens in the time that this model's settings allow, found "
                f"{self.generated} generated; ask for fewer with max_new_tokens, or raise response_timeout_s"
            ))  # fmt: skip

    def abandon(self) -> None:
        """End, because nobody waits for the answer any more."""
        self.fail(RequestError(499, "client_gone", "required a client that waits for its answer, found none"))

    def take(self) -> str:
        """The text since the last call that no stop string can take back any more."""
        end = len(self.text) if self.done else len(self.text) - self._uncertain()
        piece = self.text[self._taken : end]
        self._taken = max(self._taken, end)
        return piece

    def _cut_at_stop(self, before: int) -> bool:
        starts = [self.text.find(stop, max(0, before - len(stop) + 1)) for stop in self.parameters.stop]
        found = [start for start in starts if start >= 0]
        if found:
            self.text = self.text[: min(found)]
        return bool(found)

    def _uncertain(self) -> int:
        """How many characters at the end of the text may turn out to begin a stop string."""
        longest = 0
        for stop in self.parameters.stop:
            for length in range(min(len(stop) - 1, len(self.text)), longest, -1):
                if self.text.endswith(stop[:length]):
                    longest = length
                    break
        return longest
