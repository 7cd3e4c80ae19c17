"""Continuous batching as TorchServe's frontend sees it: who is in which reply, what it says, and what ends a request."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from minio_handler import MinioModifiedHandler
from rounds import Rounds
from tasks import load_task
from tasks.shared.contract import Node
from tasks.shared.errors import DeviceLost
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.service import Service

from tests.tiny_models import make_causal
from tests.torchserve_wire import METRICS_FILE, Answer, Frame, request


class Frontend:
    """A fake of TorchServe's ContinuousBatching.java: it asks again for all that run, until their last answer."""

    def __init__(self, task: Any) -> None:
        handler = MinioModifiedHandler()
        handler.task, handler._rounds = task, Rounds(task)
        metrics = MetricsCacheYamlImpl(config_file_path=str(METRICS_FILE))
        metrics.initialize_cache()
        self.handler = handler
        self._service = Service("model", "/nowhere", None, handler.handle, None, 8, True, metrics)
        self._service.set_cl_socket(None)
        self._jobs: dict[int, tuple[bytes | None, Mapping[str, str]]] = {}
        self.heard: dict[int, list[Answer]] = {}

    def send(self, number: int, body: Mapping[str, Any] | bytes, **headers: str) -> None:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self._jobs[number] = (raw, {name.replace("_", "-"): value for name, value in headers.items()})
        self.heard[number] = []

    def hang_up(self, number: int) -> None:
        del self._jobs[number]

    def round(self) -> dict[int, Answer]:
        """One round; the answers in its reply by number of the request."""
        batch = [request(number, body, headers=headers) for number, (body, headers) in self._jobs.items()]
        [(code, answers)] = Frame(bytes(self._service.predict(batch))).frames()
        assert code == 200
        found = {int(answer.request_id.removeprefix("id-")): answer for answer in answers}
        assert len(found) == len(answers) and set(found) <= set(self._jobs)
        for number, answer in found.items():
            self.heard[number].append(answer)
            if answer.next != "true":
                del self._jobs[number]
            else:  # the worker keeps its body from now on
                self._jobs[number] = (None, self._jobs[number][1])
        return found

    def finish(self) -> None:
        for _ in range(200):
            if not self._jobs:
                return
            self.round()
        raise AssertionError(f"still running: {sorted(self._jobs)}")

    def only(self, number: int) -> Answer:
        """The one answer that a request got."""
        [answer] = self.heard[number]
        return answer


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Any:
    torch.set_num_threads(1)
    folder = make_causal(tmp_path_factory.mktemp("model"), "falcon")
    return load_task("text-generation", folder, {}, Node(continuous=True, batch_size=8))


@pytest.fixture
def frontend(task: Any) -> Frontend:
    return Frontend(task)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def body(text: Any = "The weights", tokens: int = 6, **more: Any) -> dict[str, Any]:
    return {"input": text, "parameters": {"do_sample": False, "max_new_tokens": tokens}} | more


def events(answers: list[Answer]) -> list[dict[str, Any]]:
    raw = b"".join(answer.body for answer in answers)
    assert raw.endswith(b"\n\n")
    return [json.loads(event.removeprefix(b"data: ")) for event in raw.split(b"\n\n")[:-1]]


def test_a_short_request_that_came_later_is_answered_first(frontend: Frontend) -> None:
    frontend.send(1, body(tokens=20))
    for _ in range(5):
        assert frontend.round() == {}, "a whole answer has nothing to say before its end"
    frontend.send(2, body("A", tokens=3))
    rounds = [set(frontend.round()) for _ in range(3)]
    assert rounds == [set(), set(), {2}]
    frontend.finish()
    for number, tokens in ((1, 20), (2, 3)):
        answer = frontend.only(number)
        assert (answer.status, answer.content_type, answer.next) == (200, "application/json", None)
        assert answer.headers["X-Weightless-Generated-Tokens"] == str(tokens)
        assert answer.json[0]["generated_text"]
    assert frontend.only(2).headers["X-Weightless-Batch"] == "2"


def test_errors_of_one_are_told_at_once_with_their_own_status(frontend: Frontend) -> None:
    frontend.send(1, body(tokens=4))
    frontend.send(2, b"{not json")
    frontend.send(3, body(parameters={"top_k": -5}), x_weightless_early="1")
    frontend.send(4, body(parameters={"top_k": -5}, stream=True))
    assert set(frontend.round()) == {2, 3, 4}
    for number in (2, 3, 4):
        answer = frontend.only(number)
        assert (answer.status, answer.phrase, answer.next) == (400, "Bad Request", None)
        assert answer.json["error"]["code"] == 400 and answer.content_type == "application/json"
    frontend.finish()
    assert frontend.only(1).status == 200


def test_streams_of_one_batch_get_a_piece_in_every_round_from_the_first_on(frontend: Frontend) -> None:
    frontend.send(1, body(stream=True, tokens=9))
    frontend.send(2, body(tokens=9))
    frontend.round()
    frontend.send(3, body("A release names", stream=True, tokens=4))
    assert set(frontend.round()) == {1, 3}
    frontend.finish()
    plain = frontend.only(2)
    for number, tokens in ((1, 9), (3, 4)):
        heard = frontend.heard[number]
        assert len(heard) == tokens
        assert [answer.next for answer in heard] == ["true"] * (tokens - 1) + ["false"]
        assert {answer.content_type for answer in heard} == {"text/event-stream"}
        assert float(heard[0].headers["X-Weightless-Queue-Ms"]) >= 0
        assert int(heard[0].headers["X-Weightless-Prompt-Tokens"]) > 0
        *pieces, last = events(heard)
        assert last["generated_text"].endswith("".join(piece["token"] for piece in pieces))
        assert (last["generated_tokens"], last["finish_reason"]) == (tokens, "length")
    assert events(frontend.heard[1])[-1]["generated_text"] == plain.json[0]["generated_text"]


def test_a_stream_of_one_token_is_a_whole_answer(frontend: Frontend) -> None:
    """TorchServe writes no head for an answer whose first piece is its last."""
    frontend.send(1, body(stream=True, tokens=1))
    frontend.round()
    answer = frontend.only(1)
    assert (answer.next, answer.content_type) == (None, "text/event-stream")
    assert events([answer])[-1]["generated_tokens"] == 1


def test_with_an_early_head_status_and_headers_come_with_the_body(frontend: Frontend) -> None:
    frontend.send(1, body(tokens=5))
    frontend.send(2, body(tokens=5), x_weightless_early="1", x_weightless_sent=f"{(time.time() - 1) * 1000:.1f}")
    first = frontend.round()
    assert set(first) == {2}
    assert (first[2].body, first[2].next, first[2].content_type) == (b"", "true", "application/json")
    assert first[2].headers["X-Weightless-Late"] == "1"
    frontend.finish()
    line, _, rest = b"".join(answer.body for answer in frontend.heard[2]).partition(b"\n")
    assert rest == frontend.only(1).body
    late = json.loads(line)
    assert late["status"] == 200
    assert late["headers"]["X-Weightless-Generated-Tokens"] == "5"
    assert (
        1000 <= float(late["headers"]["X-Weightless-Queue-Ms"]) <= float(late["headers"]["X-Weightless-First-Token-Ms"])
    )


def test_one_that_cannot_finish_in_time_gets_a_504_of_its_own(frontend: Frontend, monkeypatch: Any) -> None:
    for number in (1, 2, 4):
        early = {"x_weightless_early": "1"} if number == 4 else {}
        frontend.send(number, body(tokens=50, stream=number == 2), **early)
    frontend.round()
    rounds: Any = frontend.handler._rounds
    for guest in rounds._guests.values():
        guest.running.sequences[0].deadline = 0.0
    frontend.send(3, body(tokens=3))
    frontend.round()
    assert (frontend.only(1).status, frontend.only(1).json["error"]["type"]) == (504, "timeout")
    assert events(frontend.heard[2])[-1]["error"]["code"] == 504
    assert frontend.heard[2][-1].next == "false"
    line, _, rest = frontend.heard[4][-1].body.partition(b"\n")
    assert (json.loads(line)["status"], json.loads(rest)["error"]["code"]) == (504, 504)
    frontend.finish()
    assert frontend.only(3).status == 200


def test_one_whose_client_is_gone_is_out_of_the_batch_at_the_next_round(frontend: Frontend) -> None:
    frontend.send(1, body(tokens=50), x_weightless_early="1")
    frontend.send(2, body(tokens=12))
    frontend.round()
    policy = frontend.handler.task.policy  # type: ignore[attr-defined]
    gone = policy._rows[0]
    assert len(policy._rows) == 2
    frontend.hang_up(1)
    frontend.round()
    assert len(policy._rows) == 1 and gone not in policy._rows and gone.generated == 1
    frontend.finish()
    assert frontend.only(2).json[0]["generated_text"]


def test_a_list_is_answered_whole_and_its_error_is_one(frontend: Frontend) -> None:
    frontend.send(1, body(["The weights", "A"], tokens=4))
    frontend.send(2, body("A", tokens=4))
    frontend.finish()
    assert frontend.only(1).json[1] == frontend.only(2).json


class Broken:
    """A fake of a task whose step raises what no step should."""

    def __init__(self, inner: Any, error: BaseException) -> None:
        self.inner, self.error = inner, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def step(self) -> None:
        raise self.error


def test_a_bug_in_a_step_is_an_error_for_all_that_run_and_no_lost_worker(task: Any) -> None:
    frontend = Frontend(Broken(task, ZeroDivisionError("secret")))
    frontend.send(1, body())
    frontend.send(2, body(stream=True))
    frontend.finish()
    assert [frontend.only(number).status for number in (1, 2)] == [500, 500]
    assert b"secret" not in frontend.only(1).body
    assert not frontend.handler._rounds._guests  # type: ignore[union-attr]
    task.step()
    assert not task.policy._rows


def test_a_worker_whose_device_is_lost_ends(task: Any) -> None:
    frontend = Frontend(Broken(task, DeviceLost("device-side assert")))
    frontend.send(1, body())
    with pytest.raises(SystemExit):
        frontend.round()
