"""Text generation on real small models: the same answer alone and in any company, by each request's own parameters."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tasks import load_task
from tasks.shared.contract import Event, Node
from tasks.shared.errors import InvalidRequest, RequestError
from tasks.text_generation import TextGeneration
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from tests.tiny_models import make_causal

KINDS = ("falcon", "falcon-alibi", "llama")
TEXT = "The weights of this model live in a bucket and its archive carries none of them"
WORDS = TEXT.split()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: make_causal(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


@pytest.fixture(scope="module", params=["static", "continuous"])
def tasks(request: pytest.FixtureRequest, folders: dict[str, Path]) -> dict[str, Any]:
    """Every test of an answer is one of both policies: they share all but the scheduling."""
    node = Node(continuous=request.param == "continuous", batch_size=16)
    loaded = {
        kind: load_task("text-generation", folder, {"task": "text-generation"}, node)
        for kind, folder in folders.items()
    }
    assert {task.facts["policy"] for task in loaded.values()} == {request.param}
    return loaded


@pytest.fixture
def falcon(tasks: dict[str, Any]) -> TextGeneration:
    found: TextGeneration = tasks["falcon"]
    return found


def ask(task: Any, *bodies: dict[str, Any], events: list[Mapping[int, Event]] | None = None) -> list[Any]:
    """The answers of one batch."""
    taken = events if events is not None else []
    requests = [task.parse(body) for body in bodies]
    if task.facts["policy"] == "static":
        answers = task.run(requests, taken.append)
        assert len(answers) == len(bodies)
        return list(answers)
    running = [task.join(request) for request in requests]
    while any(each.result() is None for each in running):
        task.step()
        for index, each in enumerate(running):
            taken.extend({index: event} for event in each.events())
    return [each.result() for each in running]


def greedy(text: Any, **parameters: Any) -> dict[str, Any]:
    return {"input": text, "parameters": {"do_sample": False} | parameters}


def text_of(answer: Any) -> str:
    text: str = answer[0]["generated_text"]
    return text


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_are_those_of_transformers_own_pipeline(
    kind: str, folders: dict[str, Path], tasks: dict[str, Any]
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders[kind])
    reference = pipeline(
        "text-generation", model=AutoModelForCausalLM.from_pretrained(folders[kind]), tokenizer=tokenizer
    )
    texts = ["The weights", "A release names every file", "x"]
    options = {"do_sample": False, "max_new_tokens": 12, "max_length": None}
    assert ask(tasks[kind], greedy(texts, max_new_tokens=12)) == [reference(texts, **options)]
    single = ask(tasks[kind], greedy(texts[0], max_new_tokens=12, return_full_text=False))
    assert single == [reference(texts[0], return_full_text=False, **options)]


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_answers_do_not_depend_on_the_batch(kind: str, tasks: dict[str, Any]) -> None:
    """Left padding, masks and positions: 40 prompts of mixed lengths and limits, alone and in random batches of up to 16."""
    rng = random.Random(5)
    bodies = [
        greedy(" ".join(rng.choices(WORDS, k=rng.randint(1, 20))), max_new_tokens=rng.randint(1, 20)) for _ in range(40)
    ]
    alone = [ask(tasks[kind], body)[0] for body in bodies]
    order = rng.sample(range(40), 40)
    while order:
        batch, order = order[: (size := rng.randint(2, 16))], order[size:]
        together = ask(tasks[kind], *(bodies[index] for index in batch))
        assert together == [alone[index] for index in batch]
    assert len({text_of(answer) for answer in alone}) > 30, (
        "the model says the same to everything: this test proves nothing"
    )


def test_each_request_of_a_batch_has_its_own_parameters(falcon: TextGeneration) -> None:
    bodies = [
        greedy("The weights", max_new_tokens=3) | {"details": True},
        greedy("The weights", max_new_tokens=9) | {"details": True},
        {"input": "The weights", "parameters": {"seed": 1, "top_k": 50, "max_new_tokens": 9}, "details": True},
        greedy("The weights", max_new_tokens=9, repetition_penalty=3.0) | {"details": True},
    ]
    alone = [ask(falcon, body)[0] for body in bodies]
    assert ask(falcon, *bodies) == alone
    assert [answer[0]["generated_tokens"] for answer in alone] == [3, 9, 9, 9]
    assert len({text_of(answer) for answer in alone}) == 4
    assert text_of(alone[1]).startswith(text_of(alone[0]))


def test_a_seed_gives_the_same_answer_in_any_company(falcon: TextGeneration) -> None:
    seeded: dict[str, Any] = {
        "input": "A release",
        "parameters": {"seed": 42, "temperature": 1.5, "top_k": 0, "max_new_tokens": 16},
    }
    unseeded = {"input": "names", "parameters": {"max_new_tokens": 20, "temperature": 1.5, "top_k": 0}}
    alone = text_of(ask(falcon, seeded)[0])
    for _ in range(3):
        company = ask(falcon, unseeded, seeded, greedy("To roll back is", max_new_tokens=5), unseeded)
        assert text_of(company[1]) == alone
    other = {"input": "A release", "parameters": seeded["parameters"] | {"seed": 43}}
    assert text_of(ask(falcon, other)[0]) != alone
    first, second = ask(falcon, {"input": ["A release"] * 2, "parameters": seeded["parameters"]})[0]
    assert first[0]["generated_text"] == alone
    assert second != first, "equal prompts of one seeded list must not all get one answer"


def test_sampling_without_a_seed_varies(falcon: TextGeneration) -> None:
    body = {"input": "A", "parameters": {"top_k": 0, "temperature": 2.0, "max_new_tokens": 12}}
    assert len({text_of(ask(falcon, body)[0]) for _ in range(5)}) > 1


def test_defaults_are_max_length_200_top_k_10_and_sampling(folders: dict[str, Path], falcon: TextGeneration) -> None:
    parameters = falcon.parse({"input": "A"}).parameters
    assert (parameters.max_length, parameters.top_k, parameters.do_sample) == (200, 10, True)
    settings = {"generation": {"max_new_tokens": 5, "do_sample": False, "top_k": 3}}
    release = load_task("text-generation", folders["falcon"], settings, Node())
    assert isinstance(release, TextGeneration)
    request = release.parse({"input": "A", "parameters": {"top_k": 7}})
    assert (request.parameters.do_sample, request.parameters.top_k, request.prompts[0].limit) == (False, 7, 5)
    length = release.parse({"input": "The weights", "parameters": {"max_length": 9}}).prompts[0]
    assert length.limit == 9 - len(length.ids), "a request's max_length must win over the release's max_new_tokens"


def test_a_release_with_wrong_settings_does_not_load(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"settings\.generation\.top_k: required an integer .* found 'many'"):
        load_task("text-generation", folders["falcon"], {"generation": {"top_k": "many"}}, Node())


def test_details_say_why_it_ended_and_how_many_tokens(falcon: TextGeneration) -> None:
    [answer] = ask(falcon, greedy("The weights", max_new_tokens=4) | {"details": True})
    tokenizer_length = len(falcon.parse({"input": "The weights"}).prompts[0].ids)
    assert {key: answer[0][key] for key in ("finish_reason", "prompt_tokens", "generated_tokens")} == {
        "finish_reason": "length",
        "prompt_tokens": tokenizer_length,
        "generated_tokens": 4,
    }


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(falcon: TextGeneration) -> None:
    whole = text_of(ask(falcon, greedy("The weights", max_new_tokens=20, return_full_text=False))[0])
    stop = whole[5:8]
    cut = greedy("The weights", max_new_tokens=20, return_full_text=False, stop=["never said", stop]) | {
        "details": True
    }
    other = greedy("A release", max_new_tokens=20)
    [answer] = ask(falcon, cut)
    assert text_of(answer) == whole[: whole.index(stop)]
    assert answer[0]["finish_reason"] == "stop"
    assert ask(falcon, other, cut)[1] == answer


def test_streams_of_one_batch_get_their_own_pieces_from_the_first_token_on(falcon: TextGeneration) -> None:
    bodies = [
        greedy("The weights", max_new_tokens=12) | {"stream": True},
        greedy("A release names", max_new_tokens=6),
        greedy("To roll back", max_new_tokens=4, return_full_text=False) | {"stream": True, "details": True},
    ]
    plain = [ask(falcon, {**body, "stream": False})[0] for body in bodies]
    events: list[Mapping[int, Event]] = []
    answers = ask(falcon, *bodies, events=events)
    assert answers[1] == plain[1]
    for index in (0, 2):
        pieces = "".join(event[index]["token"] for event in events if index in event)
        full = text_of(plain[index])
        assert full.endswith(pieces) and pieces
        assert answers[index]["generated_text"] == full
        assert answers[index]["finish_reason"] == "length"
    assert answers[2]["generated_tokens"] == 4
    assert not any(1 in event for event in events)
    assert len(events) > 8, "the pieces must come as the tokens do, not together at the end"


def test_a_stream_holds_back_what_may_become_a_stop_string(falcon: TextGeneration) -> None:
    whole = text_of(ask(falcon, greedy("The weights", max_new_tokens=20, return_full_text=False))[0])
    stop = whole[6:12]
    events: list[Mapping[int, Event]] = []
    body = greedy("The weights", max_new_tokens=20, return_full_text=False, stop=stop) | {"stream": True}
    [answer] = ask(falcon, body, events=events)
    pieces = "".join(event[0]["token"] for event in events)
    assert pieces == answer["generated_text"] == whole[: whole.index(stop)]


def test_text_that_cannot_fit_is_refused_and_names_the_field(falcon: TextGeneration) -> None:
    long = "bucket " * 200
    with pytest.raises(InvalidRequest, match="required at most 127 tokens") as refused:
        falcon.parse({"input": long})
    assert refused.value.field == "input"
    with pytest.raises(InvalidRequest, match=r"required at most 12\d for an input of") as refused:
        falcon.parse({"input": "The weights", "parameters": {"max_new_tokens": 500}})
    assert refused.value.field == "parameters.max_new_tokens"
    with pytest.raises(InvalidRequest, match="required more than the") as refused:
        falcon.parse({"input": "The weights of this model", "parameters": {"max_length": 2}})
    assert refused.value.field == "parameters.max_length"
    assert falcon.parse({"input": "The weights"}).prompts[0].limit < 127, "a default is cut to what fits"


def test_the_nodes_limits_hold(folders: dict[str, Path]) -> None:
    task = load_task("text-generation", folders["llama"], {}, Node(max_input_tokens=5, max_new_tokens=3))
    with pytest.raises(InvalidRequest, match="required at most 5 tokens"):
        task.parse({"input": "The weights of this model live in a bucket"})
    with pytest.raises(InvalidRequest, match="required at most 3"):
        task.parse({"input": "A", "parameters": {"max_new_tokens": 4}})
    assert task.parse({"input": "A"}).prompts[0].limit == 3


def test_an_answer_that_takes_too_long_is_an_error_of_its_own(folders: dict[str, Path]) -> None:
    task = load_task("text-generation", folders["llama"], {}, Node(seconds=1e-9))
    late, quick = ask(task, greedy("The weights", max_new_tokens=50), greedy("The weights", max_new_tokens=1))
    assert isinstance(late, RequestError)
    assert (late.code, late.kind) == (504, "timeout")
    assert text_of(quick)


class Failing(torch.nn.Module):
    """A fake of a model that fails: on batches above a size, or whenever a token is among its input."""

    def __init__(self, inner: Any, error: Exception, most: int = 10**9, poison: int = -1) -> None:
        super().__init__()
        self.inner, self.error, self.most, self.poison = inner, error, most, poison

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def generate(self, ids: torch.Tensor, **options: Any) -> Any:
        self._check(ids)
        return self.inner.generate(ids, **options)

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        self._check(input_ids)
        return self.inner(input_ids=input_ids, **options)

    def _check(self, ids: torch.Tensor) -> None:
        if len(ids) > self.most or bool((ids == self.poison).any()):
            raise self.error


def broken(task: TextGeneration, monkeypatch: pytest.MonkeyPatch, error: Exception, **when: int) -> Failing:
    """Have the task's policy work with a model that fails."""
    policy: Any = task.batches if task.facts["policy"] == "static" else task.policy
    failing = Failing(policy._model, error, **when)
    monkeypatch.setattr(policy, "_model", failing)
    return failing


def test_a_batch_that_does_not_fit_into_memory_is_done_in_parts(
    falcon: TextGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [greedy(text, max_new_tokens=6) for text in ("The", "weights of", "A", "release", "To roll back is")]
    alone = [ask(falcon, body)[0] for body in bodies]
    failing = broken(falcon, monkeypatch, torch.OutOfMemoryError("CUDA out of memory"), most=2)
    assert ask(falcon, *bodies) == alone
    failing.most = 0
    assert [answer.kind for answer in ask(falcon, *bodies)] == ["out_of_memory"] * 5


def test_one_request_that_breaks_the_model_takes_no_other_with_it(
    falcon: TextGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [greedy(text, max_new_tokens=6) for text in ("weights of", "A ~ B", "release")]
    alone = [ask(falcon, body)[0] for body in bodies]
    [poison] = set(falcon.parse({"input": "~"}).prompts[0].ids)
    broken(falcon, monkeypatch, RuntimeError("broken"), poison=poison)
    answers = ask(falcon, *bodies)
    assert [answers[0], answers[2]] == [alone[0], alone[2]]
    assert (answers[1].code, answers[1].kind) == (500, "internal_error")
    assert "broken" not in answers[1].message
