"""The load of the experiment `serving`: its requests, the process that sends them, and what is told of the answers."""

import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from seeding.samples.tokenizer import sentences

from loadtest.bench.experiment import BenchFailed
from loadtest.bench.server import ROOT

LENGTHS = tuple(range(16, 129, 16))
PROMPT_WORDS = 14  # about 16 tokens for the tokenizer of the samples, which learned from the same sentences


@dataclass(frozen=True)
class Answer:
    """What the client saw of one request; seconds of one clock. `pieces`: when the events of a stream arrived."""

    began: float
    ended: float
    pieces: tuple[float, ...]
    count: int


def requests(number: int, *, stream: bool) -> list[dict[str, Any]]:
    """Greedy requests, always the same: prompts of about 16 tokens, and of every eight answers one of each length."""
    random = Random(16)  # noqa: S311  # always the same is what is wanted
    words = sorted({word for sentence in sentences() for word in sentence.split()})
    bodies, lengths = [], list[int]()
    for _ in range(number):
        lengths = lengths or random.sample(LENGTHS, len(LENGTHS))
        prompt = " ".join(random.choice(words) for _ in range(PROMPT_WORDS))
        bodies.append(generation(prompt, lengths.pop(), stream=stream))
    return bodies


def generation(prompt: str, tokens: int, *, stream: bool = False) -> dict[str, Any]:
    parameters = {"max_new_tokens": tokens, "do_sample": False}
    return {"input": prompt, "parameters": parameters, "stream": stream, "details": True}


def send(url: str, users: int, bodies: Sequence[dict[str, Any]]) -> list[Answer]:
    """Send the bodies in a closed loop from a process of its own.

    Raises:
        BenchFailed: a request was not answered.
    """
    order = json.dumps({"url": url, "users": users, "bodies": bodies})
    command = [sys.executable, "-m", "loadtest.bench.client"]
    done = subprocess.run(command, cwd=ROOT, input=order, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BenchFailed(f"the load on {url} ended with status {done.returncode}:\n{done.stderr[-1500:]}")
    found = json.loads(done.stdout)
    return [Answer(one["began"], one["ended"], tuple(one["pieces"]), one["count"]) for one in found]


def figures(answers: Sequence[Answer]) -> dict[str, float]:
    """Tokens a second while all users waited for an answer, and of the whole load; latencies, and what the streams showed.

    The last event of a stream is its end and no token.
    """
    began = min(one.began for one in answers)
    until, ended = busy_until(answers), max(one.ended for one in answers)
    latencies = [one.ended - one.began for one in answers]
    firsts = [one.pieces[0] - one.began for one in answers if one.pieces]
    gaps = [1e3 * (b - a) for one in answers for a, b in zip(one.pieces[:-1], one.pieces[1:-1], strict=False)]
    told = {
        "rate_tokens_s": sum(tokens_until(one, until) for one in answers) / (until - began),
        "rate_to_the_end_tokens_s": sum(one.count for one in answers) / (ended - began),
    }
    for name, unit, values in (
        ("latency", "s", latencies),
        ("first_token", "s", firsts),
        ("between_tokens", "ms", gaps),
    ):
        if values:
            told |= {f"{name}_p{p}_{unit}": percentile(values, p) for p in (50, 95)}
    return told


def busy_until(answers: Sequence[Answer]) -> float:
    """When a user got an answer and had nothing more to ask: from then on there are fewer users than were said."""
    last = max(one.began for one in answers)
    return min(one.ended for one in answers if one.ended > last)


def tokens_until(answer: Answer, moment: float) -> float:
    """Its tokens up to then; of an answer that is no stream, none before it is complete."""
    if answer.ended <= moment:
        return answer.count
    pieces = answer.pieces[:-1]
    return answer.count * sum(piece <= moment for piece in pieces) / len(pieces) if pieces else 0


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that at least so many per cent of all do not exceed."""
    return sorted(values)[math.ceil(len(values) * percent / 100) - 1]


def shorter(answers: Sequence[Answer], bodies: Sequence[dict[str, Any]]) -> int:
    """How many answers do not have the length that was asked for."""
    wanted = [body["parameters"]["max_new_tokens"] for body in bodies]
    return sum(one.count != tokens for one, tokens in zip(answers, wanted, strict=True))
