"""The task `text-classification`: how likely each of a model's labels is for a text, as transformers' pipeline answers.

`{"input": "I like it"}` → `[{"label": "POSITIVE", "score": 0.99}, {"label": "NEGATIVE", "score": 0.01}]`, for a list a list of
those. `parameters`: `top_k`, how many labels (all of them if absent); `function_to_apply`, `sigmoid`, `softmax` or `none` (what the
model's config asks for if absent); `truncation`, whether a text that is too long is cut or refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from tasks.scoring.classifier import Classifier, Encoded, load_classifier
from tasks.shared.body import read_body
from tasks.shared.contract import Emit, Node
from tasks.shared.errors import InvalidRequest, RequestError

MAX_INPUTS = 2048
_FUNCTIONS = ("sigmoid", "softmax", "none")


@dataclass(frozen=True)
class Request:
    """A parsed request. `single`: its answer is one text's labels and not a list of them."""

    texts: tuple[Encoded, ...]
    single: bool
    top_k: int | None
    function: str
    prompt_tokens: int
    stream: bool = False


class TextClassification:
    """A loaded classifier."""

    example: Mapping[str, Any] = {"input": "Hello"}

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self.facts = classifier.facts

    def parse(self, body: dict[str, Any]) -> Request:
        """A request, tokenized; InvalidRequest if the body is wrong."""
        read = read_body(body, MAX_INPUTS)
        if read.stream:
            raise InvalidRequest("stream", "required false for text-classification, found true")
        fields = read.parameters
        fields.only(("top_k", "function_to_apply", "truncation"))
        function = fields.value("function_to_apply")
        if function is not None and function not in _FUNCTIONS:
            fields.refuse("function_to_apply", " or ".join(_FUNCTIONS))
        texts = self._classifier.encode(read.inputs, None, fields.boolean("truncation", False), "input")
        return Request(
            texts,
            read.single,
            fields.integer("top_k", None, 1, 1 << 20),
            str(function or _function_of(self._classifier.config)),
            sum(len(text["input_ids"]) for text in texts),
        )

    def run(self, requests: list[Request], emit: Emit) -> list[Any | RequestError]:
        """One answer or error a request; their texts share forward passes."""
        logits = iter(self._classifier.logits([text for request in requests for text in request.texts]))
        return [self._answer(request, [next(logits) for _ in request.texts]) for request in requests]

    def _answer(self, request: Request, logits: list[numpy.ndarray | RequestError]) -> Any | RequestError:
        answers = []
        for row in logits:
            if isinstance(row, RequestError):
                return row
            scores = zip(self._classifier.labels, _applied(request.function, row).tolist(), strict=True)
            ranked = sorted(scores, key=lambda pair: pair[1], reverse=True)
            answers.append([{"label": label, "score": score} for label, score in ranked[: request.top_k]])
        return answers[0] if request.single else answers


def load(folder: Path, settings: Mapping[str, Any], node: Node) -> TextClassification:
    """Load the classifier in `folder`; ValueError if it cannot be served."""
    return TextClassification(load_classifier(folder, settings, node))


def _function_of(config: Any) -> str:
    """What transformers' pipeline applies to this model's logits."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def _applied(function: str, logits: numpy.ndarray) -> numpy.ndarray:
    if function == "none":
        return logits
    if function == "sigmoid":
        return sigmoid(logits)
    powers = numpy.exp(logits - logits.max())
    scores: numpy.ndarray = powers / powers.sum()
    return scores


def sigmoid(logits: numpy.ndarray) -> numpy.ndarray:
    """Without overflow for logits of any size."""
    scores: numpy.ndarray = numpy.exp(-numpy.logaddexp(0.0, -logits))
    return scores
