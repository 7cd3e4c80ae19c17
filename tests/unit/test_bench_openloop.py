"""The load of the swap experiment, against a real server that stalls, breaks off and refuses."""

import asyncio
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from aiohttp import web

from loadtest.bench import openloop
from loadtest.bench.openloop import Asked, Load, percentile

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
WHOLE = b'data: {"token": "a"}\n\ndata: {"generated_text": "a", "finish_reason": "length"}\n\n'


@contextmanager
def server(handler: Handler) -> Iterator[str]:
    """An HTTP server on a port of its own, in a thread of its own; its URL."""
    loop, ready, stop = asyncio.new_event_loop(), threading.Event(), asyncio.Event()
    urls: list[str] = []

    async def serve() -> None:
        runner = web.ServerRunner(web.Server(handler))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}/")
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait()
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


def asked(handler: Handler, seconds: float, rate: float = 50) -> list[Asked]:
    stop = threading.Event()
    with server(handler) as url:
        timer = threading.Timer(seconds, stop.set)
        timer.start()
        return Load(url, {"input": "x"}, rate, 4, 1).offer(stop)


async def _answer(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=WHOLE if b'"stream": true' in await request.read() else b'[{"generated_text": "a"}]')


def test_every_fourth_request_is_a_stream_and_whole_answers_are_no_failures() -> None:
    found = asked(_answer, 0.5)
    assert len(found) > 8
    assert [one.stream for one in found] == [number % 4 == 3 for number in range(len(found))]
    assert not [one.error for one in found if one.error]


def test_requests_leave_at_their_times_while_the_server_stalls_and_wait_in_the_count() -> None:
    came: list[float] = []

    async def stall(request: web.BaseRequest) -> web.StreamResponse:
        came.append(time.monotonic())
        await asyncio.sleep(came[0] + 1 - came[-1])
        return await _answer(request)

    found = asked(stall, 0.6)
    assert len(came) == len(found) > 8, "a closed loop would have asked once"
    assert found[0].seconds >= 0.9, "the first waits for all of the stall"
    assert found[0].seconds > found[-1].seconds > 0, "the last for what is left of it, from its own time on"
    assert not [one.error for one in found if one.error]


def test_a_stream_that_breaks_off_a_refusal_and_a_hang_have_failed() -> None:
    numbers = itertools.count()
    openloop.HANG_S, before = 0.3, openloop.HANG_S

    async def broken(request: web.BaseRequest) -> web.StreamResponse:
        number = next(numbers)
        if b'"stream": true' in await request.read():
            return web.Response(body=WHOLE.rpartition(b"data:")[0])
        if number == 0:
            await asyncio.sleep(1)
        return web.Response(status=503, body=b"no worker")

    try:
        found = asked(broken, 0.3)
    finally:
        openloop.HANG_S = before
    assert found[0].error == "no complete answer within 0 s"
    assert "without its end" in str(found[3].error)
    assert all("503" in str(one.error) for one in found[1:] if not one.stream)


def test_percentiles_are_measured_values() -> None:
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile(range(1, 101), 0.5) == 50
    assert percentile([7.0], 0.99) == 7.0
