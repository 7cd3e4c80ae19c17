"""The task `text-generation`: continue prompts with any causal language model that transformers knows."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.generation.chat import PLAIN_STOP, has_template, prompt_of, read_messages
from tasks.generation.continuous import ContinuousBatch, unsupported
from tasks.generation.parameters import Parameters, release_defaults
from tasks.generation.sequence import Sequence
from tasks.generation.static import StaticBatch
from tasks.generation.stepped import SteppedBatch
from tasks.shared.body import read_body
from tasks.shared.contract import Emit, Event, Figures, Node
from tasks.shared.device import place
from tasks.shared.errors import InvalidRequest, RequestError
from tasks.shared.loading import context_length, dtype_name, load_model, load_tokenizer, read_json_file

MAX_INPUTS = 64
_SPARE = 0.9  # of the time that TorchServe waits: the rest is for the step that is running when it is over


@dataclass(frozen=True)
class Prompt:
    """One text to continue: its tokens and how many may follow."""

    text: str
    ids: list[int]
    limit: int


@dataclass(frozen=True)
class Request:
    """A parsed request of one or more prompts. `single`: its answer is a list of one object, not a list of lists."""

    prompts: tuple[Prompt, ...]
    single: bool
    parameters: Parameters
    stream: bool
    details: bool
    figures: Figures


class Generation:
    """A request that runs: its prompts on their way to its answer."""

    def __init__(self, request: Request, sequences: list[Sequence]) -> None:
        self.request = request
        self.sequences = sequences

    def count(self) -> Figures:
        """The request's figures as they stand now."""
        figures, sequences = self.request.figures, self.sequences
        figures.generated_tokens = sum(sequence.generated for sequence in sequences)
        figures.began = min((row.began for row in sequences if row.began is not None), default=None)
        figures.first_token = min((row.first_token for row in sequences if row.first_token is not None), default=None)
        figures.batch = sequences[0].batch or None
        return figures

    def events(self) -> list[Event]:
        """The text that became certain since the last call, if this is a stream."""
        piece = self.sequences[0].take() if self.request.stream else ""
        return [{"token": piece}] if piece else []

    def result(self) -> Any | RequestError | None:
        """The answer, or the first error of its sequences; None while it runs."""
        for sequence in self.sequences:
            if sequence.error is not None:
                return sequence.error
        if not all(sequence.done for sequence in self.sequences):
            return None
        return _answer(self.request, self.sequences)


class TextGeneration:
    """A loaded model. `policy` decides how prompts share the model's time: it is stepped if requests join, else it runs batches."""

    example: Mapping[str, Any] = {"input": "Hello", "parameters": {"max_new_tokens": 2, "do_sample": False}}

    def __init__(self, model: Any, tokenizer: Any, defaults: Parameters, node: Node, facts: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._defaults = defaults
        self._node = node
        self._context = context_length(model.config)
        self._end_ids = _end_ids(model)
        self._device = str(model.device)
        pad_id = tokenizer.pad_token_id
        pad_id = next(iter(sorted(self._end_ids)), 0) if pad_id is None else pad_id
        chosen, why = _policy(model, node)
        self.batches = StaticBatch(model, pad_id)
        self.policy: ContinuousBatch | SteppedBatch = (
            ContinuousBatch(model, pad_id, node.batch_size)
            if chosen == "continuous"
            else SteppedBatch(self.batches, node.batch_size)
        )
        self.facts = dict(facts) | {"policy": chosen, "policy_reason": why}

    def parse(self, body: dict[str, Any]) -> Request:
        """A request whose prompts fit the model, or InvalidRequest."""
        messages = read_messages(body)
        if messages is not None:
            others = {name: value for name, value in body.items() if name != "messages"}
            body = others | {"input": prompt_of(self._tokenizer, messages)}
        read = read_body(body, MAX_INPUTS)
        if read.stream and not read.single:
            raise InvalidRequest("stream", "required a single string as input for a stream, found a list")
        parameters = self._defaults.updated(read.parameters)
        if messages is not None:
            parameters = self._for_chat(parameters, read.parameters)
        special = messages is None or not has_template(self._tokenizer)  # a template writes them itself
        prompts = tuple(self._prompt(text, parameters, read.parameters, special) for text in read.inputs)
        figures = Figures(prompt_tokens=sum(len(prompt.ids) for prompt in prompts))
        return Request(prompts, read.single, parameters, read.stream, read.details, figures)

    def run(self, requests: list[Request], emit: Emit) -> list[Any | RequestError]:
        """One answer or error a request. Pieces of those that stream are emitted as soon as they exist."""
        running = [Generation(request, self._sequences(request)) for request in requests]

        def after_step() -> None:
            events: dict[int, Event] = {}
            for index, each in enumerate(running):
                for event in each.events():
                    each.count()
                    events[index] = event
            if events:
                emit(events)

        self.batches.run([sequence for each in running for sequence in each.sequences], after_step)
        for each in running:
            each.count()
        return [each.result() for each in running]

    def join(self, request: Request) -> Generation:
        """The request takes part from the next step on."""
        generation = Generation(request, self._sequences(request))
        self.policy.join(generation.sequences)
        return generation

    def leave(self, generation: Generation) -> None:
        """Nobody waits for it any more."""
        self.policy.leave(generation.sequences)

    def step(self) -> None:
        """A token for each sequence that runs; DeviceLost if the process cannot use its device any more."""
        self.policy.step()

    def _for_chat(self, parameters: Parameters, asked: Any) -> Parameters:
        """What is different for a conversation: the answer comes without it, and may be as long as there is room."""
        if not asked.given("return_full_text"):
            parameters = replace(parameters, return_full_text=False)
        if not asked.given("max_length") and parameters.max_new_tokens is None:
            parameters = replace(parameters, max_new_tokens=self._node.max_new_tokens)
        if not has_template(self._tokenizer):
            parameters = replace(parameters, stop=(*parameters.stop, PLAIN_STOP))
        return parameters

    def _prompt(self, text: str, parameters: Parameters, asked: Any, special: bool) -> Prompt:
        ids: list[int] = self._tokenizer(text, add_special_tokens=special)["input_ids"]
        if not ids:
            raise InvalidRequest("input", "required a text of at least one token, found none")
        most = min(self._node.max_input_tokens, self._context - 1 if self._context else self._node.max_input_tokens)
        if len(ids) > most:
            raise InvalidRequest("input", f"required at most {most} tokens, found {len(ids)}", "input_too_long")
        return Prompt(text, ids, self._limit(len(ids), parameters, asked))

    def _limit(self, length: int, parameters: Parameters, asked: Any) -> int:
        """How many tokens may follow a prompt of `length`. What the request asks for is refused if it cannot be had; what are
        only defaults is cut to what can."""
        room = self._node.max_new_tokens
        if self._context:
            room = min(room, self._context - length)
        if parameters.max_new_tokens is not None:
            name, wanted, most = "max_new_tokens", parameters.max_new_tokens, room
        else:
            name, wanted, most = "max_length", parameters.max_length - length, room + length
        if wanted < 1:
            raise InvalidRequest(
                "parameters.max_length",
                f"required more than the {length} tokens of the input, found {parameters.max_length}; "
                "set max_length higher, or max_new_tokens",
                "invalid_parameter",
            )
        if wanted > room and asked.given(name):
            message = f"required at most {most} for an input of {length} tokens, found {asked.value(name)}"
            raise InvalidRequest(f"parameters.{name}", message, "invalid_parameter")
        return min(wanted, room)

    def _sequences(self, request: Request) -> list[Sequence]:
        """One a prompt. With a seed the n-th prompt of a list draws with seed + n, so that equal prompts differ."""
        seed = None if request.parameters.greedy else request.parameters.seed
        deadline = None if self._node.seconds is None else time.monotonic() + self._node.seconds * _SPARE
        return [
            Sequence(
                prompt=prompt.ids,
                limit=prompt.limit,
                parameters=request.parameters,
                tokenizer=self._tokenizer,
                end_ids=self._end_ids,
                device=self._device,
                seed=None if seed is None else (seed + number) % (1 << 63),
                deadline=deadline,
            )
            for number, prompt in enumerate(request.prompts)
        ]


def prepare(folder: Path, settings: Mapping[str, Any], node: Node) -> Any:
    """The tokenizer: half of a load's time, and it needs no weights."""
    return load_tokenizer(folder, _remote(settings, node))


def load(folder: Path, settings: Mapping[str, Any], node: Node, tokenizer: Any = None) -> TextGeneration:
    """Load the model in `folder`; ValueError if the folder or the release's settings cannot be served."""
    defaults = release_defaults(
        read_json_file(folder / "generation_config.json") or {}, settings.get("generation") or {}
    )
    placement = place(node)
    model = load_model(folder, placement, _remote(settings, node), suffix="ForCausalLM", auto="AutoModelForCausalLM")
    if tokenizer is None:
        tokenizer = prepare(folder, settings, node)
    if settings.get("chat_template"):
        tokenizer.chat_template = settings["chat_template"]
    facts = {
        "device": str(model.device),
        "dtype": dtype_name(model),
        "dtype_reason": placement.reason,
        "architecture": type(model).__name__,
    }
    return TextGeneration(model, tokenizer, defaults, node, facts)


def _remote(settings: Mapping[str, Any], node: Node) -> bool:
    return bool(settings.get("trust_remote_code")) and node.allow_remote_code


def _end_ids(model: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = getattr(model.config, "eos_token_id", None)
    return frozenset([] if ends is None else [ends] if isinstance(ends, int) else ends)


def _policy(model: Any, node: Node) -> tuple[str, str]:
    """`continuous` or `static`, and why."""
    if node.continuous:
        reason = unsupported(model)
        if reason is not None:
            return "static", f"this model cannot join and leave a running batch: {reason}"
        return "continuous", "requests join and leave the running batch token by token"
    if node.batching == "static":
        return "static", "set for this node"
    if node.workers > 1:
        return (
            "static",
            f"{node.workers} workers: continuous batching has one, so that all requests can share its batch",
        )
    return "static", "the archive does not ask for continuous batching"


def _answer(request: Request, sequences: list[Sequence]) -> Any:
    answers = [
        _generated(request, prompt, sequence) for prompt, sequence in zip(request.prompts, sequences, strict=True)
    ]
    if not request.stream:
        return answers if request.single else [[answer] for answer in answers]
    counts = {"prompt_tokens": len(request.prompts[0].ids), "generated_tokens": sequences[0].generated}
    return answers[0] | {"finish_reason": sequences[0].finish_reason} | counts


def _generated(request: Request, prompt: Prompt, sequence: Sequence) -> dict[str, Any]:
    full = prompt.text + sequence.text if request.parameters.return_full_text else sequence.text
    answer: dict[str, Any] = {"generated_text": full}
    if request.details:
        answer |= {
            "finish_reason": sequence.finish_reason,
            "prompt_tokens": len(prompt.ids),
            "generated_tokens": sequence.generated,
        }
    return answer
