"""Bodies of all kinds: each is a request or an error that names its field; none of them breaks anything."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tasks import available, find_task, load_task
from tasks.shared.body import MAX_CHARACTERS, read_json
from tasks.shared.contract import Node
from tasks.shared.errors import InvalidRequest, describe

from tests.tiny_models import make_causal

PARAMETERS = "max_new_tokens max_length do_sample temperature top_k top_p repetition_penalty stop seed return_full_text"


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_task("text-generation", make_causal(tmp_path_factory.mktemp("model"), "falcon"), {}, Node())


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({}, "input", "required input, a string or a list of strings; found none"),
        ({"input": None}, "input", "found null"),
        ({"input": 5}, "input", "found 5"),
        ({"input": []}, "input", "found an empty list"),
        ({"input": ["a", 5]}, "input[1]", "required a string, found 5"),
        ({"input": {"text": "a"}}, "input", "found an object of 1 fields"),
        ({"input": ["a"] * 65}, "input", "required at most 64 inputs, found 65"),
        ({"input": "x" * (MAX_CHARACTERS + 1)}, "input", f"required at most {MAX_CHARACTERS} characters"),
        ({"input": ""}, "input", "required a text of at least one token"),
        ({"input": "\ud800 half"}, "input", "half of a surrogate pair at character 0"),
        ({"input": "a", "inputs": "b"}, "inputs", "required input, parameters, stream, details; found 'inputs'"),
        ({"input": "a", "x y\n": 1}, "...", "found 'x y\\n'"),
        ({"input": "a", "stream": 1}, "stream", "required true or false, found 1"),
        ({"input": "a", "details": "yes"}, "details", "required true or false, found 'yes'"),
        ({"input": ["a"], "stream": True}, "stream", "required a single string"),
        ({"input": "a", "parameters": [1]}, "parameters", "required an object, found a list of 1"),
        ({"input": "a", "parameters": {"topk": 5}}, "parameters.topk", "found 'topk'"),
        ({"input": "a", "parameters": {"top_k": -1}}, "parameters.top_k", "from 0 to 1048576, found -1"),
        ({"input": "a", "parameters": {"top_k": "5"}}, "parameters.top_k", "found '5'"),
        ({"input": "a", "parameters": {"top_k": True}}, "parameters.top_k", "found true"),
        ({"input": "a", "parameters": {"top_k": 5.5}}, "parameters.top_k", "found 5.5"),
        ({"input": "a", "parameters": {"top_k": 10**30}}, "parameters.top_k", "an integer of 100 bits"),
        (
            {"input": "a", "parameters": {"top_p": math.nan}},
            "parameters.top_p",
            "required a number from 0 to 1, found nan",
        ),
        ({"input": "a", "parameters": {"top_p": 1.01}}, "parameters.top_p", "found 1.01"),
        ({"input": "a", "parameters": {"temperature": math.inf}}, "parameters.temperature", "found inf"),
        ({"input": "a", "parameters": {"temperature": -0.1}}, "parameters.temperature", "found -0.1"),
        (
            {"input": "a", "parameters": {"temperature": 1e-30}},
            "parameters.temperature",
            "0 (greedy) or a number from 0.01",
        ),
        ({"input": "a", "parameters": {"temperature": 10**400}}, "parameters.temperature", "an integer of 1329 bits"),
        ({"input": "a", "parameters": {"repetition_penalty": 0}}, "parameters.repetition_penalty", "from 0.1 to 10"),
        ({"input": "a", "parameters": {"max_new_tokens": 0}}, "parameters.max_new_tokens", "from 1 to"),
        ({"input": "a", "parameters": {"max_new_tokens": 128}}, "parameters.max_new_tokens", "required at most 127"),
        ({"input": "a", "parameters": {"do_sample": "no"}}, "parameters.do_sample", "true or false, found 'no'"),
        ({"input": "a", "parameters": {"seed": -1}}, "parameters.seed", "found -1"),
        ({"input": "a", "parameters": {"stop": 5}}, "parameters.stop", "required a string or a list"),
        ({"input": "a", "parameters": {"stop": ["x", ""]}}, "parameters.stop", "1 to 256 characters, found ''"),
        (
            {"input": "a", "parameters": {"stop": ["x"] * 17}},
            "parameters.stop",
            "at most 16 strings, found a list of 17",
        ),
        ({"input": "a", "parameters": {"stop": "\udfff"}}, "parameters.stop", "half of a surrogate pair"),
    ],
)
def test_a_wrong_body_is_refused_naming_the_field(task: Any, body: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        task.parse(body)
    error = refused.value.as_body()["error"]
    assert error["code"] == 400
    assert error["field"] == field
    assert message in error["message"]
    json.dumps(error).encode("ascii")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "required a JSON body, found Expecting value at line 1 column 1"),
        (b"{", "found Expecting property name"),
        (b"\xff\xfe{}", "required a JSON body in UTF-8, found byte 0"),
        (b"[1]", "required a JSON object"),
        (b'"input"', "required a JSON object"),
        (b"null", "found no body"),
        (b"NaN", "required a JSON object"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"input": ' + b"9" * 5000 + b"}", "a number with too many digits"),
    ],
)
def test_bytes_that_are_no_json_object_are_refused(raw: bytes, message: str) -> None:
    for row in ({"body": raw}, {"data": bytearray(raw)}):
        with pytest.raises(InvalidRequest) as refused:
            read_json(row)
        assert message in refused.value.message
        assert refused.value.kind == "invalid_json"


def test_a_request_without_a_body_is_refused() -> None:
    rows: list[object] = [{}, {"other": b"{}"}, None, [], "text"]
    for row in rows:
        with pytest.raises(InvalidRequest, match="required a JSON object"):
            read_json(row)


def test_what_torchserve_has_parsed_already_is_taken() -> None:
    assert read_json({"body": {"input": "a"}}) == read_json({"data": b'{"input": "a"}'}) == {"input": "a"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
near_bodies = st.fixed_dictionaries(
    {"input": json_values | st.just("The weights")},
    optional={
        "parameters": json_values | st.fixed_dictionaries({}, optional=dict.fromkeys(PARAMETERS.split(), json_values)),
        "stream": json_values,
        "details": json_values,
    },
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(body=near_bodies | st.dictionaries(st.text(max_size=8), json_values, max_size=3))
def test_any_object_is_a_request_or_a_refusal(task: Any, body: dict[str, Any]) -> None:
    try:
        request = task.parse(body)
    except InvalidRequest as error:
        json.dumps(error.as_body()).encode("ascii")
    else:
        assert all(1 <= prompt.limit <= 127 for prompt in request.prompts)


@settings(max_examples=300, deadline=None)
@given(raw=st.binary(max_size=80) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_are_an_object_or_a_refusal(raw: bytes) -> None:
    try:
        assert isinstance(read_json({"body": raw}), dict)
    except InvalidRequest as error:
        json.dumps(error.as_body()).encode("ascii")


@given(value=json_values | st.integers(10**4300, 10**4400) | st.binary() | st.complex_numbers())
def test_any_value_can_be_described_shortly(value: object) -> None:
    assert 0 < len(describe(value)) < 500


def test_a_new_file_in_the_folder_is_a_new_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tasks

    assert available() == ["embeddings", "reranking", "text-classification", "text-generation"]
    monkeypatch.setattr(tasks, "__path__", [*tasks.__path__, str(tmp_path)])
    (tmp_path / "word_count.py").write_text("def load(folder, settings, node):\n    return ('loaded', node.device)\n")
    assert "word-count" in available()
    loaded: object = load_task("word-count", tmp_path, {}, Node())
    assert loaded == ("loaded", "cpu")
    with pytest.raises(ValueError, match=r"task 'shared': required one of embeddings, .*, text-generation, word-count"):
        find_task("shared")
