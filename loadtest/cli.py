"""`python -m loadtest`: the command line of a headless run."""

import json
import os
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from pathlib import Path
from typing import Any

from loadtest import results, tables, terminal
from loadtest.agent import Agent
from loadtest.errors import InvalidOption, LoadtestError
from loadtest.options import NAMES, Options, ServedModels, add_arguments, to_start
from loadtest.profiles import PROFILES, Profile
from loadtest.runner import Limits, Run, gates, say
from loadtest.session import Session
from loadtest.settings import LoadtestSettings
from loadtest.users.coldstart import ColdStartUser
from weightless.errors import WeightlessError

FAILED, CANNOT = 1, 2


class Parser(ArgumentParser):
    """argparse that takes the words of Locust's parser, so that page and command line share their fields."""

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        kwargs.pop("is_multiple", None)
        return super().add_argument(*args, **kwargs)


def parse(argv: list[str] | None, settings: LoadtestSettings) -> Namespace:
    about = "\n".join(f"  {profile.name:<11} {profile.about}" for profile in PROFILES.values())
    parser = Parser(prog="python -m loadtest", formatter_class=RawDescriptionHelpFormatter,
                    description=f"Load test without the page.\n\nprofiles:\n{about}")  # fmt: skip
    parser.add_argument("--profile", choices=list(PROFILES), default="quick", help="what to do (default: quick)")
    parser.add_argument("--seconds", type=float, help="length of each stage of requests, in place of the profile's")
    parser.add_argument("--users", type=int, help="users in each stage of requests, in place of the profile's")
    parser.add_argument("--out", type=Path, default=Path("build/loadtest"), help="folder of report and result")
    parser.add_argument("--max-fail-ratio", type=float, default=0.0, help="failed requests that are allowed, 0 to 1")
    parser.add_argument("--max-p95-ms", type=float, help="gate: p95 of every kind of request")
    parser.add_argument("--max-first-token-ms", type=float, help="gate: p95 of the time to the first token")
    parser.add_argument("--max-cold-ready-s", type=float, help="gate: median time to READY of a slim cold start")
    add_arguments(parser, ServedModels(settings))
    first, _ = parser.parse_known_args(argv)
    parser.set_defaults(**PROFILES[first.profile].options)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run it. 0: all gates passed; 1: one did not; 2: it could not run."""
    try:
        settings = LoadtestSettings.load()
        settings.headers()
        options = parse(argv, settings)
        _check(options)
        return _run(settings, options, PROFILES[options.profile])
    except WeightlessError as error:
        say(f"loadtest: {error}")
        return CANNOT
    except KeyboardInterrupt:
        say("loadtest: stopped")
        return CANNOT


def _check(options: Namespace) -> None:
    """Raises InvalidOption, before anything is started."""
    Options.read({name: getattr(options, name) for name in NAMES})
    for name, low in (
        ("seconds", 0.0),
        ("users", 0),
        ("max_p95_ms", 0.0),
        ("max_first_token_ms", 0.0),
        ("max_cold_ready_s", 0.0),
    ):
        found = getattr(options, name)
        if found is not None and found <= low:
            raise InvalidOption(f"{name}: required more than {low:g}, found {found:g}")
    if not 0 <= options.max_fail_ratio <= 1:
        raise InvalidOption(f"max_fail_ratio: required a share from 0 to 1, found {options.max_fail_ratio:g}")


def _run(settings: LoadtestSettings, options: Namespace, profile: Profile) -> int:
    session, agent = Session(settings), Agent(settings.url, settings.headers())
    status = agent.status()
    if any(stage.user is ColdStartUser for stage in profile.stages):
        to_start(Options.read(options), agent.releases())  # not after the minutes of the stages before it
    say(f"{profile.name}: {profile.about}\nagent {status.version} at {settings.url}, serving "
        + (", ".join(f"{m.name} {m.release}" for m in status.models if m.ready) or "nothing yet"))  # fmt: skip
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores / 2:
        say(
            f"the machine is busy (load {load:.1f} on {cores} cores): times will be longer than they are; the result says so"
        )
    began, run = time.time(), Run(session, options, profile.needs_baseline)
    run.profile(profile, options.seconds, options.users)
    if run.problems:
        raise LoadtestError(run.problems[0])
    recorder = session.recorder
    limits = Limits(options.max_fail_ratio, options.max_p95_ms, options.max_first_token_ms, options.max_cold_ready_s)
    passed = gates(recorder, limits)
    run.environment.parsed_options = options
    found = results.result(run.environment, session, profile=profile.name, gates=passed, started=began)
    found["machine"]["load before"] = round(load, 2)
    html, data = _write(options.out, profile.name, found, results.report(found, recorder))
    for table in tables.shown_tables(recorder):
        if table.rows:
            print(terminal.text(table), flush=True)
    say("")
    for gate in passed:
        say(f"{'passed' if gate.ok else 'FAILED'}: {gate.name}: required {gate.required}, found {gate.found}")
    say(f"report  {html}\nresult  {data}")
    return 0 if found["ok"] else FAILED


def _write(out: Path, name: str, found: dict[str, Any], page: str) -> tuple[Path, Path]:
    """Raises LoadtestError: the folder cannot be written."""
    html, data = out / f"{name}.html", out / f"{name}.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        html.write_text(page, encoding="utf-8")
        data.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise LoadtestError(f"--out: required a folder that can be written, found {out}: {error.strerror}") from error
    return html, data
