"""Hooks us into a Locust process: arguments, defaults, three-digit statistics, the session, the tabs, distributed mode."""

from typing import Any

import locust.stats
from locust import events

from loadtest import distributed, webui
from loadtest.figures import three_digits
from loadtest.options import ServedModels, add_arguments
from loadtest.session import Session, run_over
from loadtest.settings import LoadtestSettings
from weightless.errors import SettingsError


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
        environment.shape_class = None  # Locust takes the first one that it finds; here only the form picks one
        session = Session(settings).attach(environment)
        if environment.web_ui:
            webui.extend(environment, session)
        distributed.distribute(environment, session)

    events.init_command_line_parser.add_listener(arguments)
    events.init.add_listener(init)
    run_over.add_listener(distributed.stop)
