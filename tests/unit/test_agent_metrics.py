"""What the door counts of a worker's words: any words, since a handler may be anybody's."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.agent.metrics import DoorMetrics, ReleaseMetrics
from serve.agent.routing import RoutingTable, Target
from tests.services import ROOT


@pytest.fixture
def door() -> DoorMetrics:
    return DoorMetrics(RoutingTable(1, 1.0))


def figures(door: DoorMetrics) -> ReleaseMetrics:
    return door.of(Target("m", "v1", "blake3:0", "v1", "text-generation", 1.0))


def value(door: DoorMetrics, name: str, **labels: str) -> float | None:
    return door.registry.get_sample_value(f"weightless_{name}", {"model": "m", "release": "v1", **labels})


def test_every_metric_is_explained_and_every_explained_one_exists(door: DoorMetrics) -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    explained = set(re.findall(r"^\| `(weightless_\w+)` ", page, re.MULTILINE))
    kept = {f"{family.name}_total" if family.type == "counter" else family.name for family in door.registry.collect()}
    assert explained == kept


def test_only_what_a_whole_answer_knows_is_taken_from_its_headers(door: DoorMetrics) -> None:
    headers = {
        "x-weightless-queue-ms": "20",
        "x-weightless-generated-tokens": "5",
        "x-weightless-prompt-tokens": "3",
        "x-weightless-first-token-ms": "40",
    }
    figures(door).told(headers, stream=True)
    assert value(door, "queue_seconds_sum") == pytest.approx(0.02)
    assert value(door, "prompt_tokens_count") == value(door, "time_to_first_token_seconds_count") == 0
    figures(door).told(headers, stream=False)
    assert value(door, "queue_seconds_sum") == pytest.approx(0.04)
    assert (value(door, "prompt_tokens_sum"), value(door, "generated_tokens_sum")) == (3, 5)
    assert value(door, "time_to_first_token_seconds_sum") == pytest.approx(0.04)


@pytest.mark.parametrize("said", ["", "x", "nan", "inf", "-1", "1e999"])
def test_a_header_that_is_no_count_is_not_counted(door: DoorMetrics, said: str) -> None:
    figures(door).told({"x-weightless-batch": said}, stream=False)
    assert value(door, "batch_size_count") == 0


@pytest.mark.parametrize(
    ("chunk", "prompt", "generated"),
    [
        (b'data: {"generated_text": "x", "prompt_tokens": 3, "generated_tokens": 4}\n\n', 3, 4),
        (b'data: {"token": "x"}\n\ndata: {"generated_text": "x", "prompt_tokens": 3, "generated_tokens": 4}\n\n', 3, 4),
        (b'data: {"generated_text": "say \\"generated_tokens\\": 9 ", "generated_tokens": 4}\n\n', 0, 4),
        (b'data: {"generated_text": "\\n\\ndata: ", "generated_tokens": 4}\n\n', 0, 4),
        (b'data: {"token": "x"}\n\n', 0, 0),
        (b"", 0, 0),
    ],
)
def test_a_streams_tokens_are_those_of_its_last_event(
    door: DoorMetrics, chunk: bytes, prompt: int, generated: int
) -> None:
    figures(door).ended(chunk)
    assert (value(door, "prompt_tokens_sum"), value(door, "generated_tokens_sum")) == (prompt, generated)


@pytest.mark.parametrize(
    ("chunk", "kind"),
    [
        (b'data: {"error": {"code": 507, "type": "out_of_memory", "message": "x"}}\n\n', "out_of_memory"),
        (b'data: {"token": "x"}\n\ndata: {"error": {"code": 504, "type": "timeout", "message": "x"}}\n\n', "timeout"),
        (b'data: {"error": {}}\n\n', "other"),
    ],
)
def test_a_stream_that_ends_in_an_error_counts_as_one(door: DoorMetrics, chunk: bytes, kind: str) -> None:
    figures(door).ended(chunk)
    assert value(door, "errors_total", type=kind) == 1


def test_what_a_client_chooses_becomes_no_label(door: DoorMetrics) -> None:
    door.refused("a" * 50, 404, "model_not_found")
    assert value(door, "requests_total", model="", release="", code="404") == 1
    figures(door).failed("Made Up By a Handler!")
    assert value(door, "errors_total", type="other") == 1


@given(st.binary(max_size=80))
def test_no_last_chunk_breaks_the_count(chunk: bytes) -> None:
    figures(DoorMetrics(RoutingTable(1, 1.0))).ended(chunk)
