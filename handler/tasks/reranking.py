"""The task `reranking`: how well each of several texts answers a query, by a cross-encoder, as text-embeddings-inference does it.

`{"query": "…", "texts": ["…", "…"]}` → `[{"index": 1, "score": 0.98}, {"index": 0, "score": 0.02}]`, the best first. `parameters`:
`raw_scores`, the model's own scores and not their sigmoid; `return_text`, each text with its score; `truncation`, whether a text
that is too long with its query is cut or refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from tasks.scoring.classifier import Classifier, Encoded, load_classifier
from tasks.shared.body import MAX_CHARACTERS, Fields, checked_text, read_body
from tasks.shared.contract import Emit, Node
from tasks.shared.errors import InvalidRequest, RequestError, describe
from tasks.text_classification import sigmoid

MAX_TEXTS = 1024


@dataclass(frozen=True)
class Request:
    """A parsed request: the query with each of its texts."""

    pairs: tuple[Encoded, ...]
    texts: tuple[str, ...]
    raw_scores: bool
    return_text: bool
    prompt_tokens: int
    stream: bool = False


class Reranking:
    """A loaded cross-encoder: a classifier whose one logit says how well two texts fit."""

    example: Mapping[str, Any] = {"query": "Hello", "texts": ["Hello"]}

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        self.facts = classifier.facts

    def parse(self, body: dict[str, Any]) -> Request:
        """A request, tokenized; InvalidRequest if the body is wrong."""
        Fields(body, "", ("query", "texts", "parameters"))
        query = checked_text(body.get("query"), "query")
        texts = _texts(body)
        fields = read_body({"input": query, "parameters": body.get("parameters")}, 1).parameters
        fields.only(("raw_scores", "return_text", "truncation"))
        pairs = self._classifier.encode([query] * len(texts), texts, fields.boolean("truncation", False), "texts")
        return Request(
            pairs,
            texts,
            fields.boolean("raw_scores", False),
            fields.boolean("return_text", False),
            sum(len(pair["input_ids"]) for pair in pairs),
        )

    def run(self, requests: list[Request], emit: Emit) -> list[Any | RequestError]:
        """One answer or error a request; their texts share forward passes."""
        logits = iter(self._classifier.logits([pair for request in requests for pair in request.pairs]))
        return [_answer(request, [next(logits) for _ in request.pairs]) for request in requests]


def load(folder: Path, settings: Mapping[str, Any], node: Node) -> Reranking:
    """Load the cross-encoder in `folder`; ValueError if it is none."""
    classifier = load_classifier(folder, settings, node)
    if len(classifier.labels) != 1:
        raise ValueError(
            f"config.json: required a model of one label for reranking, found {len(classifier.labels)}; "
            "its task is text-classification"
        )
    return Reranking(classifier)


def _texts(body: dict[str, Any]) -> tuple[str, ...]:
    """The texts, bounded in number and, repeated query included, in length."""
    texts = body.get("texts")
    if not isinstance(texts, list):
        raise InvalidRequest("texts", f"required a list of strings, found {describe(texts)}")
    if not 0 < len(texts) <= MAX_TEXTS:
        raise InvalidRequest("texts", f"required 1 to {MAX_TEXTS} texts, found {len(texts)}")
    checked = tuple(checked_text(text, f"texts[{index}]") for index, text in enumerate(texts))
    total = sum(map(len, checked)) + len(body["query"]) * len(checked)
    if total > MAX_CHARACTERS:
        raise InvalidRequest(
            "texts", f"required at most {MAX_CHARACTERS} characters, the query with each text, found {total}"
        )
    return checked


def _answer(request: Request, logits: list[numpy.ndarray | RequestError]) -> Any | RequestError:
    scores = []
    for row in logits:
        if isinstance(row, RequestError):
            return row
        scores.append(float(row[0] if request.raw_scores else sigmoid(row)[0]))
    ranked = sorted(range(len(scores)), key=lambda index: scores[index], reverse=True)
    answers: list[dict[str, Any]] = [{"index": index, "score": scores[index]} for index in ranked]
    if request.return_text:
        answers = [answer | {"text": request.texts[answer["index"]]} for answer in answers]
    return answers
