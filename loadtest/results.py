"""A run as data and as a page that stands alone: JSON and HTML with every figure, the release, versions, machine, settings."""

import importlib.metadata
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from loadtest import tables
from loadtest.charts import charts, plotly_js
from loadtest.coldstart import ARMS
from loadtest.errors import LoadtestError
from loadtest.options import NAMES
from loadtest.recorder import Recorder
from loadtest.session import Session

SCHEMA = 1
PACKAGES = ("locust", "geventhttpclient", "gevent")
SPREADS = (
    "ready_s",
    "first_s",
    "build_s",
    "archive_bytes",
    "moved_bytes",
    "disk_bytes",
    "peak_memory_bytes",
    "link_bytes_per_s",
)


@dataclass(frozen=True)
class Gate:
    """One condition of a run: what was required, what was found."""

    name: str
    required: str
    found: str
    ok: bool


def machine() -> dict[str, Any]:
    """The machine that the load came from. On one machine with the stack it is the stack's too."""
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.processor() or "unknown",
        "cores": os.cpu_count(),
        "memory": _gigabytes(_field(Path("/proc/meminfo"), "MemTotal")),
        "kernel": platform.release(),
        "machine": platform.machine(),
    }


def _gigabytes(kilobytes: str | None) -> str:
    """Of /proc/meminfo's `24684084 kB`, whose kB are 1,024 bytes."""
    return f"{int(kilobytes.split()[0]) * 1024 / 1e9:.1f} GB" if kilobytes else "unknown"


def _field(path: Path, name: str) -> str | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def versions() -> dict[str, str]:
    """Of what asked; those of what answered are told by the agent, which may run elsewhere."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def result(
    environment: Any, shared: Session, *, profile: str, gates: list[Gate] | None = None, started: float | None = None
) -> dict[str, Any]:
    """Everything of a run as plain data. Holds no key: of the settings, only the fields of the form and the address."""
    recorder = shared.recorder
    agent = shared.agent(environment.host)
    options = vars(environment.parsed_options) if environment.parsed_options else {}
    began = started or environment.stats.start_time
    return {
        "schema": SCHEMA,
        "profile": profile,
        "started": _iso(began) if began else None,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "agent": {"url": agent.url, **_served(shared, environment.host)},
        "machine": machine(),
        "versions": versions(),
        "settings": {name: options[name] for name in NAMES if name in options},
        **figures(recorder),
        "gates": [asdict(gate) for gate in gates or []],
        "ok": all(gate.ok for gate in gates or []),
    }


def figures(recorder: Recorder) -> dict[str, Any]:
    """What was measured: the tables, every cold start, the spread of each arm, the points over time."""
    spreads = {
        f"{model} {release} {arm}": {
            what: found.as_dict() for what in SPREADS if (found := tables.spread(starts, what))
        }
        for (model, release, arm), starts in tables.groups(recorder.cold_starts).items()
    }
    points = [{**asdict(key), "points": [asdict(p) for p in found]} for key, found in recorder.points.items()]
    return {
        "tables": tables.plain(recorder),
        "cold_starts": {"arms": {name: arm.title for name, arm in ARMS.items()}, "spreads": spreads,
                        "starts": [start.as_dict() for start in recorder.cold_starts]},
        "points": points,
        "measured": {f"{s.model} {s.release}": s.digest for s in recorder.cold_starts if s.digest},
    }  # fmt: skip


def drawing(recorder: Recorder) -> dict[str, Any]:
    """What page.html draws: the tables and the charts."""
    shown = {t.key: asdict(t) for t in tables.shown_tables(recorder)}
    return {"charts": [asdict(chart) for chart in charts(recorder)], "tables": shown}


def _served(shared: Session, host: str | None) -> dict[str, Any]:
    """Versions, device and releases as the agent tells them at the end of the run."""
    try:
        status = shared.agent(host).status()
    except LoadtestError as error:
        return {"version": "unknown", "versions": {}, "error": str(error), "models": {}}
    models = {
        m.name: {"release": m.release, "digest": m.digest, "task": m.task, "state": m.state} for m in status.models
    }
    raw = status.raw
    return {
        "version": status.version,
        "versions": raw.get("versions", {}),
        "device": raw.get("device"),
        "models": models,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def report(found: dict[str, Any], recorder: Recorder) -> str:
    """The run as one HTML page with its plots, that needs no network."""
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    drawn = drawing(recorder)
    return templates.get_template("page.html").render(live=False, result=found, drawn=drawn, plotly=plotly_js())
