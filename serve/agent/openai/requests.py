"""From a request of OpenAI's API to a prediction body.

Checked here is what must be known to translate; ranges, lengths and texts are the handler's to judge, whose errors are told with
the client's names of fields. A field that would change the answer and cannot be obeyed is refused by name; one that would not is
ignored.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from serve.agent.bodies import found
from serve.agent.errors import ApiError, invalid

_SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop")
_IGNORED = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "parallel_tool_calls", "prediction",
}  # fmt: skip
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "logprobs": (False,), "top_logprobs": (0,), "suffix": ("",), "logit_bias": ({},),
    "presence_penalty": (0,), "frequency_penalty": (0,), "tools": ([],), "tool_choice": ("none", "auto"),
    "functions": ([],), "function_call": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "audio": (), "reasoning_effort": ("none",), "verbosity": ("medium",),
    "web_search_options": (), "dimensions": (),
}  # fmt: skip
"""Fields that are not supported, with the values that ask for nothing (null does so in all of them)."""
_TEXTS = "a string or a list of strings"
_DEFAULT_NEW_TOKENS = 16  # of a completion, as OpenAI documents it; a chat's answer may be as long as there is room


@dataclass(frozen=True)
class Ask:
    """A translated request. `body`: of the prediction; `several`: its answer is a list of answers, one an input.

    `names`: a prediction's field → what the client calls it. `usage`: a stream ends with the counts of tokens.
    """

    model: str
    release: str | None
    body: dict[str, Any]
    task: str = "text-generation"
    several: bool = False
    stream: bool = False
    usage: bool = False
    names: dict[str, str] = field(default_factory=dict)

    def rename(self, name: str) -> str:
        """`parameters.max_new_tokens` → `max_tokens`, `input[2]` → `prompt[2]`."""
        whole, bracket, index = name.removeprefix("parameters.").partition("[")
        return self.names.get(whole, whole) + bracket + index


def completion(body: dict[str, Any]) -> Ask:
    """`POST /v1/completions`."""
    _only(body, {"prompt", "max_tokens", "stream", "stream_options", "echo", *_SAMPLING})
    stream = _boolean(body, "stream")
    prompt = _prompt(body.get("prompt"), stream)
    echo = _boolean(body, "echo")
    if stream and echo:
        raise invalid("echo", "required false with stream, found true")
    limit = _DEFAULT_NEW_TOKENS if body.get("max_tokens") is None else body["max_tokens"]
    parameters = _parameters(body) | {"max_new_tokens": limit, "return_full_text": echo}
    return Ask(
        *_model(body),
        {"input": prompt, "parameters": parameters, "stream": stream, "details": True},
        several=isinstance(prompt, list),
        stream=stream,
        usage=_include_usage(body),
        names={"input": "prompt", "max_new_tokens": "max_tokens"},
    )


def chat(body: dict[str, Any]) -> Ask:
    """`POST /v1/chat/completions`."""
    _only(body, {"messages", "max_tokens", "max_completion_tokens", "stream", "stream_options", *_SAMPLING})
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise invalid("messages", f"required a list of messages, found {found(messages)}")
    newer = body.get("max_completion_tokens") is not None
    limit_name = "max_completion_tokens" if newer else "max_tokens"
    limit = {} if body.get(limit_name) is None else {"max_new_tokens": body[limit_name]}
    stream = _boolean(body, "stream")
    translated = [_message(f"messages[{index}]", message) for index, message in enumerate(messages)]
    return Ask(
        *_model(body),
        {"messages": translated, "parameters": _parameters(body) | limit, "stream": stream, "details": True},
        stream=stream,
        usage=_include_usage(body),
        names={"input": "messages", "max_new_tokens": limit_name},
    )


def embeddings(body: dict[str, Any]) -> Ask:
    """`POST /v1/embeddings`."""
    _only(body, {"input", "encoding_format"})
    value = body.get("input")
    texts = value if isinstance(value, list) else [value]
    for index, text in enumerate(texts):
        _text(f"input[{index}]" if texts is value else "input", text, "a string" if texts is value else _TEXTS)
    form = body.get("encoding_format")
    parameters = {} if form is None else {"encoding_format": form}
    return Ask(
        *_model(body), {"input": texts, "parameters": parameters, "details": True}, task="embeddings", several=True
    )


ROUTES: dict[str, Callable[[dict[str, Any]], Ask]] = {
    "completions": completion,
    "chat/completions": chat,
    "embeddings": embeddings,
}
"""Path under `/v1` → translation; each raises ApiError 400 naming the field that is wrong."""


def split_model(name: str) -> tuple[str, str | None]:
    """`falcon-tiny` or, with the release that must be the one serving, `falcon-tiny/v1`."""
    model, slash, release = name.partition("/")
    return model, release if slash else None


def _model(body: dict[str, Any]) -> tuple[str, str | None]:
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise invalid("model", f"required the name of a model, found {found(name)}; GET /v1/models lists them")
    return split_model(name)


def _only(body: dict[str, Any], known: set[str]) -> None:
    for name, value in body.items():
        if value is None or name == "model" or name in known or name in _IGNORED:
            continue
        shown = name if name.isidentifier() and len(name) <= 40 else "..."
        neutral = _NEUTRAL.get(name)
        if neutral is None:
            raise invalid(shown, f"required a field that this route knows, found {found(name)}")
        if not any(_same(value, one) for one in neutral):
            wanted = " or ".join(repr(one) for one in neutral) or "none"
            raise ApiError(
                400, "unsupported_parameter", f"{name} is not supported: required {wanted}, found {found(value)}", name
            )


def _same(value: Any, neutral: Any) -> bool:
    """Equal as JSON: 0 is 0.0, but not false."""
    return isinstance(value, bool) == isinstance(neutral, bool) and bool(value == neutral)


def _parameters(body: dict[str, Any]) -> dict[str, Any]:
    parameters = {name: body[name] for name in _SAMPLING if body.get(name) is not None}
    temperature, seed = parameters.get("temperature"), parameters.get("seed")
    if temperature is not None:
        parameters["do_sample"] = temperature != 0
    if isinstance(seed, int) and not isinstance(seed, bool):
        parameters["seed"] = seed % (1 << 63)  # OpenAI's may be negative
    return parameters


def _prompt(value: Any, stream: bool) -> str | list[str]:
    """A stream is of one prompt, which may come in a list."""
    if not isinstance(value, list):
        return _text("prompt", value, _TEXTS)
    prompts = [_text(f"prompt[{index}]", one) for index, one in enumerate(value)]
    if not stream:
        return prompts
    if len(prompts) != 1:
        raise invalid("prompt", f"required a single string with stream, found a list of {len(prompts)}")
    return prompts[0]


def _message(where: str, message: Any) -> dict[str, Any]:
    """Role and content; a content in parts is joined if all of them are text."""
    if not isinstance(message, dict):
        raise invalid(where, f"required an object with role and content, found {found(message)}")
    for name, value in message.items():
        if name not in ("role", "content", "name") and value not in (None, []):
            raise invalid(f"{where}.{name}"[:60], "required role and content alone, found one more field")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise invalid(f"{where}.role", f"required system, developer, user or assistant, found {found(role)}")
    if isinstance(content, list):
        content = "".join(_part(f"{where}.content[{index}]", part) for index, part in enumerate(content))
    return {"role": "system" if role == "developer" else role, "content": _text(f"{where}.content", content)}


def _part(where: str, part: Any) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else part
        raise invalid(f"{where}.type", f"required text, found {found(kind)}")
    return _text(f"{where}.text", part.get("text"))


def _text(where: str, value: Any, wanted: str = "a string") -> str:
    if not isinstance(value, str):
        raise invalid(where, f"required {wanted}, found {found(value)}")
    return value


def _boolean(body: dict[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is not None and not isinstance(value, bool):
        raise invalid(name, f"required true or false, found {found(value)}")
    return bool(value)


def _include_usage(body: dict[str, Any]) -> bool:
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise invalid("stream_options", f"required an object, found {found(options)}")
    if not body.get("stream"):
        raise invalid("stream_options", "required stream true with it, found false")
    return _boolean(options, "include_usage")
