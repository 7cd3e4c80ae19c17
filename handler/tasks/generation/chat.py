"""A conversation as the prompt that the model was trained to answer: `messages` in place of `input`.

The prompt is the tokenizer's chat template applied, or the release's own (`chat_template` in its settings). A model without one,
which was trained on plain text, gets a line `role: content` for each message and `assistant:` at the end; its answer then ends
where it begins a line for the user.
"""

from collections.abc import Mapping
from typing import Any

import jinja2

from tasks.shared.body import MAX_CHARACTERS, checked_text
from tasks.shared.errors import InvalidRequest, describe

MAX_MESSAGES = 1024
PLAIN_STOP = "\nuser:"


def read_messages(body: Mapping[str, Any]) -> list[dict[str, str]] | None:
    """The body's messages as {role, content}, None if it has none.

    Raises:
        InvalidRequest: naming the field that is missing, unknown, of a wrong type or too long.
    """
    value = body.get("messages")
    if value is None:
        return None
    if body.get("input") is not None:
        raise InvalidRequest("messages", "required input or messages, found both")
    if not isinstance(value, list) or not 0 < len(value) <= MAX_MESSAGES:
        raise InvalidRequest("messages", f"required a list of 1 to {MAX_MESSAGES} messages, found {describe(value)}")
    messages = [_message(f"messages[{index}]", message) for index, message in enumerate(value)]
    total = sum(len(text) for message in messages for text in message.values())
    if total > MAX_CHARACTERS:
        raise InvalidRequest("messages", f"required at most {MAX_CHARACTERS} characters in all, found {total}")
    return messages


def has_template(tokenizer: Any) -> bool:
    """Whether the model says how it wants a conversation."""
    return bool(tokenizer.chat_template)


def prompt_of(tokenizer: Any, messages: list[dict[str, str]]) -> str:
    """The text that the model is to continue.

    Raises:
        InvalidRequest: the template refuses these messages (most know only some roles, in some order).
    """
    if not has_template(tokenizer):
        lines = [f"{message['role']}: {message['content']}" for message in messages]
        return "\n".join([*lines, "assistant:"])
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except jinja2.TemplateSyntaxError:
        raise  # the release's fault, not the client's
    except jinja2.TemplateError as error:
        message = f"required messages that the model's chat template takes, found: {str(error)[:200]}"
        raise InvalidRequest("messages", message) from None
    return text


def _message(field: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InvalidRequest(field, f"required an object with role and content, found {describe(value)}")
    for name in value:
        if name not in ("role", "content"):
            raise InvalidRequest(field, f"required role and content, found {describe(name)}")
    message = {name: checked_text(value.get(name), f"{field}.{name}") for name in ("role", "content")}
    if not message["role"]:
        raise InvalidRequest(f"{field}.role", "required system, user or assistant, found ''")
    return message
