"""Users of a closed loop, in a process of their own: each sends its next request when its last one is answered.

stdin: {"url", "users", "bodies"}. stdout: a list of {"began", "ended", "pieces", "count"} in the order of the bodies; times in
seconds of one clock, `pieces` when each event of a stream arrived, `count` the tokens or the vectors of the answer.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import aiohttp
import uvloop


async def closed_loop(url: str, users: int, bodies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Send all bodies, `users` at a time."""
    answers: dict[int, dict[str, Any]] = {}
    waiting: Iterator[tuple[int, dict[str, Any]]] = iter(enumerate(bodies))

    async def user(session: aiohttp.ClientSession) -> None:
        for number, body in waiting:
            answers[number] = await ask(session, url, body)

    timeout, connector = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=users)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, read_bufsize=1 << 20) as session:
        await asyncio.gather(*(user(session) for _ in range(users)))
    return [answers[number] for number in range(len(bodies))]


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> dict[str, Any]:
    """One request.

    Raises:
        ValueError: it was answered with an error.
    """
    pieces: list[float] = []
    last = b""
    began = time.perf_counter()
    async with session.post(url, json=body) as response:
        if response.content_type == "text/event-stream":
            async for line in response.content:
                if line.startswith(b"data:"):
                    pieces.append(time.perf_counter())
                    last = line.removeprefix(b"data:")
        else:
            last = await response.read()
        ended = time.perf_counter()
    found = json.loads(last)
    if response.status != 200 or "error" in found:
        raise ValueError(f"{url}: required an answer, found {response.status}: {last[:300]!r}")
    return {"began": began, "ended": ended, "pieces": pieces, "count": count(found)}


def count(answer: Any) -> int:
    """Generated tokens of an answer or of a stream's last event; the number of vectors of embeddings."""
    if isinstance(answer, list) and "embedding" in answer[0]:
        return len(answer)
    return int((answer[0] if isinstance(answer, list) else answer)["generated_tokens"])


if __name__ == "__main__":
    order = json.load(sys.stdin)
    json.dump(uvloop.run(closed_loop(order["url"], order["users"], order["bodies"])), sys.stdout)
