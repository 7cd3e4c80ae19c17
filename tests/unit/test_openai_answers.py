"""What the worker answered, in the words that clients of OpenAI's API read: whole, in pieces, and as an error."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.agent.errors import ApiError, unavailable
from serve.agent.openai.answers import Chat, Completion, Embedded
from serve.agent.openai.errors import respond
from serve.agent.openai.requests import ROUTES, Ask
from serve.agent.openai.streams import Stream

HELLO = [{"role": "user", "content": "Hello"}]


def completion(**more: Any) -> Ask:
    return ROUTES["completions"]({"model": "m", "prompt": "Hello"} | more)


def chat(**more: Any) -> Ask:
    return ROUTES["chat/completions"]({"model": "m", "messages": HELLO} | more)


def embeddings(**more: Any) -> Ask:
    return ROUTES["embeddings"]({"model": "m", "input": "Hello"} | more)


def generated(text: str, reason: str = "stop", prompt: int = 3, new: int = 4) -> dict[str, Any]:
    return {"generated_text": text, "finish_reason": reason, "prompt_tokens": prompt, "generated_tokens": new}


def said(form: Any, answer: Any, status: int = 200) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(form.whole(status, json.dumps(answer).encode()))
    return found


# ---- whole answers


def test_a_completion_has_a_choice_for_each_prompt() -> None:
    one = said(Completion(completion()), [generated(" you", "length")])
    assert (one["object"], one["model"]) == ("text_completion", "m")
    assert one["choices"] == [{"index": 0, "text": " you", "logprobs": None, "finish_reason": "length"}]
    assert one["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    two = said(Completion(completion(prompt=["a", "b"])), [[generated("A")], [generated("B")]])
    assert [(choice["index"], choice["text"]) for choice in two["choices"]] == [(0, "A"), (1, "B")]
    assert two["usage"] == {"prompt_tokens": 6, "completion_tokens": 8, "total_tokens": 14}


def test_a_chat_answers_with_a_message() -> None:
    answer = said(Chat(chat(model="m/v1")), [generated("Hi")])
    assert (answer["object"], answer["model"]) == ("chat.completion", "m/v1")
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hi", "refusal": None}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == 7


def test_embeddings_are_numbered_and_counted() -> None:
    answer = [{"embedding": [0.5, 1.0], "prompt_tokens": 2}, {"embedding": "AAAAPw==", "prompt_tokens": 3}]
    told = said(Embedded(embeddings(input=["a", "b"])), answer)
    assert told["data"] == [
        {"object": "embedding", "index": 0, "embedding": [0.5, 1.0]},
        {"object": "embedding", "index": 1, "embedding": "AAAAPw=="},
    ]
    assert told["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


# ---- streams


def events(raw: bytes) -> list[Any]:
    """What a client sees: each event's data, parsed but for the last."""
    found = [event.removeprefix(b"data: ") for event in raw.split(b"\n\n") if event]
    return [event.decode() if event == b"[DONE]" else json.loads(event) for event in found]


def worker(*pieces: str, **end: Any) -> bytes:
    sent = [{"token": piece} for piece in pieces] + [generated("".join(pieces)) | end]
    return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in sent)


@given(
    pieces=st.lists(st.text(min_size=1, max_size=6), max_size=5),
    cuts=st.lists(st.integers(0, 400), max_size=6),
    usage=st.booleans(),
)
def test_a_completions_pieces_arrive_wherever_the_chunks_were_cut(
    pieces: list[str], cuts: list[int], usage: bool
) -> None:
    raw = worker(*pieces, finish_reason="length")
    form = Stream(completion(stream=True, stream_options={"include_usage": usage}), chat=False)
    places = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
    told = events(b"".join(form.piece(raw[a:b]) for a, b in itertools.pairwise(places)))
    assert told.pop() == "[DONE]"
    if usage:
        last = told.pop()
        assert (last["choices"], last["usage"]["total_tokens"]) == ([], 7)
        assert all(event["usage"] is None for event in told)
    assert [event["choices"][0]["text"] for event in told] == [*pieces, ""]
    assert [event["choices"][0]["finish_reason"] for event in told] == [None] * len(pieces) + ["length"]
    assert len({event["id"] for event in told}) == 1


def test_a_chats_first_delta_names_the_role() -> None:
    told = events(Stream(chat(stream=True), chat=True).piece(worker("Hi", "!")))
    deltas = [event["choices"][0]["delta"] for event in told[:-1]]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "Hi"}, {"content": "!"}, {}]
    assert told[-2]["choices"][0]["finish_reason"] == "stop"
    assert "usage" not in told[0]


def test_a_stream_without_a_piece_is_one_answer_of_the_worker() -> None:
    told = events(Stream(chat(stream=True), chat=True).whole(200, worker()))
    assert told[-1] == "[DONE]"
    assert told[-2]["choices"][0]["finish_reason"] == "stop"


def test_a_stream_that_breaks_off_says_so_in_the_form() -> None:
    form = Stream(chat(stream=True), chat=True)
    form.piece(worker("Hi")[:30])
    error = json.loads(form.broken(unavailable("it died", "worker_died")).removeprefix(b"data: "))["error"]
    assert error == {"message": "it died", "type": "server_error", "param": None, "code": "worker_died"}
    late = b'data: {"error": {"code": 504, "type": "timeout", "message": "late"}}\n\n'
    assert events(Stream(chat(stream=True), chat=True).piece(late))[0]["error"]["code"] == "timeout"


# ---- errors


@pytest.mark.parametrize(
    ("ask", "form", "field", "param"),
    [
        (completion(), Completion, "parameters.max_new_tokens", "max_tokens"),
        (completion(), Completion, "input", "prompt"),
        (chat(), Chat, "messages[0].content", "messages[0].content"),
        (chat(stream=True), lambda ask: Stream(ask, chat=True), "parameters.stop", "stop"),
        (embeddings(), Embedded, "input", "input"),
        (chat(), Chat, None, None),
    ],
)
def test_a_workers_refusal_names_the_clients_field(ask: Ask, form: Any, field: str | None, param: str | None) -> None:
    refusal = {"error": {"code": 400, "type": "invalid_parameter", "message": "required x, found y"}}
    if field is not None:
        refusal["error"]["field"] = field
    assert said(form(ask), refusal, 400)["error"] == {
        "message": "required x, found y",
        "type": "invalid_request_error",
        "param": param,
        "code": "invalid_parameter",
    }


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (ApiError(401, "unauthorized", "no key"), "invalid_request_error", "invalid_api_key"),
        (ApiError(404, "model_not_found", "no model"), "invalid_request_error", "model_not_found"),
        (unavailable("full", "overloaded"), "server_error", "overloaded"),
    ],
)
def test_the_doors_errors_keep_their_status(error: ApiError, kind: str, code: str) -> None:
    response = respond(error)
    assert response.status == error.code
    assert response.headers.get("Retry-After") == (None if error.retry_after_s is None else "1")
    assert isinstance(response.body, bytes)
    told = json.loads(response.body)["error"]
    assert told == {"message": error.message, "type": kind, "param": None, "code": code}
