"""What the users of one Locust process share: settings, the agent, the recorder, and the plan of the current run."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gevent
from gevent.lock import BoundedSemaphore
from locust.event import EventHook
from locust.exception import StopUser
from locust.runners import WorkerRunner

from loadtest.agent import Agent, Status
from loadtest.errors import InvalidOption, LoadtestError
from loadtest.floor import Floor
from loadtest.options import Options
from loadtest.recorder import Recorder
from loadtest.settings import LoadtestSettings

log = logging.getLogger("loadtest")

run_over = EventHook()
"""Fired with `environment` when a run must end before its time: the experiment is complete, or cannot go on."""


@dataclass(frozen=True)
class Plan:
    """One run: the checked options and what the agent served when it began."""

    options: Options
    status: Status
    agent: Agent

    def release(self, model: str) -> str:
        served = self.status.model(model)
        return (served.release if served else None) or "?"


class Session:
    """Lives as long as its Locust environment; `plan` is made once a run, by the first user that asks."""

    def __init__(self, settings: LoadtestSettings) -> None:
        self.settings = settings
        self.recorder = Recorder()
        self.floor = Floor()
        self.problem: str | None = None
        self.preparing = ""  # what users wait for before their first request; a stage's time begins after it
        # The kinds that were picked for this run; the master tells its workers.
        self.users: frozenset[str] = frozenset()
        self.warmed: Callable[[int], None] = lambda epoch: None  # the master of several processes tells the others
        self._plan: Plan | None = None
        self._one = BoundedSemaphore(1)
        self._warmup: gevent.Greenlet | None = None
        self._held: dict[str, Agent] = {}

    def attach(self, environment: Any) -> "Session":
        """Make the session findable for the environment's users, and start each of its runs afresh."""
        environment.weightless = self
        environment.events.test_start.add_listener(self._on_test_start)
        environment.events.test_stop.add_listener(self._on_test_stop)
        return self

    def agent(self, host: str | None) -> Agent:
        return Agent(host or self.settings.url, self.settings.headers())

    def plan(self, environment: Any) -> Plan:
        """The plan of the current run.

        Raises:
            StopUser: an option is wrong or the agent cannot be asked; the reason is logged and the run ends.
        """
        with self._one:
            if self._plan is None:
                try:
                    options = Options.read(environment.parsed_options)
                    agent = self.agent(environment.host)
                    self._plan = Plan(options, agent.status(), agent)
                except LoadtestError as error:
                    raise self.abort(environment, error) from error
            return self._plan

    def alone(self, user: type) -> bool:
        """Whether this run has users of that kind only."""
        return self.users == {user.__name__}

    def hold(self, agent: Agent, model: str) -> None:
        """Have an embedded form of the model on the baseline until the run ends. Raises as `Agent.hold`."""
        with self._one:
            if model not in self._held:
                self.preparing = f"registering {model} in an embedded form on the baseline"
                try:
                    agent.hold(model)
                finally:
                    self.preparing = ""
                self._held[model] = agent

    def abort(self, environment: Any, error: LoadtestError) -> StopUser:
        """End the run for a reason that concerns all of it; the caller raises what this returns.

        Locust's own StopTest ends only the user that raises it.
        """
        if self.problem is None:
            self.problem = str(error)
            log.error("%s", error)
            run_over.fire(environment=environment)
        return StopUser(str(error))

    def _on_test_start(self, environment: Any, **_: Any) -> None:
        self._plan = self.problem = None
        if not self.recorder.stage:  # a headless run keeps the stages before this one
            self.recorder.forget_all()
        with contextlib.suppress(InvalidOption):  # the first user says what is wrong
            options = Options.read(environment.parsed_options)
            self.recorder.slo_ms = options.slo_ms
            if not isinstance(environment.runner, WorkerRunner):  # one process counts for all
                self.users = frozenset(user.__name__ for user in environment.user_classes)
                seconds = options.warmup_seconds
                self._warmup = gevent.spawn_later(seconds, self._end_warmup, environment) if seconds else None

    def _on_test_stop(self, environment: Any, **_: Any) -> None:
        if self._warmup is not None:
            self._warmup.kill(block=False)
        held, self._held = self._held, {}
        for model, agent in held.items():
            agent.let_go(model)

    def _end_warmup(self, environment: Any) -> None:
        log.info("Warm-up over: requests so far are discarded")
        environment.stats.reset_all()
        self.recorder.end_warmup(self.recorder.epoch + 1)
        self.warmed(self.recorder.epoch)


def session_of(environment: Any) -> Session:
    """The session that `Session.attach` put there."""
    session: Session = environment.weightless
    return session
