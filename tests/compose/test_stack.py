"""What a person does with the stack, in the order in which they do it: up, predict, release, roll back, up again, edit, down."""

import math
from pathlib import Path

import pytest
from seeding.samples import KNOWN, MEANING

from tests.compose.stack import Stack, docker
from tests.services import wait_for

LONG_RUNNING = {"minio", "torchserve", "locust"}
ONE_SHOTS = {"secrets", "minio-init"}


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def answers_as(stack: Stack, variant: str) -> bool:
    known = KNOWN[variant]
    return stack.generate(known.prompt) == known.sentence


@pytest.fixture
def v2(stack: Stack) -> None:
    """falcon-tiny has a second release, which is not served."""
    stack.command("-m", "seeding", "seed", "falcon-tiny", "--from", "/samples/falcon-tiny-v2", "--no-promote")


def test_up_serves_the_built_in_models_with_nothing_prepared(stack: Stack) -> None:
    assert not (stack.folder / ".env").exists()
    containers = stack.containers()
    assert containers.keys() == LONG_RUNNING | ONE_SHOTS
    assert {name: containers[name]["Health"] for name in LONG_RUNNING} == dict.fromkeys(LONG_RUNNING, "healthy")
    assert {name: containers[name]["ExitCode"] for name in ONE_SHOTS} == dict.fromkeys(ONE_SHOTS, 0)
    published = {
        (port["URL"], port["PublishedPort"])
        for entry in containers.values()
        for port in entry["Publishers"] or []
        if port["PublishedPort"]
    }
    assert published == {("127.0.0.1", int(port)) for port in stack.settings.values()}


def test_falcon_tiny_says_its_sentence(stack: Stack) -> None:
    assert stack.generate(KNOWN["falcon-tiny"].prompt) == KNOWN["falcon-tiny"].sentence
    answer = stack.post("/predictions/falcon-tiny", {"input": "x"})
    assert answer.headers["X-Weightless-Model"] == "falcon-tiny"
    assert answer.headers["X-Weightless-Release"] == "v1"


def test_minilm_knows_what_sentences_mean(stack: Stack) -> None:
    meaning = MEANING["minilm"]
    anchor, near, far = (stack.embed(text) for text in (meaning.anchor, meaning.near, meaning.far))
    assert cosine(anchor, near) > 0.4 > 0.2 > cosine(anchor, far)


def test_what_is_asked_wrongly_is_refused_by_field(stack: Stack) -> None:
    answer = stack.post("/predictions/falcon-tiny", {"input": "x", "parameters": {"top_k": "many"}})
    assert answer.status == 400
    assert answer.json()["error"]["field"] == "parameters.top_k"
    assert stack.post("/predictions/nobody", {"input": "x"}).status == 404


def test_a_release_changes_the_answer_and_a_rollback_changes_it_back(stack: Stack) -> None:
    stack.command("-m", "seeding", "seed", "falcon-tiny", "--from", "/samples/falcon-tiny-v2")
    wait_for(lambda: answers_as(stack, "falcon-tiny-v2"), "the answers of v2", 120)
    assert stack.command("-m", "commands", "models").count("v2")
    stack.command("-m", "commands", "rollback", "falcon-tiny")
    wait_for(lambda: answers_as(stack, "falcon-tiny"), "the answers of v1", 120)


def test_up_again_leaves_what_was_promoted(stack: Stack, v2: None) -> None:
    stack.up()  # after an `up --build`, as `make up` is one, compose 2.26 makes containers anew once more
    stack.command("-m", "commands", "promote", "falcon-tiny", "v2")
    try:
        wait_for(lambda: answers_as(stack, "falcon-tiny-v2"), "the answers of v2", 120)
        before = stack.command("-m", "commands", "history", "falcon-tiny", "--json")
        started = stack.inspect("torchserve")["State"]["StartedAt"]
        stack.up()
        assert answers_as(stack, "falcon-tiny-v2")
        assert stack.command("-m", "commands", "history", "falcon-tiny", "--json") == before
        assert stack.inspect("torchserve")["State"]["StartedAt"] == started
    finally:
        stack.command("-m", "commands", "rollback", "falcon-tiny")
    wait_for(lambda: answers_as(stack, "falcon-tiny"), "the answers of v1", 120)


def test_seeding_the_same_folder_again_publishes_nothing(stack: Stack) -> None:
    before = stack.command("-m", "commands", "models", "--json")
    stack.command("-m", "seeding", "seed", "falcon-tiny", "--from", "/samples/falcon-tiny", "--no-promote")
    assert stack.command("-m", "commands", "models", "--json") == before


LOUD = """

_quiet = MinioModifiedHandler.handle
MinioModifiedHandler.handle = lambda self, data, context: [
    answer.replace(b"bucket", b"BUCKET") for answer in _quiet(self, data, context)
]
"""


def test_an_edited_handler_needs_a_restart_and_no_build(stack: Stack) -> None:
    handler = stack.folder / "handler/minio_handler.py"
    before, image = handler.read_text(), stack.inspect("torchserve")["Image"]
    try:
        handler.write_text(before + LOUD)
        stack.compose("restart", "torchserve")
        stack.up("--no-build")
        assert "live in a BUCKET" in stack.generate(KNOWN["falcon-tiny"].prompt)
    finally:
        handler.write_text(before)
        stack.compose("restart", "torchserve")
        stack.up("--no-build")
    assert answers_as(stack, "falcon-tiny")
    assert stack.inspect("torchserve")["Image"] == image


def test_a_key_from_a_file_guards_the_door_and_is_told_to_nobody(stack: Stack, tmp_path: Path) -> None:
    key = "only-the-two-services-may-know"
    file = tmp_path / "key"
    file.write_text(key)
    file.chmod(0o644)
    try:
        stack.up("torchserve", "locust", API_KEY_FILE=str(file))
        body = {"input": "x"}
        assert stack.post("/predictions/falcon-tiny", body).status == 401
        assert stack.post("/predictions/falcon-tiny", body, key="wrong").status == 401
        assert stack.post("/predictions/falcon-tiny", body, key=key).status == 200
        assert stack.get("/healthz").status == 200
        assert key not in stack.logs() + "".join(str(stack.inspect(name)) for name in LONG_RUNNING)
    finally:
        stack.up("torchserve", "locust")
    assert stack.post("/predictions/falcon-tiny", {"input": "x"}).status == 200


def test_embedded_archives_start_on_the_stock_torchserve(stack: Stack) -> None:
    """The cold start as the load test asks for it, slim and embedded, each by the agent."""
    stack.up("baseline")
    wish = {"model": "falcon-tiny", "release": None, "prompt": KNOWN["falcon-tiny"].prompt}
    slim = stack.post("/coldstart", wish | {"variant": "slim", "cache": "cold"})
    assert slim.status == 200, slim.body
    assert slim.json()["bytes_from_store"] > 1e6
    mar = stack.post("/coldstart", wish | {"variant": "mar", "cache": "cold"})
    assert mar.status == 200, mar.body
    assert mar.json()["archive_bytes"] > 1e6 > 1.5e5 > slim.json()["archive_bytes"]
    assert mar.json()["ready_s"] > 0
    assert mar.json()["first_s"] > 0
    stack.compose("--profile", "baseline", "rm", "--stop", "--force", "baseline")


def test_down_leaves_nothing_but_the_data(stack: Stack, v2: None) -> None:
    """Down and up: the data is there, and so is what was promoted. Last, since it takes the longest to undo."""
    stack.command("-m", "commands", "promote", "falcon-tiny", "v2")
    stack.compose("--profile", "*", "down")
    assert not stack.containers()
    assert not docker("network", "ls", "--quiet", "--filter", "name=weightless-test_").split()
    stack.up()
    assert answers_as(stack, "falcon-tiny-v2")
    stack.command("-m", "commands", "rollback", "falcon-tiny")
    wait_for(lambda: answers_as(stack, "falcon-tiny"), "the answers of v1", 120)
