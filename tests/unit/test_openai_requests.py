"""What a client of OpenAI's API asks is what the worker is asked, or is refused by the client's own name for the field."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.agent.bodies import checked_body
from serve.agent.errors import ApiError
from serve.agent.openai.requests import ROUTES, Ask

HELLO = [{"role": "user", "content": "Hello"}]
VALID: dict[str, dict[str, Any]] = {
    "completions": {"model": "m", "prompt": "Hello"},
    "chat/completions": {"model": "m", "messages": HELLO},
    "embeddings": {"model": "m", "input": "Hello"},
}


def ask(path: str, **more: Any) -> Ask:
    return ROUTES[path](VALID[path] | more)


def parameters(path: str, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = ask(path, **more).body["parameters"]
    return found


def test_a_completion_asks_for_the_new_text_alone_with_counts() -> None:
    asked = ask("completions")
    assert (asked.model, asked.release, asked.several) == ("m", None, False)
    assert asked.body == {
        "input": "Hello",
        "parameters": {"max_new_tokens": 16, "return_full_text": False},
        "stream": False,
        "details": True,
    }
    assert parameters("completions", echo=True, max_tokens=3) == {"max_new_tokens": 3, "return_full_text": True}
    assert ask("completions", prompt=["a", "b"]).body["input"] == ["a", "b"]
    assert ask("completions", prompt=["a"], stream=True).body["input"] == "a"


def test_a_chat_answer_is_as_long_as_it_becomes_unless_told() -> None:
    assert ask("chat/completions").body["messages"] == HELLO
    assert parameters("chat/completions") == {}
    assert parameters("chat/completions", max_tokens=5) == {"max_new_tokens": 5}
    newer = ask("chat/completions", max_tokens=5, max_completion_tokens=6)
    assert newer.body["parameters"] == {"max_new_tokens": 6}
    assert newer.rename("parameters.max_new_tokens") == "max_completion_tokens"


def test_parts_of_text_are_joined_and_a_developer_is_the_system() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [
        {"role": "developer", "content": "Be brief.", "name": "me"},
        {"role": "assistant", "content": "Yes?", "refusal": None, "tool_calls": None, "annotations": []},
        {"role": "user", "content": parts},
    ]
    assert ask("chat/completions", messages=messages).body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Hello"},
    ]


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"temperature": 0}, {"temperature": 0, "do_sample": False}),
        ({"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.5, "do_sample": True, "top_p": 0.9}),
        ({"stop": ["x"], "seed": 7, "top_k": 3}, {"stop": ["x"], "seed": 7, "top_k": 3}),
        ({"seed": -1}, {"seed": (1 << 63) - 1}),
        ({"temperature": None, "stop": None, "max_tokens": None}, {}),
    ],
)
def test_sampling(given_: dict[str, Any], expected: dict[str, Any]) -> None:
    assert parameters("chat/completions", **given_) == expected


def test_embeddings_are_a_list_with_counts() -> None:
    assert ask("embeddings").body == {"input": ["Hello"], "parameters": {}, "details": True}
    two = ask("embeddings", input=["a", "b"], encoding_format="base64")
    assert two.body["parameters"] == {"encoding_format": "base64"}


def test_the_release_may_be_named() -> None:
    asked = ask("completions", model="falcon-tiny/v2")
    assert (asked.model, asked.release) == ("falcon-tiny", "v2")


@pytest.mark.parametrize(
    "harmless",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"},
        {"n": 1, "presence_penalty": 0.0, "frequency_penalty": 0, "logit_bias": {}, "logprobs": None},
        {"tools": [], "tool_choice": "none", "response_format": {"type": "text"}},
    ],
)
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_what_does_not_change_the_answer_is_ignored(path: str, harmless: dict[str, Any]) -> None:
    assert ask(path, **harmless) == ask(path)


@pytest.mark.parametrize(
    ("path", "wrong", "field"),
    [
        *((path, {"model": model}, "model") for path in ROUTES for model in (None, "", 5)),
        ("completions", {"prompt": None}, "prompt"),
        ("completions", {"prompt": ["a", 5]}, "prompt[1]"),
        ("completions", {"prompt": [1, 2]}, "prompt[0]"),
        ("completions", {"prompt": ["a", "b"], "stream": True}, "prompt"),
        ("completions", {"echo": True, "stream": True}, "echo"),
        ("completions", {"stream": "yes"}, "stream"),
        ("completions", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("completions", {"stream": True, "stream_options": {"include_usage": 1}}, "include_usage"),
        ("completions", {"n": 2}, "n"),
        ("completions", {"best_of": 3}, "best_of"),
        ("completions", {"logprobs": 0}, "logprobs"),
        ("completions", {"suffix": "end"}, "suffix"),
        ("completions", {"presence_penalty": 0.5}, "presence_penalty"),
        ("completions", {"max_token": 5}, "max_token"),
        ("chat/completions", {"messages": "Hello"}, "messages"),
        ("chat/completions", {"messages": ["Hello"]}, "messages[0]"),
        ("chat/completions", {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ("chat/completions", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("chat/completions", {"messages": [*HELLO, *HELLO, {"role": "user", "content": 5}]}, "messages[2].content"),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0].type",
        ),
        (
            "chat/completions",
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages[0].tool_calls",
        ),
        ("chat/completions", {"tools": [{"type": "function"}]}, "tools"),
        ("chat/completions", {"response_format": {"type": "json_object"}}, "response_format"),
        ("chat/completions", {"logprobs": True}, "logprobs"),
        ("embeddings", {"input": [[1, 2]]}, "input[0]"),
        ("embeddings", {"dimensions": 64}, "dimensions"),
        ("embeddings", {"temperature": 1}, "temperature"),
    ],
)
def test_what_cannot_be_obeyed_is_refused_by_name(path: str, wrong: dict[str, Any], field: str) -> None:
    with pytest.raises(ApiError) as refused:
        ask(path, **wrong)
    assert (refused.value.code, refused.value.field) == (400, field)
    assert "required" in refused.value.message


def test_the_workers_names_of_fields_become_the_clients() -> None:
    asked = ask("completions")
    assert asked.rename("parameters.max_new_tokens") == "max_tokens"
    assert asked.rename("parameters.top_p") == "top_p"
    assert asked.rename("input[2]") == "prompt[2]"
    assert ask("chat/completions").rename("messages[1].content") == "messages[1].content"
    assert ask("embeddings").rename("input[2]") == "input[2]"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
NAMES = (
    "model prompt messages input n stream stream_options temperature seed stop max_tokens echo tools encoding_format"
)


@settings(max_examples=300, deadline=None)
@given(path=st.sampled_from(sorted(ROUTES)), data=st.data())
def test_any_object_becomes_a_prediction_that_the_door_takes_or_a_refusal(path: str, data: st.DataObject) -> None:
    more = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES.split(), values)) | st.just({}))
    try:
        asked = ROUTES[path](VALID[path] | more | data.draw(st.dictionaries(st.text(max_size=6), values, max_size=1)))
    except ApiError as error:
        assert error.code == 400
        error.body()
    else:
        raw = json.dumps(asked.body).encode()
        try:
            checked_body(raw)
        except ApiError as error:  # no prompt at all, or half of a surrogate pair, which the worker refuses by name
            assert (error.field or "").startswith("input")
