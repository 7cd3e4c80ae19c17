"""Requests go to one version, are counted while in flight, and neither a switch nor a replacement loses one."""

import asyncio
import contextlib

import pytest

from serve.agent.errors import ApiError
from serve.agent.routing import CUT_OFF, RoutingTable, Target

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def target(release: str = "v1", version: str | None = None) -> Target:
    return Target("m", release, "blake3:0", version or release, "text-generation", 5)


def table(max_inflight: int = 2, hold_s: float = 5.0) -> RoutingTable:
    made = RoutingTable(max_inflight, hold_s)
    made.route("m").current = target()
    return made


def test_unknown_models_and_releases_are_404_and_say_what_is_served() -> None:
    routes = table()
    with pytest.raises(ApiError, match="served are m") as caught:
        routes.find("other", None)
    assert caught.value.code == 404
    with pytest.raises(ApiError, match="served is v1") as caught:
        routes.find("m", "v7")
    assert caught.value.code == 404
    assert routes.find("m", "v1").current is not None


async def test_more_than_the_bound_is_503_with_retry_after() -> None:
    routes = table(max_inflight=1)
    route = routes.find("m", None)
    with routes.busy(route, await routes.admit(route)):
        with pytest.raises(ApiError) as caught:
            await routes.admit(route)
        assert (caught.value.code, caught.value.type, caught.value.retry_after_s) == (503, "overloaded", 1)
    await routes.admit(route)


async def test_a_switch_is_for_requests_that_come_after_it_and_a_drain_waits_for_those_before() -> None:
    routes = table()
    route, old, new = routes.find("m", None), routes.route("m").current, target("v2")
    assert old is not None
    with routes.busy(route, await routes.admit(route)):
        route.current = new
        assert await routes.admit(route) is new
        assert not await old.drained(0.01)
        drained = asyncio.create_task(old.drained(5))
        await asyncio.sleep(0)
        assert not drained.done()
    assert await drained
    assert await new.drained(0)


async def test_a_canary_gets_exactly_its_share_evenly_spread() -> None:
    routes = table()
    route, canary = routes.find("m", None), target("v2")
    route.canary, route.percent = canary, 10
    answered = [(await routes.admit(route)).release for _ in range(200)]
    assert all(answered[at : at + 100].count("v2") == 10 for at in range(100))
    assert all(answered[at : at + 10].count("v2") == 1 for at in range(190))
    route.percent = 35
    assert [(await routes.admit(route)).release for _ in range(100)].count("v2") == 35
    canary.down = "its worker died"
    assert {(await routes.admit(route)).release for _ in range(20)} == {"v1"}, "a lost canary costs no request"


async def test_a_named_release_is_the_one_that_answers_or_404() -> None:
    routes = table()
    route = routes.find("m", None)
    route.canary, route.percent = target("v2"), 1
    assert [(await routes.admit(route, name)).release for name in ("v1", "v2")] == ["v1", "v2"]
    with pytest.raises(ApiError, match="served is v1 and v2"):
        routes.find("m", "v3")
    route.canary = None
    with pytest.raises(ApiError, match="served is v1,") as caught:
        await routes.admit(route, "v2")
    assert caught.value.code == 404


async def test_one_that_waited_while_its_release_was_replaced_is_not_answered_by_another() -> None:
    routes = table()
    route = routes.find("m", "v1")
    route.hold()
    waiting = asyncio.create_task(routes.admit(route, "v1"))
    await asyncio.sleep(0)
    route.current = target("v2")
    route.release_hold()
    with pytest.raises(ApiError, match="release v1 of m: not served here; served is v2"):
        await waiting


async def test_a_version_counts_its_answers_and_what_was_its_fault() -> None:
    routes = table(max_inflight=10)
    route = routes.find("m", None)
    current = await routes.admit(route)
    for error in (None, ApiError(400, "x", "x"), ApiError(503, "x", "x")):
        with contextlib.suppress(ApiError), routes.busy(route, current):
            if error:
                raise error
    counted = current.tally.as_dict()
    assert (counted["requests"], counted["errors"]) == (3, 1)
    assert counted["p95_s"] is not None


async def test_a_held_request_goes_to_the_new_release() -> None:
    routes = table()
    route = routes.find("m", None)
    route.hold()
    waiting = asyncio.create_task(routes.admit(route))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    route.current = target("v2")
    route.release_hold()
    assert (await waiting).release == "v2"
    assert route.inflight == 0


async def test_holding_is_bounded_in_time_and_in_number() -> None:
    routes = table(max_inflight=1, hold_s=0.05)
    route = routes.find("m", None)
    route.hold()
    waiting = asyncio.create_task(routes.admit(route))
    await asyncio.sleep(0)
    with pytest.raises(ApiError, match="requests in flight"):
        await routes.admit(route)
    with pytest.raises(ApiError, match="being replaced") as caught:
        await waiting
    assert caught.value.code == 503
    assert route.inflight == 0


async def test_cutting_off_ends_requests_in_flight_and_refuses_new_ones() -> None:
    routes = table()
    route = routes.find("m", None)
    current = await routes.admit(route)
    seen: list[object] = []

    async def request() -> None:
        with routes.busy(route, current):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError as cancelled:
                seen.extend(cancelled.args)
                raise

    task = asyncio.create_task(request())
    await asyncio.sleep(0)
    current.cut_off("its worker died")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert seen == [CUT_OFF]
    assert (current.inflight, route.inflight) == (0, 0)
    with pytest.raises(ApiError, match="its worker died") as caught:
        await routes.admit(route)
    assert caught.value.code == 503
