"""A conversation becomes the prompt that the model's own template says, or the documented plain one."""

from pathlib import Path
from typing import Any

import pytest
from tasks import load_task
from tasks.generation.chat import MAX_MESSAGES, PLAIN_STOP
from tasks.shared.contract import Node
from tasks.shared.errors import InvalidRequest

from tests.tiny_models import make_causal

TEMPLATE = (
    "<|endoftext|>{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('no such role') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "The weights"},
]
PLAIN = "system: Be brief.\nuser: Hello\nassistant: Hi\nuser: The weights\nassistant:"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_causal(tmp_path_factory.mktemp("chat"), "falcon", max_position_embeddings=1024)


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    return load_task("text-generation", folder, {}, Node(max_new_tokens=40))


@pytest.fixture(scope="module")
def templated(folder: Path) -> Any:
    return load_task("text-generation", folder, {"chat_template": TEMPLATE}, Node(max_new_tokens=40))


def answer(task: Any, body: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = task.run([task.parse(body)], lambda events: None)[0][0]
    return found


def test_without_a_template_there_is_a_line_for_each_message(plain: Any) -> None:
    request = plain.parse({"messages": TALK})
    assert [prompt.text for prompt in request.prompts] == [PLAIN]
    assert request.single
    assert request.parameters.stop == (PLAIN_STOP,)


def test_the_releases_template_is_applied_and_its_special_tokens_are_tokens(templated: Any) -> None:
    prompt = templated.parse({"messages": TALK}).prompts[0]
    assert prompt.text == "<|endoftext|>[system]Be brief.[user]Hello[assistant]Hi[user]The weights[assistant]"
    assert prompt.ids[0] == templated._tokenizer.eos_token_id
    assert templated.parse({"messages": TALK}).parameters.stop == ()


def test_tokenizers_that_add_a_first_token_add_none_to_a_templates(templated: Any, monkeypatch: Any) -> None:
    asked: list[bool] = []
    tokenizer = templated._tokenizer

    class Spy:
        def __call__(self, text: str, add_special_tokens: bool = True) -> Any:
            asked.append(add_special_tokens)
            return tokenizer(text, add_special_tokens=add_special_tokens)

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

    monkeypatch.setattr(templated, "_tokenizer", Spy())
    templated.parse({"messages": TALK})
    templated.parse({"input": "Hello"})
    assert asked == [False, True]


def test_the_answer_is_the_continuation_of_that_prompt_alone(plain: Any) -> None:
    greedy = {"do_sample": False, "max_new_tokens": 12}
    chat = answer(plain, {"messages": TALK, "parameters": greedy})
    text = answer(plain, {"input": PLAIN, "parameters": greedy | {"return_full_text": False, "stop": PLAIN_STOP}})
    assert chat == text
    assert chat["generated_text"]


def test_an_answer_may_be_as_long_as_there_is_room(plain: Any) -> None:
    assert plain.parse({"messages": TALK}).prompts[0].limit == 40
    assert plain.parse({"messages": TALK, "parameters": {"max_new_tokens": 5}}).prompts[0].limit == 5
    long = [{"role": "user", "content": "0123456789" * 98}]
    prompt = plain.parse({"messages": long}).prompts[0]
    assert prompt.limit == 1024 - len(prompt.ids) < 40


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"messages": "Hello"}, "messages", "required a list of 1 to 1024 messages, found 'Hello'"),
        ({"messages": []}, "messages", "found an empty list"),
        ({"messages": TALK * MAX_MESSAGES}, "messages", "found a list of 4096"),
        ({"messages": TALK, "input": "Hello"}, "messages", "required input or messages, found both"),
        ({"messages": [*TALK, "Hello"]}, "messages[4]", "required an object with role and content, found 'Hello'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "required a string, found null"),
        ({"messages": [{"role": 5, "content": "a"}]}, "messages[0].role", "required a string, found 5"),
        ({"messages": [{"role": "", "content": "a"}]}, "messages[0].role", "found ''"),
        ({"messages": [TALK[0] | {"name": "x"}]}, "messages[0]", "found 'name'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "half of a surrogate pair"),
        ({"messages": [{"role": "user", "content": "a" * (1 << 20)}]}, "messages", "characters in all"),
        ({"messages": TALK, "other": 1}, "other", "found 'other'"),
    ],
)
def test_wrong_messages_are_refused_by_field(plain: Any, body: dict[str, Any], field: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        plain.parse(body)
    assert refused.value.field == field
    assert message in refused.value.message


def test_what_the_template_refuses_is_the_clients_to_change(templated: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        templated.parse({"messages": [{"role": "tool", "content": "a"}]})
    assert (refused.value.field, "no such role" in refused.value.message) == ("messages", True)
