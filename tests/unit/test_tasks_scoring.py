"""Text classification and reranking with a tiny BERT: transformers' own numbers, in any batch."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seeding.folder import local_folder
from seeding.task import infer_task
from tasks import load_task
from tasks.shared.contract import Node
from tasks.shared.errors import InvalidRequest, RequestError
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from tests.tiny_models import make_classifier

TEXT = "the falcon is a bird that hunts from above while a release names every byte"
WORDS = TEXT.split()
ONE, THREE = ("score",), ("bad", "fair", "good")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tmp_path_factory.mktemp("classifier"), THREE)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_classifier(tmp_path_factory.mktemp("reranker"), ONE)


def load(task: str, folder: Path, **node: Any) -> Any:
    return load_task(task, folder, {"task": task}, Node(**node))


def ask(task: Any, *bodies: dict[str, Any]) -> list[Any]:
    return list(task.run([task.parse(body) for body in bodies], lambda events: None))


def texts(*lengths: int) -> list[str]:
    rng = random.Random(3)
    return [" ".join(rng.choices(WORDS, k=length)) for length in lengths]


def near(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> bool:
    """The same but for the score, which may differ by rounding."""
    same = [{**one, "score": 0} for one in found] == [{**one, "score": 0} for one in wanted]
    return same and all(abs(a["score"] - b["score"]) < 1e-5 for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("function", [None, "sigmoid", "softmax", "none"])
def test_labels_and_scores_are_those_of_transformers_pipeline(classifier: Path, function: str | None) -> None:
    task, given_ = load("text-classification", classifier), texts(1, 40, 3, 12, 7)
    wanted = pipeline("text-classification", str(classifier))(given_, top_k=None, function_to_apply=function)
    (found,) = ask(task, {"input": given_, "parameters": {"function_to_apply": function}})
    assert len(found) == 5
    assert all(near(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


def test_each_request_of_a_batch_is_answered_in_its_own_form(classifier: Path) -> None:
    task, given_ = load("text-classification", classifier), texts(2, 30, 5)
    one, several, best = ask(
        task, {"input": given_[0]}, {"input": given_[1:]}, {"input": given_[0], "parameters": {"top_k": 1}}
    )
    assert {label["label"] for label in one} == set(THREE)
    assert [len(labels) for labels in several] == [3, 3]
    assert near(best, one[:1])
    assert near(ask(task, {"input": given_[2]})[0], several[1])


def test_a_reranker_scores_each_text_with_the_query_the_best_first(reranker: Path) -> None:
    task, (query, *given_) = load("reranking", reranker), texts(4, 1, 25, 6, 50)
    model = AutoModelForSequenceClassification.from_pretrained(reranker).eval()
    tokenizer = AutoTokenizer.from_pretrained(reranker)
    with torch.no_grad():
        logits = [model(**tokenizer(query, text, return_tensors="pt")).logits.item() for text in given_]
    scores = torch.sigmoid(torch.tensor(logits)).tolist()
    order = sorted(range(4), key=lambda index: -scores[index])
    body = {"query": query, "texts": given_}
    plain, raw, full = ask(
        task, body, body | {"parameters": {"raw_scores": True}}, body | {"parameters": {"return_text": True}}
    )
    assert near(plain, [{"index": index, "score": scores[index]} for index in order])
    assert near(raw, [{"index": index, "score": logits[index]} for index in order])
    assert [one["text"] for one in full] == [given_[index] for index in order]


def test_which_text_is_the_query_matters(reranker: Path) -> None:
    """Else the two halves of a pair were told apart neither by their order nor by their types."""
    a, b = texts(5, 9)
    found = ask(load("reranking", reranker), {"query": a, "texts": [b]}, {"query": b, "texts": [a]})
    assert abs(found[0][0]["score"] - found[1][0]["score"]) > 1e-4


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": "a", "stream": True}, "stream"),
        ({"input": "a", "parameters": {"top_k": 0}}, "parameters.top_k"),
        ({"input": "a", "parameters": {"function_to_apply": "tanh"}}, "parameters.function_to_apply"),
        ({"input": "a", "parameters": {"temperature": 1}}, "parameters.temperature"),
        ({"input": "a " * 200}, "input"),
        ({"input": ["a"] * 2049}, "input"),
    ],
)
def test_what_classification_cannot_do_is_refused_by_field(classifier: Path, body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        load("text-classification", classifier).parse(body)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"texts": ["a"]}, "query"),
        ({"query": 5, "texts": ["a"]}, "query"),
        ({"query": "a"}, "texts"),
        ({"query": "a", "texts": []}, "texts"),
        ({"query": "a", "texts": ["b", None]}, "texts[1]"),
        ({"query": "a", "texts": ["a " * 200]}, "texts"),
        ({"query": "a" * (1 << 19), "texts": ["b", "b", "b"]}, "texts"),
        ({"query": "a", "texts": ["b"], "top_n": 1}, "top_n"),
        ({"query": "a", "texts": ["b"], "parameters": {"top_k": 1}}, "parameters.top_k"),
    ],
)
def test_what_reranking_cannot_do_is_refused_by_field(reranker: Path, body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        load("reranking", reranker).parse(body)
    assert refused.value.field == field


def test_a_long_text_is_cut_only_where_that_was_asked_for(classifier: Path, reranker: Path) -> None:
    long, more = "a " * 200, {"parameters": {"truncation": True}}
    assert len(ask(load("text-classification", classifier), {"input": long} | more)[0]) == 3
    assert len(ask(load("reranking", reranker), {"query": "b", "texts": [long]} | more)[0]) == 1


def test_a_classifier_of_several_labels_is_no_reranker(classifier: Path) -> None:
    with pytest.raises(ValueError, match=r"one label for reranking, found 3; its task is text-classification"):
        load("reranking", classifier)


def test_seeding_tells_the_two_apart(classifier: Path, reranker: Path) -> None:
    assert infer_task(local_folder(classifier)) == "text-classification"
    assert infer_task(local_folder(reranker)) == "reranking"


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None)
@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("input", "query", "texts", "parameters", "stream"), anything)))
def test_any_body_is_a_request_or_a_refusal(classifier: Path, reranker: Path, body: dict[str, Any]) -> None:
    for task in (_kept("text-classification", classifier), _kept("reranking", reranker)):
        try:
            assert not isinstance(ask(task, body)[0], RequestError)
        except InvalidRequest as error:
            assert error.code == 400


_loaded: dict[str, Any] = {}


def _kept(task: str, folder: Path) -> Any:
    if task not in _loaded:
        _loaded[task] = load(task, folder)
    return _loaded[task]
