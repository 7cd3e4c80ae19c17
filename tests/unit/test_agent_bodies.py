"""A body that is wrong is answered 400 with the field's name, and never reaches a worker."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.agent.bodies import checked_body
from serve.agent.errors import ApiError


def refusal(raw: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        checked_body(raw)
    assert caught.value.code == 400
    return caught.value


@pytest.mark.parametrize(
    ("raw", "kind", "field"),
    [
        (b"", "invalid_json", None),
        (b"input=hello", "invalid_json", None),
        (b'{"input": "a"', "invalid_json", None),
        (b"\xff\xfe{}", "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b"1" * 5000, "invalid_json", None),
        (b'["a"]', "invalid_json", None),
        (b"null", "invalid_json", None),
        (b"{}", "invalid_request", "input"),
        (b'{"input": null}', "invalid_request", "input"),
        (b'{"input": 5}', "invalid_request", "input"),
        (b'{"input": []}', "invalid_request", "input"),
        (b'{"input": ["a", 5]}', "invalid_request", "input[1]"),
        (b'{"input": "\\ud800"}', "invalid_request", "input"),
        (b'{"input": "a", "parameters": [1]}', "invalid_request", "parameters"),
        (b'{"input": "a", "stream": "yes"}', "invalid_request", "stream"),
        (b'{"input": ["a"], "stream": true}', "invalid_request", "stream"),
        (b'{"input": "a", "details": 1}', "invalid_request", "details"),
    ],
)
def test_wrong_bodies_are_refused_by_field(raw: bytes, kind: str, field: str | None) -> None:
    error = refusal(raw)
    assert (error.type, error.field) == (kind, field)
    said = json.loads(error.body())["error"]
    assert said["code"] == 400
    assert "required" in said["message"]
    assert said.get("field") == field


@pytest.mark.parametrize(
    "body",
    [
        {"input": "a"},
        {"input": ["a", "b"], "parameters": {"top_k": 5}, "details": True},
        {"input": "a", "parameters": None, "stream": None},
        {"input": "", "stream": True},
        {"input": "ünï 🎉"},
    ],
)
def test_right_bodies_pass(body: dict[str, object]) -> None:
    assert checked_body(json.dumps(body).encode()) == body


@given(st.binary(max_size=200))
def test_any_bytes_are_a_body_or_a_400(raw: bytes) -> None:
    try:
        assert "input" in checked_body(raw)
    except ApiError as error:
        assert error.code == 400
        json.loads(error.body())


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["input", "parameters", "stream", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_a_body_or_a_400_in_json(value: object) -> None:
    try:
        assert "input" in checked_body(json.dumps(value).encode())
    except ApiError as error:
        assert error.code == 400
        json.loads(error.body())
