"""Which registered version answers a model's requests, and how many requests it is answering.

A switch to another release is one assignment (`Route.current`), a canary a second version that gets its share, a drain is
waiting for a count. TorchServe's own figures cannot
do it: with a request in flight its pendingRequests is 0, and unregister returns at once and leaves the client hanging.
Everything here runs on the event loop's thread, so nothing needs a lock.
"""

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from serve.agent.errors import ApiError, unavailable
from serve.agent.tally import Tally

CUT_OFF = "cut off"  # the message of a cancellation that is ours, not the client's


@dataclass(eq=False)
class Target:
    """One version registered with TorchServe. `version` is the release's name, or v1.2 for its second registration.

    `since`: when that was, in seconds since 1970.
    """

    model: str
    release: str
    digest: str
    version: str
    task: str
    response_timeout_s: float
    inflight: int = 0
    down: str | None = None  # why it takes no requests now, or None
    since: int = field(default_factory=lambda: int(time.time()))
    tally: Tally = field(default_factory=Tally)
    _requests: set[asyncio.Task[object]] = field(default_factory=set)
    _waiters: list[asyncio.Future[None]] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"/predictions/{self.model}/{self.version}"

    @contextlib.contextmanager
    def serving_one(self) -> Iterator[None]:
        """Count one request in flight, the current task's. When it is cut off, the task sees CancelledError."""
        task = asyncio.current_task()
        assert task is not None
        self.inflight += 1
        self._requests.add(task)
        try:
            yield
        finally:
            self._requests.discard(task)
            self.inflight -= 1
            if not self.inflight:
                for waiter in self._waiters:
                    if not waiter.done():
                        waiter.set_result(None)
                self._waiters.clear()

    def cut_off(self, why: str) -> None:
        """Take no more requests, and end those in flight: TorchServe would leave them hanging."""
        self.down = why
        for task in self._requests:
            task.cancel(CUT_OFF)

    async def drained(self, timeout_s: float) -> bool:
        """Wait until no request is in flight; False if some still are after `timeout_s` seconds."""
        if not self.inflight:
            return True
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(waiter, timeout_s)
        return not self.inflight


@dataclass(eq=False)
class Route:
    """A model that clients may ask for. `held` is set while a `recreate` rollout has taken the old release away.

    `canary` gets `percent` of 100 requests that name no release.
    """

    model: str
    current: Target | None = None
    canary: Target | None = None
    percent: int = 0
    held: asyncio.Event | None = None
    why: str = "it is starting"
    inflight: int = 0  # of all versions together
    _owed: int = 0  # hundredths of a request that the canary has coming

    @property
    def answering(self) -> Target | None:
        """The version that takes requests now; None too when its workers are lost."""
        return self.current if self.current is not None and self.current.down is None else None

    @property
    def targets(self) -> list[Target]:
        """What requests may be routed to."""
        return [target for target in (self.current, self.canary) if target is not None]

    def named(self, release: str) -> Target | None:
        """The version that a request for this release goes to."""
        return next((target for target in self.targets if target.release == release), None)

    def next(self) -> Target | None:
        """The version for the next request that names no release.

        The canary's share is spread evenly, not drawn by chance: of any 100 requests in a row, 10 % are 10. While its workers are
        lost the other one takes all.
        """
        canary = self.canary
        if canary is None or canary.down is not None:
            return self.current
        self._owed += self.percent
        if self._owed < 100:
            return self.current
        self._owed -= 100
        return canary

    def hold(self) -> None:
        """Let new requests wait (bounded by the table's `hold_s`) until `release_hold`."""
        if self.held is None:
            self.held = asyncio.Event()

    def release_hold(self) -> None:
        if self.held is not None:
            self.held.set()
            self.held = None


class RoutingTable:
    """The routes of all models. `max_inflight` bounds the requests in flight of each, `hold_s` how long one may be held."""

    def __init__(self, max_inflight: int, hold_s: float) -> None:
        self.routes: dict[str, Route] = {}
        self._max_inflight = max_inflight
        self._hold_s = hold_s

    def route(self, model: str) -> Route:
        """The model's route, made if it is new."""
        return self.routes.setdefault(model, Route(model))

    def serving(self) -> dict[str, str]:
        """Model → release that answers now."""
        found = {name: route.answering for name, route in self.routes.items()}
        return {name: target.release for name, target in found.items() if target is not None}

    def find(self, model: str, release: str | None) -> Route:
        """The route that a request asks for; 404 naming what is served."""
        route = self.routes.get(model)
        if route is None:
            raise ApiError(404, "model_not_found", f"model {model[:100]}: not served here; served are {self._list()}")
        if release is not None and route.targets and route.named(release) is None:
            raise _not_served(route, release)
        return route

    async def admit(self, route: Route, release: str | None = None) -> Target:
        """The version that takes a request now, one of `release` if it is named. Enter `busy` before the next await.

        Raises:
            ApiError: 503 with Retry-After when too many are in flight, or no version takes requests; 404 for a release that is
                not served any more.
        """
        if route.inflight >= self._max_inflight:
            raise unavailable(
                f"model {route.model}: {route.inflight} requests in flight, at most {self._max_inflight} are taken",
                "overloaded",
            )
        if route.held is not None:
            await self._wait_for(route)
        target = route.named(release) if release is not None else route.next()
        if target is None:
            if route.targets and release is not None:
                raise _not_served(route, release)
            raise unavailable(f"model {route.model}: no release takes requests now: {route.why}")
        if target.down is not None:
            raise unavailable(f"model {route.model}: release {target.release} takes no requests now: {target.down}")
        return target

    @contextlib.contextmanager
    def busy(self, route: Route, target: Target) -> Iterator[None]:
        """Count a request in flight, for the bound on its model and for the drain of its version."""
        route.inflight += 1
        began = time.monotonic()
        try:
            with target.serving_one():
                yield
            target.tally.answered(began)
        except ApiError as error:
            target.tally.answered(began)
            target.tally.errors += error.code >= 500
            raise
        finally:
            route.inflight -= 1

    async def _wait_for(self, route: Route) -> None:
        assert route.held is not None
        route.inflight += 1  # those who wait count too, else a long hold would collect any number
        try:
            await asyncio.wait_for(route.held.wait(), self._hold_s)
        except TimeoutError:
            raise unavailable(f"model {route.model}: its release is being replaced, and that takes longer") from None
        finally:
            route.inflight -= 1

    def _list(self) -> str:
        return ", ".join(sorted(self.serving())) or "none yet"


def _not_served(route: Route, release: str) -> ApiError:
    served = " and ".join(target.release for target in route.targets)
    return ApiError(
        404,
        "release_not_served",
        f"release {release[:100]} of {route.model}: not served here; served is {served}, promote another to change it",
    )
