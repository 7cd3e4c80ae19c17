"""Our part of Locust's page: the tabs "Cold start", "Compare" and "Streaming", a page with charts, CSV and JSON.

Locust's extra tabs hold tables only, so a small script puts a frame with our charts below the table of whichever of our tabs
is open; the same charts are a page of their own at /weightless/.
"""

import hmac
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
from flask import Blueprint, Response, jsonify, redirect, render_template, request, session, url_for
from flask_login import UserMixin, login_user  # type: ignore[import-untyped]

from loadtest import tables
from loadtest.charts import plotly_js
from loadtest.errors import LoadtestError
from loadtest.options import EMBEDDINGS, GENERATION, NAMES, Options, chosen, to_start
from loadtest.recorder import Recorder
from loadtest.results import drawing, result
from loadtest.session import Session
from weightless.errors import SettingsError

TICK_SECONDS = 2.0
TABS = (tables.cold_start, tables.compare, tables.streaming)
FRAME = Path(__file__).parent / "templates" / "frame.html"


def extend(environment: Any, shared: Session) -> None:
    """Add our tabs and routes to the environment's page and keep the charts' points coming."""
    web_ui, recorder = environment.web_ui, shared.recorder
    base = (environment.parsed_options.web_base_path if environment.parsed_options else "") or ""
    if web_ui.web_login:
        _protect(environment, shared, base)
    empty = [table(recorder) for table in TABS]
    web_ui.template_args |= {
        "extended_tabs": [{"title": table.title, "key": table.key} for table in empty],
        "extended_tables": [
            {"key": table.key, "structure": [{"key": key, "title": title} for key, title in table.columns]}
            for table in empty
        ],
        "extended_csv_files": [
            {"href": "./weightless/cold-start.csv", "title": "Download cold starts CSV (medians)"},
            {"href": "./weightless/samples.csv", "title": "Download cold starts CSV (every start, by phase)"},
            {"href": "./weightless/inference.csv", "title": "Download inference CSV (three digits)"},
            {"href": "./weightless/result.json", "title": "Download all results JSON"},
            {"href": "./weightless/", "title": "Open the charts on a page of their own"},
        ],
    }
    web_ui.app.register_blueprint(_routes(environment, shared, base))
    web_ui.app.before_request(lambda: _check_form(environment, shared, base))
    web_ui.app.after_request(lambda response: _add_ours(response, recorder, base))
    gevent.spawn(_tick, environment, recorder)


def _tick(environment: Any, recorder: Recorder) -> None:
    while True:
        gevent.sleep(TICK_SECONDS)
        if environment.runner.state in ("spawning", "running"):
            recorder.tick(environment.runner.user_count)


def _routes(environment: Any, shared: Session, base: str) -> Blueprint:
    routes = Blueprint("weightless", __name__, url_prefix=f"{base}/weightless", template_folder="templates")
    recorder = shared.recorder
    guard: Callable[[Any], Any] = environment.web_ui.auth_required_if_enabled

    @routes.get("/")
    @guard
    def page() -> str:
        return render_template("page.html", live=True, result=None, plotly=None)

    @routes.get("/data.json")
    @guard
    def data() -> Response:
        return jsonify({"state": environment.runner.state, **drawing(recorder)})

    @routes.get("/plotly.js")
    @guard
    def plotly() -> Response:
        return Response(plotly_js(), mimetype="text/javascript", headers={"Cache-Control": "max-age=86400"})

    @routes.get("/result.json")
    @guard
    def everything() -> Response:
        found = json.dumps(result(environment, shared, profile="page"), indent=2)
        return Response(found, mimetype="application/json", headers=_attachment("weightless-result.json"))

    @routes.get("/<name>.csv")
    @guard
    def csv(name: str) -> Response:
        known = {t.key: t for t in (*tables.shown_tables(recorder), tables.samples(recorder))}
        if name not in known:
            return Response(f"required one of {', '.join(known)}, found {name}\n", 404, mimetype="text/plain")
        return Response(known[name].csv(), mimetype="text/csv", headers=_attachment(f"weightless-{name}.csv"))

    return routes


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f"attachment; filename={name}"}


def _check_form(environment: Any, shared: Session, base: str) -> Response | None:
    """Refuse a start form before Locust takes it over, so that the form itself says what is wrong."""
    if request.method != "POST" or request.path != f"{base}/swarm":
        return None
    given = {**vars(environment.parsed_options), **{name: request.form[name] for name in NAMES if name in request.form}}
    if "cold_start_variants" in request.form:
        given["cold_start_variants"] = ",".join(request.form.getlist("cold_start_variants"))
    users = request.form.getlist("user_classes") or [user.__name__ for user in environment.user_classes]
    host = request.form.get("host") or environment.host
    try:
        options = Options.read(given)
        agent = shared.agent(host)
        status = agent.status()
        if {"InferenceUser", "StreamingUser", "EmbeddedInferenceUser"} & set(users):
            chosen(options.model, status.ready(GENERATION), GENERATION, agent.url)
        if "EmbeddingsUser" in users:
            chosen(options.embedding_model, status.ready(EMBEDDINGS), EMBEDDINGS, agent.url)
        if "ColdStartUser" in users:
            to_start(options, agent.releases())
    except (LoadtestError, SettingsError) as error:
        return jsonify({"success": False, "message": str(error), "host": host})
    return None


def _add_ours(response: Response, recorder: Recorder, base: str) -> Response:
    if request.path == f"{base}/stats/requests" and response.is_json:
        ours = [{"key": table.key, "data": _texts(table)} for table in (build(recorder) for build in TABS)]
        response.set_data(json.dumps({**response.get_json(), "extended_stats": ours}))
    elif request.path == f"{base}/" and response.mimetype == "text/html":
        response.set_data(response.get_data(as_text=True).replace("</body>", FRAME.read_text() + "</body>"))
    return response


def _texts(table: tables.Table) -> list[dict[str, Any]]:
    return [{key: "-" if value is None else value for key, value in row.items()} for row in table.rows]


class _Person(UserMixin):  # type: ignore[misc]  # flask-login ships no types
    id = "loadtest"


def _protect(environment: Any, shared: Session, base: str) -> None:
    """`--web-login`: the page asks for the API key as its password.

    Raises:
        SettingsError: no API key is set, so nothing could be asked for.
    """
    key = shared.settings.headers().get("Authorization", "").removeprefix("Bearer ")
    if not key:
        raise SettingsError("--web-login: required API_KEY, which is the page's password too; found none")
    web_ui = environment.web_ui
    web_ui.app.config["SECRET_KEY"] = secrets.token_hex(32)
    web_ui.login_manager.user_loader(lambda _: _Person())
    web_ui.auth_args = {
        "title": "Weightless load test",
        "custom_form": {
            "inputs": [{"label": "API key", "name": "key", "is_secret": True, "is_required": True}],
            "callback_url": f"{base}/weightless-login",
            "submit_button_text": "Log in",
        },
    }
    routes = Blueprint("weightless_login", __name__, url_prefix=base)

    @routes.post("/weightless-login")
    def login() -> Any:
        if hmac.compare_digest(request.form.get("key", "").encode(), key.encode()):
            login_user(_Person())
            return redirect(url_for("locust.index"))
        session["auth_error"] = "That is not the API key; `make credentials` prints it"
        return redirect(url_for("locust.login"))

    web_ui.app.register_blueprint(routes)
