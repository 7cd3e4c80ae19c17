"""Who may run when: a cold start that shares the machine with requests would be measured wrong. Greenlets, no clock."""

import gevent
from gevent.event import Event

from loadtest.floor import Floor


def test_a_cold_start_waits_for_requests_and_keeps_new_ones_out() -> None:
    floor, end, told = Floor(), Event(), []

    def request(name: str) -> None:
        with floor.shared():
            told.append(f"{name} began")
            if name == "first":
                end.wait()
            told.append(f"{name} ended")

    def start() -> None:
        with floor.alone():
            told.append("start began")
            gevent.sleep(0)
            told.append("start ended")

    first = gevent.spawn(request, "first")
    gevent.sleep(0)
    cold = gevent.spawn(start)
    gevent.sleep(0)
    second = gevent.spawn(request, "second")
    gevent.sleep(0)
    assert told == ["first began"], "the start waits for the first request, the second for the start"
    end.set()
    gevent.joinall([first, cold, second], timeout=5, raise_error=True)
    assert told == ["first began", "first ended", "start began", "start ended", "second began", "second ended"]


def test_two_cold_starts_follow_one_another() -> None:
    floor, inside, most = Floor(), [0], [0]

    def start() -> None:
        with floor.alone():
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            gevent.sleep(0)
            inside[0] -= 1

    gevent.joinall([gevent.spawn(start) for _ in range(4)], timeout=5, raise_error=True)
    assert most == [1]
    assert not floor.wait(), "the floor is free again"


def test_a_cold_start_that_is_killed_frees_the_floor() -> None:
    """A run that is stopped kills its users where they are."""
    floor = Floor()

    def start() -> None:
        with floor.alone():
            gevent.sleep(60)

    cold = gevent.spawn(start)
    gevent.sleep(0)
    assert not floor._open.is_set()
    cold.kill()
    with gevent.Timeout(5), floor.shared():
        pass
