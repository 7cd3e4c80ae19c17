"""The ledger: what a start took must add up, or the figures that people tune by are wrong."""

import json
import time

import pytest

from tests.services import wait_for
from weightless.ledger import Ledger


def busy(seconds: float) -> None:
    end = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() >= end, "time to pass", interval=0.002)


def test_phases_have_their_seconds_and_a_second_visit_adds_to_the_first() -> None:
    ledger = Ledger("falcon-tiny", "v1")
    for _ in range(2):
        with ledger.phase("fetch"):
            busy(0.02)
    with ledger.phase("load"):
        busy(0.01)
    found = ledger.as_dict()
    assert found["phases"]["fetch"] >= 0.04
    assert 0.01 <= found["phases"]["load"] < found["phases"]["fetch"]
    assert found["seconds"] >= found["phases"]["fetch"] + found["phases"]["load"] - 0.001


def test_a_phase_that_is_still_open_counts_so_far() -> None:
    ledger = Ledger("falcon-tiny", "v1")
    with ledger.phase("fetch"):
        busy(0.02)
        assert ledger.as_dict()["phases"]["fetch"] >= 0.02


def test_a_phase_that_fails_is_named_and_keeps_its_seconds() -> None:
    ledger = Ledger("falcon-tiny", "v1")
    with pytest.raises(RuntimeError), ledger.phase("start"), ledger.phase("load"):
        raise RuntimeError
    assert ledger.as_dict()["failed"] == "load"
    assert set(ledger.as_dict()["phases"]) == {"start", "load"}


def test_the_log_line_is_one_line_of_json_with_what_was_noted() -> None:
    ledger = Ledger("minilm", "v3")
    ledger.note(bytes_from_store=12, stale=False)
    ledger.note(bytes_from_store=13)
    ledger.add("import", 0.5)
    line = ledger.log_line()
    assert "\n" not in line
    found = json.loads(line)
    assert (found["weightless"], found["model"], found["release"]) == ("start", "minilm", "v3")
    assert (found["bytes_from_store"], found["stale"], found["phases"]) == (13, False, {"import": 0.5})


def test_a_start_that_was_asked_for_earlier_counts_from_then() -> None:
    began = time.time() - 5
    found = Ledger("minilm", "v3", began=began).as_dict()
    assert 5 <= found["seconds"] < 6
    assert found["began"].startswith(time.strftime("%Y-%m-%dT%H:%M", time.gmtime(began)))


def test_contradictions_are_refused() -> None:
    ledger = Ledger("minilm", "v3")
    with pytest.raises(ValueError, match="phases"):
        ledger.note(phases=1)
    with pytest.raises(ValueError, match="open already"), ledger.phase("a"), ledger.phase("a"):
        pass
