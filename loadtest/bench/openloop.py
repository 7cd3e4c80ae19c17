"""Open-loop load: requests leave at times that were drawn beforehand, whatever became of the ones before.

A closed loop waits with its next request until the last one was answered, and so asks little while a server stalls. Here every
request has its time (a Poisson process), and its latency counts from that time on. No request is tried again; one without a
complete answer within HANG_S has failed.
"""

import asyncio
import itertools
import json
import math
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

HANG_S = 30.0


@dataclass(frozen=True)
class Asked:
    """One request. `seconds` from its scheduled time to the last byte of its answer; `error` None: it was answered whole."""

    stream: bool
    seconds: float
    error: str | None


@dataclass(frozen=True)
class Load:
    """`rate` requests a second to `url`, of which every `every_stream`th is streamed."""

    url: str
    body: Mapping[str, Any]
    rate: float
    every_stream: int
    seed: int

    def times(self) -> Iterator[float]:
        """Seconds from the start at which requests leave."""
        chance, at = random.Random(self.seed), 0.0  # noqa: S311  # no secret
        while True:
            at += chance.expovariate(self.rate)
            yield at

    def offer(self, stop: threading.Event) -> list[Asked]:
        """Ask until `stop` is set, and wait for what is under way then; all that was asked, in the order of its times."""
        return asyncio.run(self._offer(stop))

    async def _offer(self, stop: threading.Event) -> list[Asked]:
        timeout = aiohttp.ClientTimeout(total=HANG_S)
        connector = aiohttp.TCPConnector(limit=0)
        tasks: list[asyncio.Task[Asked]] = []
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            began = time.monotonic()
            for number, at in zip(itertools.count(1), self.times(), strict=False):
                while (left := began + at - time.monotonic()) > 0 and not stop.is_set():
                    await asyncio.sleep(min(left, 0.05))
                if stop.is_set():
                    break
                stream = number % self.every_stream == 0
                tasks.append(asyncio.create_task(self._ask(session, stream, began + at)))
            return list(await asyncio.gather(*tasks))

    async def _ask(self, session: aiohttp.ClientSession, stream: bool, scheduled: float) -> Asked:
        try:
            async with session.post(self.url, json={**self.body, "stream": stream}) as answer:
                said = await answer.read()
            error = None if answer.status == 200 else f"{answer.status}: {said[:200]!r}"
            if error is None and not _whole(said, stream):
                error = f"an answer without its end: {said[-200:]!r}"
        except TimeoutError:
            error = f"no complete answer within {HANG_S:.0f} s"
        except aiohttp.ClientError as failed:
            error = repr(failed)
        return Asked(stream, time.monotonic() - scheduled, error)


def _whole(said: bytes, stream: bool) -> bool:
    """Whether the text came to its end; a stream's last event has all of it."""
    if not stream:
        return b"generated_text" in said
    events = [line.removeprefix(b"data:") for line in said.splitlines() if line.startswith(b"data:")]
    try:
        return bool(events) and "generated_text" in json.loads(events[-1])
    except ValueError:
        return False


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that `share` of all are not above: one that was measured, never one between two."""
    return sorted(values)[math.ceil(share * len(values)) - 1]
