"""A version without a living worker takes no requests, and is given up when TorchServe will not start another."""

import os
import subprocess
import sys

import pytest

from serve.agent.health import GAVE_UP_S, GRACE_S, Health
from serve.agent.management import Worker
from serve.agent.routing import Target

LIVE = os.getpid()


@pytest.fixture(scope="module")
def dead() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def health(expected: int = 1) -> Health:
    return Health(Target("m", "v1", "blake3:0", "v1", "embeddings", 5), expected, startup_timeout_s=100)


def test_ready_workers_are_fine() -> None:
    watched = health()
    assert watched.look_at([Worker("9500", LIVE, True)], 0) is None
    assert watched.target.down is None


def test_a_worker_that_comes_back_soon_costs_no_request(dead: int) -> None:
    watched = health()
    assert watched.look_at([Worker("9500", dead, True)], 10) is None
    assert watched.target.down is None, "requests wait in TorchServe's queue"
    assert watched.look_at([Worker("9500", LIVE, False)], 12) is None
    assert watched.look_at([Worker("9500", LIVE, True)], 13) is None
    assert watched.target.down is None


def test_no_worker_for_longer_than_the_grace_takes_no_requests_until_one_is_ready(dead: int) -> None:
    watched = health()
    watched.look_at([Worker("9500", dead, True)], 10)
    assert watched.look_at([Worker("9500", dead, False)], 10.1 + GRACE_S) is None
    assert "died" in str(watched.target.down)
    watched.look_at([Worker("9500", LIVE, True)], 20)
    assert watched.target.down is None


def test_a_worker_that_stays_dead_is_lost(dead: int) -> None:
    watched = health()
    watched.look_at([Worker("9500", dead, True)], 10)
    assert watched.look_at([Worker("9500", dead, False)], 9 + GAVE_UP_S) is None
    assert "does not start it again" in str(watched.look_at([Worker("9500", dead, False)], 10.1 + GAVE_UP_S))


def test_a_worker_that_dies_again_and_again_is_not_given_up_between_two_tries(dead: int) -> None:
    watched = health()
    for second in range(0, 40, 8):  # TorchServe's longest pause
        assert watched.look_at([Worker("9500", dead, False)], 10 + second) is None
        assert watched.look_at([Worker("9500", LIVE, False)], 11 + second) is None


def test_a_worker_that_loads_for_ever_is_lost() -> None:
    watched = health()
    watched.look_at([Worker("9500", LIVE, False)], 10)
    assert "not READY within" in str(watched.look_at([Worker("9500", LIVE, False)], 10.1 + 100 + GAVE_UP_S))


def test_one_of_two_workers_still_serves_but_is_noticed(dead: int) -> None:
    watched = health(expected=2)
    watched.look_at([Worker("9500", LIVE, True), Worker("9501", dead, True)], 10)
    assert watched.target.down is None
    assert len(watched.workers) == 1
    lost = watched.look_at([Worker("9500", LIVE, True), Worker("9501", dead, False)], 10.1 + GAVE_UP_S)
    assert lost is not None
    assert watched.target.down is None, "the living one serves until a new version has taken over"
