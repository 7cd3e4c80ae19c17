"""Every task through the door of a real agent, and the one that the README shows how to add."""

import itertools
import json
import math
import shutil
from collections.abc import Iterator

import pytest

from tests.agent_process import AgentProcess, running_agent
from tests.readme import python_program
from tests.releases import publish
from tests.services import ROOT, running_minio
from tests.tiny_models import make_classifier

ADDED = python_program("Adding a task")


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """An agent whose handler folder has one file more."""
    folder = tmp_path_factory.mktemp("tasks")
    handler = folder / "handler"
    shutil.copytree(ROOT / "handler", handler, ignore=shutil.ignore_patterns("__pycache__"))
    (handler / "tasks" / "word_count.py").write_text(ADDED.line)
    counter = folder / "counter"
    counter.mkdir()
    (counter / "config.json").write_text('{"separator": "-"}')
    with running_minio(folder / "minio") as minio:
        minio.clean()
        golden = {"query": "a", "texts": ["a", "the falcon"], "parameters": {"raw_scores": False}}
        publish(minio, "judge", make_classifier(folder / "judge", ("bad", "fair", "good")), task="text-classification")
        publish(minio, "ranker", make_classifier(folder / "ranker", ("score",)), task="reranking")
        publish(
            minio, "golden", folder / "ranker", task="reranking", golden=golden | {"output": [{"index": 7, "score": 1}]}
        )
        publish(minio, "counter", counter, task="word-count", golden={"input": "a-b"})
        with running_agent(folder, minio, HANDLER_DIR=str(handler)) as process:
            for model in ("judge", "ranker", "counter"):
                process.wait_serving(model, "v1")
            process.wait_refused("golden", "v1")
            yield process


def ask(agent: AgentProcess, model: str, body: object) -> object:
    answer = agent.call("POST", f"/predictions/{model}", body)
    assert answer.status == 200, answer.raw
    return answer.json


def test_a_classifier_answers_with_its_labels(agent: AgentProcess) -> None:
    labels = ask(agent, "judge", {"input": "The falcon"})
    assert isinstance(labels, list)
    assert {one["label"] for one in labels} == {"bad", "fair", "good"}
    assert math.isclose(sum(one["score"] for one in labels), 1)
    assert all(one["score"] >= other["score"] for one, other in itertools.pairwise(labels))
    assert ask(agent, "judge", {"input": ["The falcon"], "parameters": {"top_k": 1}}) == [labels[:1]]


def test_a_reranker_answers_with_an_order(agent: AgentProcess) -> None:
    ranked = ask(agent, "ranker", {"query": "The falcon", "texts": ["a bird", "a bucket", "a release of weights"]})
    assert isinstance(ranked, list)
    assert sorted(one["index"] for one in ranked) == [0, 1, 2]
    assert all(1 >= one["score"] >= other["score"] >= 0 for one, other in itertools.pairwise(ranked))


def test_a_refusal_names_the_field_of_its_task(agent: AgentProcess) -> None:
    for model, body, field in (
        ("ranker", {"query": "a", "texts": "b"}, "texts"),
        ("judge", {"query": "a", "texts": ["b"]}, "query"),
        ("judge", {"input": "a", "stream": True}, "stream"),
    ):
        answer = agent.call("POST", f"/predictions/{model}", body)
        assert answer.status == 400
        assert answer.json["error"]["field"] == field


def test_what_they_were_asked_is_counted_in_tokens(agent: AgentProcess) -> None:
    ask(agent, "ranker", {"query": "a", "texts": ["a"]})
    assert 'weightless_prompt_tokens_sum{model="ranker",release="v1"}' in agent.call("GET", "/metrics").raw.decode()


def test_an_answer_that_is_not_the_golden_one_is_refused(agent: AgentProcess) -> None:
    assert "required the golden scores" in agent.model("golden")["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "shown"), [ADDED.output[start : start + 2] for start in range(0, len(ADDED.output), 2)]
)
def test_the_readmes_task_answers_as_shown(agent: AgentProcess, asked: str, shown: str) -> None:
    assert json.dumps(ask(agent, "counter", json.loads(asked))) == shown


def test_a_golden_request_without_its_answer_serves_and_the_log_says_that_nothing_was_compared(
    agent: AgentProcess,
) -> None:
    """Publishing refuses one now; a release of before must go on serving."""
    assert agent.model("counter")["serving"] == "v1"
    said = [line for line in agent.log.splitlines() if "no output to compare" in line]
    assert len(said) == 1
    assert "release v1 of counter" in said[0]
    assert "publish it anew with `make seed MODEL=counter`" in said[0]
