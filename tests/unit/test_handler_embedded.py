"""The baseline must be a fair one: it takes the same bodies and says the same as the slim archive's handler."""

import json
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
from tasks import load_task
from tasks.shared.contract import Node
from ts.context import Context, RequestProcessor
from ts.utils.util import list_classes_from_module

from serve.embedded import START_HEADER, embedded_handler
from serve.embedded.embedded_handler import EmbeddedHandler
from tests.tiny_models import make_causal


def baseline(folder: Path) -> tuple[EmbeddedHandler, Context]:
    context = Context("model", str(folder), {}, 1, None, "0.12", True, None, {})
    handler = EmbeddedHandler()
    handler.initialize(context)
    return handler, context


def ask(handler: EmbeddedHandler, context: Context, *bodies: dict[str, Any]) -> list[Any]:
    context.request_processor = [RequestProcessor({}) for _ in bodies]
    rows: list[dict[str, Any]] = [{"body": json.dumps(body).encode()} for body in bodies]
    return [json.loads(answer) for answer in handler.handle(rows, context)]


def test_torchserve_finds_exactly_one_class() -> None:
    assert list_classes_from_module(embedded_handler) == [EmbeddedHandler]


@pytest.mark.parametrize("kind", ["falcon", "llama"])
def test_it_generates_the_same_text(kind: str, tmp_path: Path) -> None:
    folder = make_causal(tmp_path, kind)
    task: Any = load_task("text-generation", folder, {}, Node())
    greedy = {"do_sample": False, "max_new_tokens": 9}
    bodies: list[dict[str, Any]] = [
        {"input": "The weights", "parameters": greedy},
        {"input": ["The weights of this model", "A"], "parameters": greedy},
        {"input": "A release", "parameters": greedy | {"return_full_text": False, "repetition_penalty": 2.0}},
        {"input": "To", "parameters": {"do_sample": False, "max_length": 12}},
    ]
    ours = task.run([task.parse(body) for body in bodies], lambda events: None)
    handler, context = baseline(folder)
    assert ask(handler, context, *bodies) == ours
    detailed = ask(handler, context, bodies[0] | {"details": True})[0][0]
    assert detailed == ours[0][0] | {"generated_tokens": 9}


def test_each_answer_tells_of_its_workers_start(tmp_path: Path) -> None:
    handler, context = baseline(make_causal(tmp_path, "falcon"))
    ask(handler, context, {"input": "A", "parameters": {"max_new_tokens": 1}})
    told = json.loads(context.get_response_headers(0)[START_HEADER])
    assert told["pid"] == os.getpid() and list(told["phases"]) == ["import", "load"]
    assert min(told["phases"].values()) > 0


def test_it_embeds_the_same_vectors(samples: Path) -> None:
    folder = samples / "minilm"
    task: Any = load_task("embeddings", folder, {}, Node())
    bodies: list[dict[str, Any]] = [{"input": "a cat"}, {"input": ["the cat sat on the mat", "rates"]}]
    single, several = ask(*baseline(folder), *bodies)
    ours = task.run([task.parse(body) for body in bodies], lambda events: None)
    assert numpy.allclose(single["embedding"], ours[0]["embedding"], atol=1e-6)
    assert all(
        numpy.allclose(found["embedding"], wanted["embedding"], atol=1e-6)
        for found, wanted in zip(several, ours[1], strict=True)
    )


def test_a_bad_body_fails_alone(tmp_path: Path) -> None:
    handler, context = baseline(make_causal(tmp_path, "falcon"))
    bad, good = ask(handler, context, {"wrong": 1}, {"input": "A", "parameters": {"max_new_tokens": 1}})
    assert bad["error"]["code"] == 400
    assert good[0]["generated_text"].startswith("A")
    assert context.get_response_status(0)[0] == 400
