"""The cold-start experiment: one user that asks the agent for one start after another."""

import logging
import time

import gevent
from locust import User, constant, task
from locust.event import EventHook
from locust.exception import StopUser

from loadtest.coldstart import Arm, ColdStart
from loadtest.errors import AgentBusy, BaselineNotRunning, ColdStartFailed, LoadtestError, ModelNotServed
from loadtest.options import AUTO, COLD_START_FALLBACK, COLD_START_MODEL, to_start
from loadtest.session import Plan, Session, run_over, session_of
from loadtest.settings import LoadtestSettings
from loadtest.turns import in_turns

log = logging.getLogger("loadtest")

PROMPT = "The falcon"
BUSY_SECONDS = 1.0
BUSY_TRIES = 1800

cold_start_begun = EventHook()
"""Fired with `arm` before each start."""

cold_start_done = EventHook()
"""Fired with `start` (a ColdStart) after each start, and with `start=None` after the last one of the experiment."""


class ColdStartUser(User):  # type: ignore[misc]  # Locust ships no types for it
    """Starts a model in each of the chosen ways, in turn, on a stack that does nothing else meanwhile."""

    fixed_count = 1
    host = LoadtestSettings.load().url
    wait_time = constant(0)
    session: Session
    plan: Plan

    def on_start(self) -> None:
        self.session = session_of(self.environment)
        self.plan = self.session.plan(self.environment)
        options = self.plan.options
        try:
            self._model, self._release = to_start(options, self.plan.agent.releases())
        except LoadtestError as error:
            raise self.session.abort(self.environment, error) from error
        if self._model == COLD_START_FALLBACK and options.cold_start_model == AUTO and not self._release:
            self._instead(f"{COLD_START_MODEL} has no release")
        self._left = in_turns(options.cold_start_variants, options.cold_start_samples)
        self._given_up: set[str] = set()

    @task  # type: ignore[untyped-decorator]
    def next_start(self) -> None:
        step = next(self._left, None)
        if step is None:
            log.info("Cold starts complete")
            self._tell(None)
            if not self._others():
                run_over.fire(environment=self.environment)
            raise StopUser
        number, arm = step
        if arm.name in self._given_up:
            return
        with self.session.floor.alone():
            cold_start_begun.fire(environment=self.environment, arm=arm)
            start = self._measure(arm, number)
        self._tell(start)
        gevent.sleep(0.2 if self._others() else 0)  # let the users who waited have their turn

    def _tell(self, start: ColdStart | None) -> None:
        if start is not None:
            self.session.recorder.record_cold_start(start)
        cold_start_done.fire(environment=self.environment, start=start)

    def _measure(self, arm: Arm, number: int) -> ColdStart:
        at = time.time()
        try:
            return self._ask(arm, number)
        except BaselineNotRunning as error:
            self._given_up.add(arm.name)
            return self._failed(arm, number, at, error, skipped=True)
        except ColdStartFailed as error:
            return self._failed(arm, number, at, error)
        except LoadtestError as error:
            raise self.session.abort(self.environment, error) from error

    def _ask(self, arm: Arm, number: int) -> ColdStart:
        for _ in range(BUSY_TRIES):
            try:
                return self.plan.agent.cold_start(arm, self._model, self._release, number, PROMPT)
            except AgentBusy as error:
                log.info("%s; waiting for it", error)
                gevent.sleep(BUSY_SECONDS)
            except ModelNotServed as error:
                if self.plan.options.cold_start_model != AUTO or self._model == COLD_START_FALLBACK:
                    raise
                self._instead(str(error))
        raise AgentBusy(f"required a free agent at {self.plan.agent.url}, found other cold starts for half an hour")

    def _instead(self, reason: str) -> None:
        log.warning("%s; measuring %s instead (`make loadtest PROFILE=coldstart` publishes %s)",
                    reason, COLD_START_FALLBACK, COLD_START_MODEL)  # fmt: skip
        self._model = COLD_START_FALLBACK

    def _failed(self, arm: Arm, number: int, at: float, error: LoadtestError, skipped: bool = False) -> ColdStart:
        log.error("%s", error)
        return ColdStart(arm=arm.name, model=self._model, round=number, at=at, error=str(error), skipped=skipped)

    def _others(self) -> bool:
        return not self.session.alone(type(self))
