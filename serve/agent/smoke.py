"""The smoke test: one prediction to a version that no client is routed to yet.

A release passes when it answers at all and the answer makes sense for its task: text that is not empty, embeddings and scores
of finite numbers. A release may bring its own test, `golden: {"input": …, "parameters": …, "output": …}`: then the answer must be
that.
"""

import logging
import math
from typing import Any

import aiohttp

from serve.agent.routing import Target
from weightless.errors import WeightlessError
from weightless.release import Release

log = logging.getLogger(__name__)

_GREEDY: dict[str, Any] = {"max_new_tokens": 2, "do_sample": False}  # the prompt's pass and one step
_EXAMPLES: dict[str, dict[str, Any]] = {
    "text-generation": {"input": "Hello", "parameters": _GREEDY},
    "embeddings": {"input": "Hello"},
    "text-classification": {"input": "Hello"},
    "reranking": {"query": "Hello", "texts": ["Hello"]},
}
_TOLERANCE = 1e-2  # between two machines' roundings of a normalised embedding


class SmokeTestFailed(WeightlessError):
    """The release loads, but does not answer as a release must."""


async def smoke_test(session: aiohttp.ClientSession, inference_url: str, target: Target, release: Release) -> None:
    """Send the release's test to the version.

    Raises:
        SmokeTestFailed: saying what was sent, what was required and what came.
    """
    golden = release.content.settings.golden
    body = request_body(target.task, golden)
    what = f"release {release.name} of {release.model}: smoke test"
    timeout = aiohttp.ClientTimeout(total=target.response_timeout_s)
    try:
        async with session.post(inference_url + target.path, json=body, timeout=timeout) as response:
            text = await response.text()
            if response.status != 200:
                raise SmokeTestFailed(
                    f"{what}: required an answer to {body}, found HTTP {response.status}: {text[:300]}"
                )
            answer = await response.json(content_type=None)
    except TimeoutError:
        raise SmokeTestFailed(
            f"{what}: required an answer within {target.response_timeout_s:.0f} s, found none"
        ) from None
    except (aiohttp.ClientError, ValueError) as error:
        raise SmokeTestFailed(f"{what}: required a JSON answer to {body}, found {error!r}") from None
    wrong = wrong_with(target.task, answer, golden)
    if wrong:
        raise SmokeTestFailed(f"{what}: {wrong}")
    if golden is not None and "output" not in golden:
        # Publishing refuses it now; releases of before must go on serving.
        log.warning(
            "%s: the golden request has no output to compare, any answer passes; add output to release.golden in "
            "config/models/%s.yaml and publish it anew with `make seed MODEL=%s`",
            what,
            release.model,
            release.model,
        )


def request_body(task: str, golden: dict[str, Any] | None) -> dict[str, Any]:
    """What is sent: the golden request, greedy unless it says otherwise, or the task's example."""
    if golden is None:
        return _EXAMPLES.get(task, {"input": "Hello"})
    body = {name: value for name, value in golden.items() if name != "output"}
    if task == "text-generation":
        body["parameters"] = {"do_sample": False} | golden.get("parameters", {})
    return body


def wrong_with(task: str, answer: Any, golden: dict[str, Any] | None) -> str | None:
    """What is wrong with an answer, or None. A golden request without an output asks for any answer that makes sense."""
    golden = golden if golden is not None and "output" in golden else None
    if task == "text-generation":
        return _wrong_text(answer, golden)
    if task == "embeddings":
        return _wrong_embedding(answer, golden)
    if task in ("text-classification", "reranking"):
        return _wrong_scores(answer, golden)
    if golden is not None and answer != golden["output"]:
        return f"required the golden answer {golden['output']!r}, found {str(answer)[:200]}"
    return None


def _wrong_text(answer: Any, golden: dict[str, Any] | None) -> str | None:
    try:
        text = answer[0]["generated_text"]
    except (TypeError, LookupError):
        return f"required [{{'generated_text': …}}], found {str(answer)[:200]}"
    if not isinstance(text, str) or not text.strip():
        return f"required text, found {text!r}"
    if golden is not None and text != golden["output"]:
        return f"required the golden answer {golden['output']!r}, found {text!r}"
    return None


def _wrong_embedding(answer: Any, golden: dict[str, Any] | None) -> str | None:
    numbers = answer.get("embedding") if isinstance(answer, dict) else None
    if not isinstance(numbers, list) or not numbers or not all(isinstance(number, int | float) for number in numbers):
        return f"required {{'embedding': [numbers]}}, found {str(answer)[:200]}"
    if not all(math.isfinite(number) for number in numbers) or not any(numbers):
        return "required finite numbers, not all of them 0, found others"
    if golden is not None and not _close(numbers, golden["output"]):
        return "required the golden embedding, found another"
    return None


def _wrong_scores(answer: Any, golden: dict[str, Any] | None) -> str | None:
    """Of a list of objects with a score each; what else they say must be the golden answer's, the scores near it."""
    try:
        scores, others = _parted(answer)
        wanted = None if golden is None else _parted(golden["output"])
    except (TypeError, LookupError, AttributeError):
        return f"required [{{'score': number, …}}], found {str(answer)[:200]}"
    if not scores or not all(isinstance(score, int | float) and math.isfinite(score) for score in scores):
        return f"required finite scores, found {str(answer)[:200]}"
    if wanted is not None and not (others == wanted[1] and _close(scores, wanted[0])):
        return "required the golden scores, found others"
    return None


def _parted(answer: list[dict[str, Any]]) -> tuple[list[Any], list[dict[str, Any]]]:
    others = [{name: value for name, value in one.items() if name not in ("score", "text")} for one in answer]
    return [one["score"] for one in answer], others


def _close(numbers: list[float], golden: list[float]) -> bool:
    return len(numbers) == len(golden) and all(abs(a - b) <= _TOLERANCE for a, b in zip(numbers, golden, strict=True))
