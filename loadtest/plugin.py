"""Hooks us into a Locust process: arguments, defaults, three-digit statistics, the session, the tabs, distributed mode."""

import logging
from typing import Any

import gevent
import locust.stats
from locust import events
from locust.runners import LocalRunner, MasterRunner, WorkerRunner

from loadtest import webui
from loadtest.figures import three_digits
from loadtest.options import ServedModels, add_arguments
from loadtest.session import Session, run_over, session_of
from loadtest.settings import LoadtestSettings
from weightless.errors import SettingsError

log = logging.getLogger("loadtest")
OVER = "weightless-run-over"


def register() -> None:
    """Add our listeners to Locust's global events; once, from the locustfile.

    Raises:
        SystemExit: a setting is wrong; the message says which.
    """
    try:
        settings = LoadtestSettings.load()
        settings.headers()
    except SettingsError as error:
        raise SystemExit(f"loadtest: {error}") from error
    served = ServedModels(settings)
    locust.stats.bucket_response_time = three_digits

    def arguments(parser: Any, **_: Any) -> None:
        add_arguments(parser, served)
        # The page is for this machine unless LOCUST_WEB_HOST says otherwise; Locust alone would listen everywhere.
        parser.set_defaults(web_host="127.0.0.1", web_port=settings.locust_port, class_picker=True, num_users=8)
        # Who may press its buttons loads the node: where the front door wants a key, the page does too.
        parser.set_defaults(spawn_rate=8, web_login=settings.key() is not None)

    def init(environment: Any, **_: Any) -> None:
        session = Session(settings).attach(environment)
        if environment.web_ui:
            webui.extend(environment, session)
        _distribute(environment)

    events.init_command_line_parser.add_listener(arguments)
    events.init.add_listener(init)
    run_over.add_listener(_stop)


def _distribute(environment: Any) -> None:
    """Workers hand what they recorded to the master with each of Locust's own reports."""
    runner, recorder = environment.runner, session_of(environment).recorder
    if isinstance(runner, WorkerRunner):
        environment.events.report_to_master.add_listener(
            lambda client_id, data: data.update(weightless=recorder.drain())
        )
    if isinstance(runner, MasterRunner):
        environment.events.worker_report.add_listener(
            lambda client_id, data: recorder.merge(data["weightless"]) if "weightless" in data else None
        )
        runner.register_message(OVER, lambda environment, msg, **_: _stop_soon(environment.runner))


def _stop(environment: Any, **_: Any) -> None:
    """A run that is over must stop, also in the workers: a page that says "running" for ever would be wrong."""
    if isinstance(environment.runner, WorkerRunner):
        environment.runner.send_message(OVER)
    elif isinstance(environment.runner, LocalRunner):
        _stop_soon(environment.runner)


def _stop_soon(runner: Any) -> None:
    """Not from within a user's greenlet, which stopping kills; after the page's next look at the figures."""
    gevent.spawn_later(2.5, runner.stop)
