"""The handler inside TorchServe's own Service, read from the other end of its socket: one answer for each request, always."""

import json
import logging
import math
import socket
import threading
from collections.abc import Iterator
from typing import Any

import minio_handler
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minio_handler import MinioModifiedHandler
from tasks import load_task
from tasks.shared.contract import Node
from tasks.shared.errors import DeviceLost
from ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ts.service import Service
from ts.utils.util import list_classes_from_module

from tests.tiny_models import make_causal
from tests.torchserve_wire import METRICS_FILE, Answer, Frame, request


class Worker:
    """A handler with its service, and what it sent to the frontend."""

    def __init__(self, task: Any) -> None:
        self.handler = MinioModifiedHandler()
        self.handler.task = task
        metrics = MetricsCacheYamlImpl(config_file_path=str(METRICS_FILE))
        metrics.initialize_cache()
        self.service = Service("model", "/nowhere", None, self.handler.handle, None, 8, True, metrics)

    def predict(
        self, *bodies: bytes, content_type: str = "application/json"
    ) -> tuple[list[list[Answer]], list[Answer]]:
        """What one batch sent: the pieces of streams, one list a frame, and the last frame's answers."""
        ours, theirs = socket.socketpair()
        sent = bytearray()

        def read() -> None:
            while chunk := theirs.recv(1 << 16):
                sent.extend(chunk)

        reader = threading.Thread(target=read)
        reader.start()
        self.service.set_cl_socket(ours)
        try:
            ours.sendall(self.service.predict([request(n, body, content_type) for n, body in enumerate(bodies)]))
        finally:
            ours.close()
            reader.join()
            theirs.close()
        frames = Frame(bytes(sent)).frames()
        assert [code for code, _ in frames] == [200] * len(frames)
        answers = frames[-1][1]
        assert [answer.request_id for answer in answers] == [f"id-{n}" for n in range(len(bodies))]
        return [pieces for _, pieces in frames[:-1]], answers


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    return Worker(load_task("text-generation", make_causal(tmp_path_factory.mktemp("model"), "falcon"), {}, Node()))


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """TorchServe logs a traceback for every body that is not JSON."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def body(text: str, **more: Any) -> bytes:
    return json.dumps({"input": text, "parameters": {"do_sample": False, "max_new_tokens": 5}} | more).encode()


def test_torchserve_finds_exactly_one_class_and_no_function_handle() -> None:
    assert list_classes_from_module(minio_handler) == [MinioModifiedHandler]
    assert not hasattr(minio_handler, "handle")


def test_every_request_of_a_batch_gets_its_own_answer_or_error(worker: Worker) -> None:
    good = worker.predict(body("The weights"))[1][0].json
    frames, answers = worker.predict(
        body("The weights"),
        b"not JSON",
        body("The weights", parameters={"top_k": -5}),
        json.dumps({"inputs": "x"}).encode(),
        body("The weights"),
    )
    assert frames == []
    assert [answer.status for answer in answers] == [200, 400, 400, 400, 200]
    assert answers[0].json == answers[4].json == good
    assert answers[1].json["error"]["type"] == "invalid_json"
    assert answers[2].json["error"] == {
        "code": 400,
        "type": "invalid_parameter",
        "field": "parameters.top_k",
        "message": "required an integer from 0 to 1048576, found -5",
    }
    assert answers[3].json["error"]["field"] == "inputs"
    assert {answer.content_type for answer in answers} == {"application/json"}
    assert [answer.phrase for answer in answers[:2]] == ["", "Bad Request"]


def test_only_those_who_asked_get_a_stream(worker: Worker) -> None:
    frames, answers = worker.predict(
        body("The weights"), body("A release", stream=True), b"{}", body("To", stream=True)
    )
    pieces = [piece for frame in frames for piece in frame]
    assert {piece.request_id for piece in pieces} == {"id-1", "id-3"}
    assert {piece.next for piece in pieces} == {"true"}
    assert [answer.next for answer in answers] == [None, "false", None, "false"]
    assert [answer.status for answer in answers] == [200, 200, 400, 200]
    plain = worker.predict(body("A release"), body("To"))[1]
    for answer, whole in ((answers[1], plain[0]), (answers[3], plain[1])):
        assert answer.content_type == "text/event-stream"
        own = [piece.body for piece in pieces if piece.request_id == answer.request_id] + [answer.body]
        events = [json.loads(event.removeprefix(b"data: ").removesuffix(b"\n\n")) for event in own]
        assert all(event.startswith(b"data: ") and event.endswith(b"\n\n") and event.count(b"\n") == 2 for event in own)
        assert events[-1]["generated_text"] == whole.json[0]["generated_text"]
        assert events[-1]["generated_text"].endswith("".join(event["token"] for event in events[:-1]))
        assert len(events) > 2


def test_a_form_or_an_unknown_content_type_is_refused_or_read_but_never_fatal(worker: Worker) -> None:
    assert worker.predict(body("The"), content_type="application/octet-stream")[1][0].status == 200
    assert worker.predict(b"\xff\xfe", content_type="text/plain")[1][0].status == 400


def test_an_answer_that_torchserve_would_not_carry_is_an_error(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A longer answer than max_response_size costs the worker and everybody in its batch."""
    monkeypatch.setattr(worker.handler, "_max_answer_bytes", 200)
    _, (long, short) = worker.predict(body("The " * 60), body("The"))
    assert long.status == 400
    assert long.json["error"]["message"].startswith("required an answer of at most 200 bytes, found ")
    assert short.status == 200


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
hostile = st.one_of(
    st.binary(max_size=60),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({"input": json_values, "parameters": json_values}).map(
        lambda value: json.dumps(value).encode()
    ),
    st.sampled_from(
        [b"[" * 50_000, b'{"input":' * 3000, b'{"input": ' + b"1" * 5000 + b"}", b"", b"\x00", b"{}" * 1000]
    ),
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(bodies=st.lists(hostile, min_size=1, max_size=6))
def test_malformed_bodies_cost_nobody_anything(worker: Worker, bodies: list[bytes]) -> None:
    _, answers = worker.predict(*bodies, body("The"))
    assert answers[-1].status == 200
    for answer in answers[:-1]:
        assert answer.status in (200, 400)
        assert answer.status == 200 or set(answer.json["error"]) >= {"code", "type", "message"}
    assert not any(math.isnan(answer.status) for answer in answers)


class Broken:
    """A fake of a task that raises what no task should."""

    def __init__(self, error: BaseException, after: int = 0) -> None:
        self.error, self.after = error, after

    def parse(self, value: dict[str, Any]) -> Any:
        return type("Request", (), {"stream": bool(value.get("stream"))})

    def run(self, requests: list[Any], emit: Any) -> list[Any]:
        for _ in range(self.after):
            emit({0: {"token": "x"}})
        raise self.error


def test_a_bug_in_a_task_is_an_error_and_not_a_lost_worker() -> None:
    broken = Worker(Broken(ZeroDivisionError("secret detail"), after=1))
    frames, (streamed, plain) = broken.predict(b'{"stream": true}', b"{}")
    assert len(frames) == 1
    assert (plain.status, plain.json["error"]["type"]) == (500, "internal_error")
    assert b"secret" not in plain.body
    error = json.loads(streamed.body.removeprefix(b"data: "))["error"]
    assert (error["code"], streamed.next, streamed.content_type) == (500, "false", "text/event-stream")


def test_a_worker_whose_device_is_lost_ends_so_that_another_can_start() -> None:
    """Service swallows exceptions: a worker with a dead GPU would stay READY and fail every request from then on."""
    with pytest.raises(SystemExit):
        Worker(Broken(DeviceLost("device-side assert"))).predict(b"{}")
