"""A load test without the page: runs a profile, says how it goes, writes a report and a result, exits by its gates."""

import logging
import sys
import time
from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from gevent.event import Event
from locust.env import Environment
from locust.log import setup_logging

from loadtest import tables
from loadtest.agent import Agent
from loadtest.coldstart import Arm, ColdStart
from loadtest.figures import shown
from loadtest.profiles import Profile, Stage
from loadtest.recorder import Recorder
from loadtest.results import Gate
from loadtest.session import Session, run_over
from loadtest.users.coldstart import cold_start_begun, cold_start_done

log = logging.getLogger("loadtest")
PROGRESS_SECONDS = 2.0
DRAIN_SECONDS = 10.0
LONG_SECONDS = 10.0  # of one cold start, until it is said what is being waited for


@dataclass(frozen=True)
class Limits:
    """What a run must keep to; None: not asked for."""

    fail_ratio: float = 0.0
    p95_ms: float | None = None
    first_token_ms: float | None = None
    cold_ready_s: float | None = None


def say(text: str) -> None:
    """Progress, for people: on standard error, so that standard output can be piped."""
    print(text, file=sys.stderr, flush=True)


class Run:
    """One headless run of a profile; afterwards `environment` and the session's recorder hold what was measured."""

    def __init__(self, session: Session, options: Namespace, needs_all_starts: bool = False) -> None:
        """`needs_all_starts`: a start that cannot be tried ends the run, since half of a comparison is none."""
        self.session = session
        self.needs_all_starts = needs_all_starts
        self.options = options
        self.environment: Any = None
        self.problems: list[str] = []

    def profile(self, profile: Profile, seconds: float | None, users: int | None) -> None:
        """Run its stages; `seconds` and `users` replace those of every stage that has them."""
        setup_logging("WARNING")
        log.addFilter(lambda record: record.levelno < logging.ERROR)  # errors are said as progress, and at the end
        for number, stage in enumerate(profile.stages, 1):
            self._stage(stage, f"[{number}/{len(profile.stages)}] {stage.name}", seconds, users)
            if self.problems:
                return

    def _stage(self, stage: Stage, label: str, seconds: float | None, users: int | None) -> None:
        duration = (seconds or stage.seconds) if stage.seconds else None
        count = (users or stage.users) if stage.seconds else stage.users
        options = Namespace(**{**vars(self.options), **stage.options, "headless": True, "num_users": count})
        environment = Environment(user_classes=[stage.user], host=self.session.settings.url, parsed_options=options)
        environment.stop_timeout = DRAIN_SECONDS  # requests under way end and count
        self.environment = environment
        self.session.attach(environment)
        self.session.recorder.stage = stage.name
        runner = environment.create_local_runner()
        say(f"{label}: {count} user{'s' if count > 1 else ''}" + (f" for {duration:g} s" if duration else ""))
        began = time.monotonic()
        with Watch(label, self.needs_all_starts, self.session.agent(None)) as watch:
            try:
                runner.start(count, spawn_rate=count)
                while not watch.over.wait(PROGRESS_SECONDS):
                    self.session.recorder.tick(runner.user_count)
                    watch.remind()
                    if self.session.preparing:
                        began = time.monotonic()
                        say(f"{label}: {self.session.preparing}")
                        continue
                    passed = time.monotonic() - began
                    if duration:
                        say(f"{label}: {passed:4.0f} s  {_progress(self.session.recorder)}")
                        if passed >= duration:
                            break
            finally:
                runner.quit()
        self.problems += [problem for problem in (watch.problem, self.session.problem) if problem]
        self.problems += [f"{error['msg']} ({error['count']} times)" for error in runner.exceptions.values()]


class Watch:
    """Follows the events of a stage while it is entered: says each cold start, and sets `over` when the stage has to end."""

    def __init__(self, label: str, needs_all_starts: bool, agent: Agent) -> None:
        self.over = Event()
        self._agent = agent
        self.problem: str | None = None
        self._label = label
        self._needs_all_starts = needs_all_starts
        self._waiting_for = ""
        self._since = self._said = 0.0
        self._listeners = ((cold_start_begun, self._begun), (cold_start_done, self._done), (run_over, self._over))

    def __enter__(self) -> "Watch":
        for hook, listener in self._listeners:
            hook.add_listener(listener)
        return self

    def __exit__(self, *_: object) -> None:
        for hook, listener in self._listeners:
            hook.remove_listener(listener)

    def remind(self) -> None:
        """Say what is being waited for, now and then: an archive of 1 GB takes minutes to build."""
        now = time.monotonic()
        if self._waiting_for and now - self._said >= LONG_SECONDS:
            self._said = now
            doing = self._agent.cold_start_progress()
            say(f"{self._label}: {self._waiting_for}: {doing or 'waiting'} ({now - self._since:.0f} s)")

    def _begun(self, arm: Arm, **_: Any) -> None:
        self._waiting_for = arm.title
        self._since = self._said = time.monotonic()

    def _done(self, start: ColdStart | None, **_: Any) -> None:
        self._waiting_for = ""
        if start is None:
            self.over.set()
            return
        if start.skipped and self._needs_all_starts:
            self.problem = self.problem or str(start.error)  # said at the end
            self.over.set()
            return
        say(f"{self._label}: {_one_start(start)}")

    def _over(self, **_: Any) -> None:
        self.over.set()


def _progress(recorder: Recorder) -> str:
    stage = [one for key, one in recorder.series.items() if key.stage == recorder.stage]
    return "  ".join(
        f"{shown(one.rate(one.requests - one.failures), '/s')}  p50 {shown(one.latency.percentile(0.5), 'ms')}  "
        f"p95 {shown(one.latency.percentile(0.95), 'ms')}  failed {one.failures}"
        for one in stage
    ) or "no answer yet"  # fmt: skip


def _one_start(start: ColdStart) -> str:
    if start.error:
        return f"{start.arm}: {start.error}"
    ready, first = shown(start.ready_s, "s"), shown(start.first_s, "s")
    return f"{start.model} {start.release} {start.arm} #{start.round}: READY after {ready}, first token after {first}"


def gates(recorder: Recorder, limits: Limits) -> list[Gate]:
    """The conditions of a run. Failures are always one; a limit with nothing measured under it has failed."""
    requests = sum(one.requests for one in recorder.series.values())
    failed = sum(one.failures for one in recorder.series.values())
    found: list[Gate] = []
    if requests:
        share = failed / requests
        found.append(
            Gate(
                "failed requests",
                f"at most {limits.fail_ratio:.2%}",
                f"{failed} of {requests}",
                share <= limits.fail_ratio,
            )
        )
    tried = [start for start in recorder.cold_starts if not start.skipped]
    if tried:
        errors = [start for start in tried if start.error]
        found.append(Gate("failed starts", "none", f"{len(errors)} of {len(tried)}", not errors))
    if not requests and not tried:
        found.append(Gate("anything measured", "a request or a start", "nothing", False))
    worst = {
        "p95 ms": (limits.p95_ms, [one.latency.percentile(0.95) for one in recorder.series.values()]),
        "first token p95 ms": (limits.first_token_ms, [one.first.percentile(0.95) for one in recorder.series.values()]),
        "slim cold READY, median s": (limits.cold_ready_s, _slim_ready(recorder)),
    }
    for name, (limit, values) in worst.items():
        if limit is not None:
            known = [value for value in values if value is not None]
            ok = bool(known) and max(known) <= limit
            found.append(Gate(name, f"at most {limit:g}", shown(max(known, default=None)), ok))
    return found


def _slim_ready(recorder: Recorder) -> list[float | None]:
    by = tables.groups(recorder.cold_starts)
    found = [tables.spread(starts, "ready_s") for (_, _, arm), starts in by.items() if arm == "slim-cold"]
    return [one.median if one else None for one in found]
