"""The parameters of one generation request, under the names that Hugging Face gives them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tasks.shared.body import Fields, checked_text
from tasks.shared.errors import InvalidRequest, describe

NAMES = (
    "max_new_tokens",
    "max_length",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "stop",
    "seed",
    "return_full_text",
)
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256


@dataclass(frozen=True)
class Parameters:
    """How to continue a prompt. `max_new_tokens`, if set, wins over `max_length` (prompt and answer together).

    `top_k` 0 and `top_p` 1 keep every token. `stop`: texts that end the answer and are no part of it.
    """

    max_new_tokens: int | None = None
    max_length: int = 200
    do_sample: bool = True
    temperature: float = 1.0
    top_k: int = 10
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None
    return_full_text: bool = True

    @property
    def greedy(self) -> bool:
        return not self.do_sample or self.temperature == 0 or self.top_k == 1

    def updated(self, fields: Fields) -> "Parameters":
        """These parameters with what `fields` sets.

        Raises:
            InvalidRequest: naming the field that is unknown, of a wrong type or out of range.
        """
        fields.only(NAMES)
        new_tokens = fields.integer("max_new_tokens", None, 1, 1 << 20)
        length = fields.integer("max_length", None, 1, 1 << 20)
        if new_tokens is None and length is None:
            new_tokens = self.max_new_tokens
        temperature = fields.number("temperature", self.temperature, 0.0, 100.0)
        if 0 < temperature < 0.01:
            fields.refuse("temperature", "0 (greedy) or a number from 0.01 to 100")  # below, logits overflow
        return Parameters(
            max_new_tokens=new_tokens,
            max_length=length or self.max_length,
            do_sample=fields.boolean("do_sample", self.do_sample),
            temperature=temperature,
            top_k=fields.integer("top_k", self.top_k, 0, 1 << 20) or 0,
            top_p=fields.number("top_p", self.top_p, 0.0, 1.0),
            repetition_penalty=fields.number("repetition_penalty", self.repetition_penalty, 0.1, 10.0),
            stop=_stops(fields, self.stop),
            seed=fields.integer("seed", self.seed, 0, (1 << 63) - 1),
            return_full_text=fields.boolean("return_full_text", self.return_full_text),
        )


def release_defaults(model_config: Mapping[str, Any], release: Mapping[str, Any]) -> Parameters:
    """What a request gets that says nothing: the release's settings, over what the checkpoint's own generation config says of
    temperature, top_p and repetition_penalty, over sampling with max_length 200 and top_k 10.

    Raises:
        ValueError: one of them is wrong.
    """
    own = {name: model_config.get(name) for name in ("temperature", "top_p", "repetition_penalty")}
    try:
        parameters = Parameters().updated(Fields(own, "generation_config.json: "))
        return parameters.updated(Fields(release, "settings.generation."))
    except InvalidRequest as error:
        raise ValueError(f"{error.field}: {error.message}") from None


def _stops(fields: Fields, default: tuple[str, ...]) -> tuple[str, ...]:
    value = fields.value("stop")
    if value is None:
        return default
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        fields.refuse("stop", f"a string or a list of at most {MAX_STOPS} strings")
    for stop in stops:
        if not 0 < len(checked_text(stop, "parameters.stop")) <= MAX_STOP_CHARACTERS:
            message = f"required strings of 1 to {MAX_STOP_CHARACTERS} characters, found {describe(stop)}"
            raise InvalidRequest("parameters.stop", message, "invalid_parameter")
    return tuple(stops)
