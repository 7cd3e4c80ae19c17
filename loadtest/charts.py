"""The recorder as charts: plotly figures as plain data, drawn by plotly.js on the page and in the report alike.

Made by hand instead of with plotly's Python classes: these would be imported and validated on Locust's one thread, 0.4 s in
which no user gets its answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtest import tables
from loadtest.coldstart import ARMS, ColdStart
from loadtest.figures import Spread, shown, three_digits
from loadtest.recorder import Recorder

# Seen as well on a white page as on a dark one.
COLOURS = ("#4c78d8", "#3fa34d", "#d9534f", "#a56cc1", "#e69f00", "#17becf", "#a0705e", "#e377c2", "#bcbd22", "#5fb7a5")
REST, FIRST = "#9aa3b0", "#6b7c93"
IN_ORDER = ("register", "start", "resolve", "fetch", "link", "import", "load")
MARGIN = {"t": 20, "r": 30, "b": 50}
TICKS = [n * 10**power for power in range(-2, 4) for n in (1, 2, 3, 5, 7)]  # of a logarithmic axis
LEGEND = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}


@dataclass(frozen=True)
class Chart:
    """One figure of plotly.js: `tab` says under which tab it belongs."""

    key: str
    tab: str
    title: str
    note: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]


PLOTLY = Path(__file__).parent / "vendor" / "plotly-basic.min.js"


def plotly_js() -> str:
    """plotly.js, bars and lines alone (1.2 MB; all of it is 4.8), so that neither page nor report needs the network."""
    return PLOTLY.read_text(encoding="utf-8")


def charts(recorder: Recorder) -> list[Chart]:
    """All figures that have something to show."""
    starts = [start for start in recorder.cold_starts if start.error is None]
    found: list[Chart] = []
    if starts:
        by = tables.groups(starts)
        found += [_phases(by), _each(by), _taken(by), _due(recorder), _archives(by)]
    found += _latency_over_time(recorder) + _latency_over_load(recorder) + _streams(recorder)
    return [chart for chart in found if chart.data]


Groups = dict[tuple[str, str, str], list[ColdStart]]


def _label(key: tuple[str, str, str]) -> str:
    model, release, arm = key
    return f"{ARMS[arm].title}<br>{model} {release}"


def _bars(rows: int) -> dict[str, Any]:
    names = {"autorange": "reversed", "automargin": True, "showgrid": False}
    return {"barmode": "stack", "height": 160 + 46 * rows, "yaxis": names,
            "legend": LEGEND, "margin": {**MARGIN, "l": 170}}  # fmt: skip


def _axis(title: str, **more: Any) -> dict[str, Any]:
    """`standoff` and `automargin` keep the title off the numbers."""
    return {"title": {"text": title, "standoff": 12}, "automargin": True, **more}


def _median(starts: Sequence[ColdStart], phase: str) -> float:
    found = Spread.of(start.phases.get(phase, 0.0) for start in starts)
    return found.median if found else 0.0


def _phases(by: Groups) -> Chart:
    """Bars by phase. What the phases do not explain of the time to READY, and the first token, are bars of their own."""
    seen = {p for starts in by.values() for start in starts for p in start.phases}
    names = [*(p for p in IN_ORDER if p in seen), *sorted(seen.difference(IN_ORDER))]
    labels = [_label(key) for key in by]
    columns: dict[str, list[float]] = {name: [] for name in (*names, "other, to READY", "READY to first token")}
    for starts in by.values():
        ready, first = tables.spread(starts, "ready_s"), tables.spread(starts, "first_s")
        known = {name: _median(starts, name) for name in names}
        for name, seconds in known.items():
            columns[name].append(seconds)
        to_ready = ready.median if ready else 0.0
        columns["other, to READY"].append(max(0.0, to_ready - sum(known.values())))
        columns["READY to first token"].append(max(0.0, first.median - to_ready) if first else 0.0)
    colours = [*(COLOURS[i % len(COLOURS)] for i in range(len(names))), REST, FIRST]
    data = [
        {"type": "bar", "orientation": "h", "name": name, "y": labels, "x": seconds, "marker": {"color": colour},
         "hovertemplate": "%{x:.3g} s<extra>" + name + "</extra>"}
        for (name, seconds), colour in zip(columns.items(), colours, strict=True)
        if any(seconds)
    ]  # fmt: skip
    layout = {
        **_bars(len(labels)),
        "xaxis": _axis("seconds from the trigger, medians", rangemode="tozero"),
    }
    note = (
        "Medians of each phase. An embedded archive is built before the trigger: see “Building what is registered”. The operating "
        "system's page cache is left as it is, but for the starts named “from disk”."
    )
    return Chart("phases", "cold-start", "From the trigger to the first token, by phase", note, data, layout)


def _each(by: Groups) -> Chart:
    data = [
        {"type": "scatter", "mode": "markers", "name": _label(key), "y": [_label(key)] * len(starts),
         "x": [start.ready_s for start in starts], "marker": {"size": 11, "opacity": 0.6, "color": COLOURS[i % len(COLOURS)]},
         "hovertemplate": "%{x:.3g} s<extra>round %{text}</extra>", "text": [str(start.round) for start in starts]}
        for i, (key, starts) in enumerate(by.items())
    ]  # fmt: skip
    layout = {**_bars(len(by)), "showlegend": False, "xaxis": _axis("seconds to READY", type="log", tickvals=TICKS)}
    return Chart("each", "cold-start", "Every start", "One dot a start, on a logarithmic scale.", data, layout)


def _taken(by: Groups) -> Chart:
    """Disk and memory."""
    kinds = (("disk_bytes", "on disk", COLOURS[5]), ("peak_memory_bytes", "peak memory", COLOURS[4]))
    labels = [_label(key) for key in by]
    data = [
        {"type": "bar", "orientation": "h", "name": name, "y": labels, "marker": {"color": colour},
         "x": [found.median / 1e6 if (found := tables.spread(starts, what)) else None for starts in by.values()]}
        for what, name, colour in kinds
        if any(tables.spread(starts, what) for starts in by.values())
    ]  # fmt: skip
    layout = {**_bars(len(by)), "barmode": "group", "xaxis": _axis("MB, medians", rangemode="tozero")}
    note = (
        "On disk: archive, TorchServe's unpacked copy and the node's cache. Memory: the highest sum of Java's and the workers' Pss "
        "seen during a start; files that were only read or written through the page cache are not in it."
    )
    return Chart("taken", "cold-start", "Disk and memory that a start takes", note, data, layout)


def _due(recorder: Recorder) -> Chart:
    """Three bars a form: from the first to the second the zygote's part, from the second to the third the bucket's."""
    rows = [row for row in tables.due(recorder).rows if str(row["what"]).endswith("to READY")]
    labels = [f"{str(row['what']).removesuffix(', to READY')}<br>{row['model']}" for row in rows]
    kinds = (
        ("stock", "embedded, stock", COLOURS[2]),
        ("same", "embedded, on the zygote", COLOURS[4]),
        ("slim", "slim, empty cache", COLOURS[0]),
    )
    data = [
        {"type": "bar", "orientation": "h", "name": name, "y": labels, "x": [row[key] for row in rows],
         "marker": {"color": colour}, "hovertemplate": "%{x:.3g} s<extra>" + name + "</extra>"}
        for key, name, colour in kinds
    ]  # fmt: skip
    layout = {
        **_bars(2 * len(rows)),
        "barmode": "group",
        "xaxis": _axis("seconds to READY, medians", rangemode="tozero"),
    }
    note = (
        "What the zygote saves: from the first bar to the second, the same archive with forked workers. What the bucket saves: "
        "from the second to the third, the same workers with the weights in the bucket. Building the archives comes on top, below."
    )
    return Chart(
        "due", "compare", "What is due to the zygote, and what to the bucket", note, data if rows else [], layout
    )


def _archives(by: Groups) -> Chart:
    built = {key: tables.spread(starts, "build_s") for key, starts in by.items()}
    labels = [_label(key) for key, found in built.items() if found]
    seconds = [found.median for found in built.values() if found]
    sizes = [tables.spread(by[key], "archive_bytes") for key, found in built.items() if found]
    text = [
        f"{shown(s)} s, {shown(size.median / 1e6 if size else None)} MB" for s, size in zip(seconds, sizes, strict=True)
    ]
    data = [
        {"type": "bar", "orientation": "h", "y": labels, "x": seconds, "text": text, "marker": {"color": COLOURS[3]}}
    ]
    layout = {**_bars(len(labels)), "showlegend": False, "xaxis": _axis("seconds to build the archive")}
    return Chart("archives", "compare", "Building what is registered", "Once for each release, before any start of it.",
                 data if labels else [], layout)  # fmt: skip


def _latency_over_time(recorder: Recorder) -> list[Chart]:
    data: list[dict[str, Any]] = []
    for i, (key, points) in enumerate(recorder.points.items()):
        name = " ".join(part for part in (key.stage, key.model, key.kind) if part)
        seen = [point for point in points if point.requests]
        for what, dash in (("p50_ms", "solid"), ("p95_ms", "dot")):
            data.append({
                "type": "scatter", "mode": "lines+markers", "name": f"{name} {what[:3]}",
                "x": [point.at * 1000 for point in seen], "y": [getattr(point, what) for point in seen],
                "line": {"dash": dash, "color": COLOURS[i % len(COLOURS)]}, "marker": {"size": 4},
            })  # fmt: skip
    layout = {
        "height": 380,
        "xaxis": {"type": "date", "tickangle": 0, "nticks": 7},
        "yaxis": _axis("latency, ms", rangemode="tozero"),
        "legend": LEGEND,
        "margin": MARGIN,
    }
    return [Chart("latency", "compare", "Latency over time", "Each point: the requests since the point before it.",
                  data, layout)]  # fmt: skip


def _latency_over_load(recorder: Recorder) -> list[Chart]:
    """Throughput on one axis, latency on the other: a point for each step of a headless run, on the page each number of users."""
    steps: dict[str, list[tuple[float, float, str]]] = {}
    for key, one in recorder.series.items():
        rate, p95 = one.rate(one.requests - one.failures), one.latency.percentile(0.95)
        if key.stage and rate is not None and p95 is not None:
            loop = "open loop" if key.stage.startswith("open loop") else "closed loop"
            steps.setdefault(f"{key.model} {key.kind}, {loop}", []).append((three_digits(rate), p95, key.stage))
    # Users pause while a start is measured, and one fewer is left after the last: that is no step of load.
    for key, loads in ({} if recorder.cold_starts else recorder.loads).items():
        for users, load in sorted(loads.items()):
            p95 = load.latency.percentile(0.95)
            if not key.stage and p95 is not None:
                rate = three_digits(load.latency.count / load.seconds)
                steps.setdefault(f"{key.model} {key.kind}", []).append((rate, p95, f"{users} user{'s' * (users > 1)}"))
    data = [
        {"type": "scatter", "mode": "lines+markers+text", "name": f"{name}, p95", "x": [s[0] for s in found],
         "y": [s[1] for s in found], "text": [s[2] for s in found], "textposition": "top center",
         "cliponaxis": False, "showlegend": True, "line": {"color": COLOURS[i % len(COLOURS)]}}
        for i, (name, found) in enumerate(steps.items())
        if len(steps.get(name.replace("open loop", "closed loop"), [])) > 1
    ]  # fmt: skip
    layout = {
        "height": 380,
        "xaxis": _axis("requests/s", rangemode="tozero"),
        "yaxis": _axis("p95 latency, ms", rangemode="tozero"),
        "legend": LEGEND,
        "margin": MARGIN,
    }
    return [Chart("load", "compare", "Latency over load", "One point a step; where it bends, the server is full.",
                  data, layout)]  # fmt: skip


def _streams(recorder: Recorder) -> list[Chart]:
    rows = tables.streaming(recorder).rows
    marks = ("p50", "p95", "p99")
    data = [
        {"type": "bar", "name": f"{row['what']}: {label}", "x": list(marks), "y": [row[f"{what}_{mark}"] for mark in marks],
         "marker": {"color": COLOURS[i % len(COLOURS)]}}
        for i, (row, what, label) in enumerate(
            (row, what, label) for row in rows for what, label in (("first", "first token"), ("gap", "between tokens"))
        )
    ]  # fmt: skip
    layout = {
        "height": 360,
        "barmode": "group",
        "xaxis": {"showgrid": False},
        "yaxis": _axis("ms", rangemode="tozero"),
        "legend": LEGEND,
        "margin": MARGIN,
    }
    return [Chart("streams", "streaming", "Time to first token, and between tokens", "Percentiles over all streams.",
                  data, layout)]  # fmt: skip
