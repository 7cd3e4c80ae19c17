"""Answers of TorchServe read off real sockets: in any pieces, whole or cut off, and connections used again only when clean."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.agent.upstream import Exchange, Upstream, UpstreamLost

pytestmark = pytest.mark.anyio

WHOLE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-length: 7\r\nconnection: keep-alive\r\n\r\n[1,2,3]"
)
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\nA\r\n0123456789\r\n0\r\n\r\n"
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"
CLOSING = b"HTTP/1.1 503 Unavailable\r\ncontent-length: 2\r\nconnection: close\r\n\r\nno"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def server(*answers: Answer) -> AsyncIterator[tuple[Upstream, list[bytes]]]:
    """A server that gives these answers, one a request, on as many connections as the client opens; and what it was asked."""
    asked: list[bytes] = []
    left = list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while left:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
                asked.append(head + await reader.readexactly(length))
                await left.pop(0)(writer)
                await writer.drain()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    upstream = Upstream("127.0.0.1", listening.sockets[0].getsockname()[1])
    try:
        yield upstream, asked
    finally:
        upstream.close()
        listening.close()


def at_once(raw: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    return answer


def in_pieces(raw: bytes, cuts: list[int], pause: float = 0) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        edges = [0, *sorted(cut % (len(raw) + 1) for cut in cuts), len(raw)]
        for start, end in itertools.pairwise(edges):
            writer.write(raw[start:end])
            await writer.drain()
            await asyncio.sleep(pause)

    return answer


def cut_off(raw: bytes) -> Answer:
    async def answer(writer: asyncio.StreamWriter) -> None:
        writer.write(raw)
        await writer.drain()
        writer.close()

    return answer


async def never(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def ask(exchange: Exchange, limit_s: float = 5) -> tuple[int, bytes]:
    head = await exchange.request("POST", "/predictions/m/v1", b"{}", limit_s)
    return head.status, b"".join([piece async for piece in exchange.chunks()])


async def test_a_request_is_json_and_its_answer_is_read_whole() -> None:
    async with server(at_once(WHOLE)) as (upstream, asked):
        exchange = await upstream.take()
        head = await exchange.request("POST", "/predictions/m/v1", b'{"input": 1}', 5)
        assert (head.status, head.headers["content-type"]) == (200, "application/json")
        assert await exchange.read() == b"[1,2,3]"
        assert asked[0].startswith(b"POST /predictions/m/v1 HTTP/1.1\r\n")
        assert b"content-type: application/json\r\n" in asked[0]
        assert asked[0].endswith(b'{"input": 1}')


async def test_a_clean_connection_is_used_again_and_another_is_not() -> None:
    async with server(at_once(WHOLE), at_once(STREAM), at_once(EMPTY), at_once(CLOSING)) as (upstream, _):
        exchange = await upstream.take()
        for status, body in ((200, b"[1,2,3]"), (200, b"one0123456789"), (204, b""), (503, b"no")):
            assert await ask(exchange) == (status, body)
            upstream.give_back(exchange)
            again = await upstream.take()
            assert (again is exchange) == (status != 503)
            exchange = again


async def test_chunks_come_out_as_they_come_in() -> None:
    async with server(in_pieces(STREAM, [STREAM.index(b"A\r\n")], pause=0.1)) as (upstream, _):
        exchange = await upstream.take()
        head = await exchange.request("POST", "/", b"", 5)
        assert head.chunked
        assert [piece async for piece in exchange.chunks()] == [b"one", b"0123456789"]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 200), max_size=12), st.sampled_from([WHOLE, STREAM]))
def test_where_packets_end_makes_no_difference(cuts: list[int], raw: bytes) -> None:
    async def go() -> tuple[int, bytes]:
        async with server(in_pieces(raw, cuts)) as (upstream, _):
            return await ask(await upstream.take())

    assert asyncio.run(go()) == (200, b"[1,2,3]" if raw is WHOLE else b"one0123456789")


@pytest.mark.parametrize("end", [0, 10, 60, len(WHOLE) - 1])
async def test_an_answer_that_is_cut_off_is_lost(end: int) -> None:
    async with server(cut_off(WHOLE[:end])) as (upstream, _):
        with pytest.raises(UpstreamLost):
            await ask(await upstream.take())


async def test_a_stream_that_is_cut_off_gives_what_came_and_is_lost() -> None:
    async with server(cut_off(STREAM[:-5])) as (upstream, _):
        exchange, came = await upstream.take(), b""
        await exchange.request("POST", "/", b"", 5)
        with pytest.raises(UpstreamLost):
            async for piece in exchange.chunks():
                came += piece
        assert came == b"one0123456789"


@pytest.mark.parametrize(
    "raw",
    [
        b"\0\0\0\r\n\r\n",
        b"SSH-2.0 hello\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        STREAM[:-5]
        + b"HTTP/1.1 500 Internal Server Error\r\n\r\n",  # what TorchServe does when a worker dies in a stream
        STREAM.replace(b"3\r\none", b"3\r\noneone"),
        WHOLE + b"more",
    ],
)
async def test_what_is_not_http_is_lost_or_at_least_not_used_again(raw: bytes) -> None:
    async with server(in_pieces(raw, [])) as (upstream, _):
        exchange = await upstream.take()
        with contextlib.suppress(UpstreamLost):
            await ask(exchange)
        await asyncio.sleep(0.05)
        assert not exchange.reusable


async def test_silence_is_a_timeout_and_its_connection_is_closed() -> None:
    async with server(never) as (upstream, _):
        exchange = await upstream.take()
        with pytest.raises(TimeoutError):
            await ask(exchange, limit_s=0.1)
        upstream.give_back(exchange)
        assert not exchange.reusable


async def test_nobody_listening_is_lost() -> None:
    async with server() as (upstream, _):
        pass
    with pytest.raises(UpstreamLost, match="cannot be reached"):
        await upstream.take()


async def test_a_slow_reader_holds_the_sender_back() -> None:
    """Else a stream of any length would be kept in memory for a client that does not read."""
    sent = 0

    async def flood(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for _ in range(1000):
            writer.write(b"10000\r\n" + b"x" * 0x10000 + b"\r\n")
            await writer.drain()
            sent += 0x10000
        writer.write(b"0\r\n\r\n")

    async with server(flood) as (upstream, _):
        exchange = await upstream.take()
        await exchange.request("POST", "/", b"", 5)
        await asyncio.sleep(0.3)
        assert sent < 30 << 20, "64 MB were taken in with nobody reading"
        came = 0
        async for piece in exchange.chunks():
            came += len(piece)
        assert came == 1000 * 0x10000
