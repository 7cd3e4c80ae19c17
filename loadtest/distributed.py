"""Locust in several processes: what workers recorded comes to the master, and what concerns a whole run concerns all of them.

A cold start wants the stack to itself. The worker that measures it asks the master, which has every other worker pause and
answers when the requests under way have ended everywhere:

    measuring worker ── hold ──► master ── pause ──► each other worker
                     ◄── held ──        ◄── paused ──
                     ── free ──►        ── resume ──►
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent.event import Event
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest.session import Session

log = logging.getLogger("loadtest")

OVER, WARM, USERS = "weightless-run-over", "weightless-warm", "weightless-users"
HOLD, HELD, FREE = "weightless-hold", "weightless-held", "weightless-free"
PAUSE, PAUSED, RESUME = "weightless-pause", "weightless-paused", "weightless-resume"
LOOK_SECONDS = 0.05
HOLD_SECONDS = 180.0  # longer than any request may take


def distribute(environment: Any, session: Session) -> None:
    """Connect this process with the others of the run; alone it has none."""
    runner = environment.runner
    if isinstance(runner, WorkerRunner):
        Worker(environment, session)
    elif isinstance(runner, MasterRunner):
        Master(environment, session)


def stop(environment: Any, **_: Any) -> None:
    """A run that is over must stop, also in the workers: a page that says "running" for ever would be wrong."""
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.send_message(OVER)
    elif isinstance(environment.runner, LocalRunner):
        _stop_soon(environment.runner)


def _stop_soon(runner: Any) -> None:
    """Not from within a user's greenlet, which stopping kills; after the page's next look at the figures."""
    gevent.spawn_later(2.5, runner.stop)


class Worker:
    """Hands over what it recorded with each of Locust's own reports, pauses when told, and asks for pauses."""

    def __init__(self, environment: Any, session: Session) -> None:
        self._runner = environment.runner
        self._session = session
        self._held = Event()
        session.floor.elsewhere = self.alone()
        environment.events.report_to_master.add_listener(
            lambda client_id, data: data.update(weightless=session.recorder.drain())
        )
        for message, listener in ((HELD, self._on_held), (PAUSE, self._on_pause), (RESUME, self._on_resume)):
            self._runner.register_message(message, listener)
        self._runner.register_message(WARM, self._on_warm)
        self._runner.register_message(USERS, self._on_users)

    def alone(self) -> "_Elsewhere":
        return _Elsewhere(self)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """While the block lasts, the users of all other workers pause."""
        self._held.clear()
        self._runner.send_message(HOLD)
        try:
            if not self._held.wait(HOLD_SECONDS):
                log.warning(
                    "other workers were still busy after %.0f s: this start is measured beside them", HOLD_SECONDS
                )
            yield
        finally:
            self._runner.send_message(FREE)

    def _on_held(self, environment: Any, msg: Any, **_: Any) -> None:
        self._held.set()

    def _on_pause(self, environment: Any, msg: Any, **_: Any) -> None:
        def pause() -> None:
            self._session.floor.close()
            self._runner.send_message(PAUSED)

        gevent.spawn(pause)

    def _on_resume(self, environment: Any, msg: Any, **_: Any) -> None:
        self._session.floor.open()

    def _on_warm(self, environment: Any, msg: Any, **_: Any) -> None:
        environment.stats.reset_all()
        self._session.recorder.end_warmup(msg.data)

    def _on_users(self, environment: Any, msg: Any, **_: Any) -> None:
        self._session.users = frozenset(msg.data)


class _Elsewhere:
    """`Worker.hold` as a context manager that can be entered again and again."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._entered: Any = None

    def __enter__(self) -> None:
        self._entered = self._worker.hold()
        self._entered.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)


class Master:
    """Adds up what workers hand over, and passes on what concerns all of them."""

    def __init__(self, environment: Any, session: Session) -> None:
        self._runner = environment.runner
        self._holder: str | None = None
        self._paused: set[str] = set()
        environment.events.worker_report.add_listener(
            lambda client_id, data: session.recorder.merge(data["weightless"]) if "weightless" in data else None
        )
        # Locust tells workers how many users to have of each kind, not which kinds were picked.
        environment.events.test_start.add_listener(lambda **_: self._runner.send_message(USERS, [*session.users]))
        session.warmed = lambda epoch: self._runner.send_message(WARM, epoch)
        for message, listener in ((HOLD, self._on_hold), (PAUSED, self._on_paused), (FREE, self._on_free)):
            self._runner.register_message(message, listener)
        self._runner.register_message(OVER, lambda environment, msg, **_: _stop_soon(environment.runner))

    def _present(self) -> set[str]:
        return {node.id for node in self._runner.clients.values() if node.state != "missing"}

    def _on_hold(self, environment: Any, msg: Any, **_: Any) -> None:
        self._holder, self._paused = msg.node_id, set()
        for other in self._present() - {self._holder}:
            self._runner.send_message(PAUSE, None, other)
        gevent.spawn(self._follow, self._holder)

    def _on_paused(self, environment: Any, msg: Any, **_: Any) -> None:
        self._paused.add(msg.node_id)

    def _on_free(self, environment: Any, msg: Any, **_: Any) -> None:
        if self._holder == msg.node_id:
            self._resume()

    def _follow(self, holder: str) -> None:
        """Tell the holder when all others have paused; let them go on when it is lost."""
        told = False
        while self._holder == holder:
            present = self._present()
            if holder not in present:
                self._resume()
            elif not told and present - {holder} <= self._paused:
                told = True
                self._runner.send_message(HELD, None, holder)
            gevent.sleep(LOOK_SECONDS)

    def _resume(self) -> None:
        holder, self._holder = self._holder, None
        for other in self._present() - {holder}:
            self._runner.send_message(RESUME, None, other)
