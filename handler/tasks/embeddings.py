"""The task `embeddings`: one vector a text, pooled and normalised as the model's own folder says."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from tasks.embedding.pooling import Recipe, pool, read_recipe
from tasks.shared.batches import by_length
from tasks.shared.body import read_body
from tasks.shared.contract import Emit, Node
from tasks.shared.device import place
from tasks.shared.errors import InvalidRequest, RequestError
from tasks.shared.isolation import isolated
from tasks.shared.loading import context_length, dtype_name, load_model, load_tokenizer

MAX_INPUTS = 2048
_DECIMALS = 9  # in answers: float32 has no more to say of a unit vector, and JSON is half as long


@dataclass(frozen=True)
class Request:
    """A parsed request: the tokens of each text. `single`: the answer is one object and not a list.

    `packed`: a vector is its float32 in little-endian bytes as base64, 5.3 characters a number where a list takes 13.
    """

    ids: tuple[list[int], ...]
    single: bool
    details: bool
    packed: bool
    stream: bool = False

    @property
    def prompt_tokens(self) -> int:
        return sum(map(len, self.ids))


class Embeddings:
    """A loaded encoder."""

    example: Mapping[str, Any] = {"input": "Hello"}

    def __init__(self, model: Any, tokenizer: Any, recipe: Recipe, node: Node, facts: Mapping[str, Any]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._recipe = recipe
        limits = (recipe.max_tokens, tokenizer.model_max_length, context_length(model.config), node.max_input_tokens)
        self._max_tokens = int(min(limit for limit in limits if limit is not None))
        self._pad_id = tokenizer.pad_token_id or 0
        self.facts = dict(facts) | {"max_tokens": self._max_tokens, "pooling": "+".join(recipe.modes)}

    def parse(self, body: dict[str, Any]) -> Request:
        """A request, tokenized; InvalidRequest if the body is wrong. Texts longer than the model's own limit are cut."""
        read = read_body(body, MAX_INPUTS)
        read.parameters.only(("encoding_format",))
        encoding = read.parameters.value("encoding_format")
        if encoding not in (None, "float", "base64"):
            read.parameters.refuse("encoding_format", "float or base64")
        if read.stream:
            raise InvalidRequest("stream", "required false for embeddings, found true")
        return Request(self._tokenize(read.inputs), read.single, read.details, encoding == "base64")

    def run(self, requests: list[Request], emit: Emit) -> list[Any | RequestError]:
        """One answer or error a request; their texts share forward passes, sorted by length."""
        texts = [ids for request in requests for ids in request.ids]
        vectors = self._embed(texts)
        answers: list[Any | RequestError] = []
        start = 0
        for request in requests:
            own = vectors[start : start + len(request.ids)]
            start += len(request.ids)
            answers.append(_answer(request, own))
        return answers

    def _tokenize(self, texts: Sequence[str]) -> tuple[list[int], ...]:
        if self._recipe.lower_case:
            texts = [text.lower() for text in texts]
        texts = [self._recipe.prompt + text for text in texts]
        ids = self._tokenizer(texts, truncation=True, max_length=self._max_tokens)["input_ids"]
        if not all(ids):
            raise InvalidRequest("input", "required texts of at least one token, found one of none")
        return tuple(ids)

    def _embed(self, texts: list[list[int]]) -> list[numpy.ndarray | RequestError]:
        """A vector for each text, or the error that it alone met."""
        found: dict[int, numpy.ndarray | RequestError] = {}

        def embed(indices: Sequence[int]) -> None:
            found.update(zip(indices, self._forward([texts[index] for index in indices]), strict=True))

        for indices in by_length([len(text) for text in texts]):
            isolated(indices, embed, found.__setitem__)
        return [found[index] for index in range(len(texts))]

    @torch.inference_mode()
    def _forward(self, texts: list[list[int]]) -> numpy.ndarray:
        """Vectors [texts, width], float32."""
        width = max(map(len, texts))
        ids = torch.full((len(texts), width), self._pad_id)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
            mask[row, : len(text)] = 1
        ids, mask = ids.to(self._model.device), mask.to(self._model.device)
        hidden = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        vectors: numpy.ndarray = pool(hidden, mask.to(hidden.device), self._recipe).cpu().numpy()
        if not numpy.isfinite(vectors).all():
            raise FloatingPointError("the model's vectors are not finite numbers")
        return vectors


def load(folder: Path, settings: Mapping[str, Any], node: Node) -> Embeddings:
    """Load the encoder in `folder`; ValueError if the folder asks for what this task cannot do."""
    recipe = read_recipe(folder)
    folder = folder / recipe.encoder
    remote = bool(settings.get("trust_remote_code")) and node.allow_remote_code
    placement = place(
        node, on_gpu="auto"
    )  # vectors are compared with vectors made elsewhere: keep the checkpoint's dtype
    model = load_model(folder, placement, remote, suffix="Model", auto="AutoModel")
    facts = {
        "device": str(model.device),
        "dtype": dtype_name(model),
        "dtype_reason": placement.reason,
        "architecture": type(model).__name__,
    }
    return Embeddings(model, load_tokenizer(folder, remote), recipe, node, facts)


def _answer(request: Request, vectors: list[numpy.ndarray | RequestError]) -> Any | RequestError:
    answers = []
    for ids, vector in zip(request.ids, vectors, strict=True):
        if isinstance(vector, RequestError):
            return vector
        answer: dict[str, Any] = {"embedding": _packed(vector) if request.packed else _numbers(vector)}
        answers.append(answer | {"prompt_tokens": len(ids)} if request.details else answer)
    return answers[0] if request.single else answers


def _numbers(vector: numpy.ndarray) -> list[float]:
    numbers: list[float] = numpy.round(vector.astype(numpy.float64), _DECIMALS).tolist()
    return numbers


def _packed(vector: numpy.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()
