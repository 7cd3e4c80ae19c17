"""A run of the benchmark as results.json, as a table on the terminal, and as a page with plots that needs no network."""

import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from rich import box
from rich.console import Console
from rich.table import Table

from loadtest.bench.experiment import Absent, Bench, Experiment, Ratio, Samples, as_plain
from loadtest.figures import three_digits

SCHEMA = 1
_TEMPLATE = Path(__file__).with_name("page.html")
_DOTS = 420  # width of the plots in units of the drawing


def ratios(experiments: Sequence[Experiment], samples: Samples) -> list[tuple[Ratio, float]]:
    """Every ratio whose samples were taken."""
    found = []
    for experiment in experiments:
        for ratio in experiment.ratios:
            try:
                found.append((ratio, float(f"{ratio.value(samples):.4g}")))
            except Absent:
                continue
    return found


def document(bench: Bench, experiments: Sequence[Experiment], about: dict[str, Any]) -> dict[str, Any]:
    """Everything of a run as plain data. `about`: machine, versions, settings, times."""
    found = ratios(experiments, bench.samples)
    return {
        "schema": SCHEMA,
        "ratios": {ratio.key: value for ratio, value in found},
        "reach": {ratio.key: ratio.reach for ratio, _ in found},
        **about,
        "facts": bench.facts,
        "samples": as_plain(bench.samples),
    }


def write(folder: Path, found: dict[str, Any], bench: Bench, experiments: Sequence[Experiment]) -> None:
    """results.json and index.html into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / "results.json", json.dumps(found, indent=1))
    templates = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = templates.from_string(_TEMPLATE.read_text()).render(
        result=found,
        rows=[_row(ratio, value) for ratio, value in ratios(experiments, bench.samples)],
        plots=[plot for experiment in experiments for plot in _plots(experiment, bench.samples)],
        width=_DOTS,
    )
    _replace(folder / "index.html", page)


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def _row(ratio: Ratio, value: float) -> dict[str, Any]:
    return {
        "key": ratio.key,
        "meaning": ratio.meaning,
        "value": three_digits(value),
        "reach": ratio.reach,
        "reached": ratio.reached(value),
    }


def _plots(experiment: Experiment, samples: Samples) -> list[dict[str, Any]]:
    """One plot for each figure that at least two arms have: a line an arm, a dot a sample."""
    arms = samples.arms(experiment.name)
    figures = dict.fromkeys(name for s in samples.all if s.experiment == experiment.name for name in s.figures)
    plots = []
    for figure in figures:
        values = {arm: _values(samples, arm, figure) for arm in arms}
        values = {arm: found for arm, found in values.items() if found}
        most = max(max(found) for found in values.values())
        if len(values) < 2 or most <= 0:
            continue
        lines = [
            {
                "arm": arm,
                "dots": [round(_DOTS * value / most, 1) for value in found],
                "middle": round(_DOTS * statistics.median(found) / most, 1),
                "median": three_digits(statistics.median(found)),
                "spread": f"{three_digits(min(found))} to {three_digits(max(found))}",
            }
            for arm, found in values.items()
        ]
        plots.append({"title": f"{experiment.name}: {figure}", "lines": lines})
    return plots


def _values(samples: Samples, arm: str, figure: str) -> list[float]:
    try:
        return [value for value in samples.values(arm, figure) if math.isfinite(value)]
    except Absent:
        return []


def show(experiments: Sequence[Experiment], samples: Samples) -> None:
    """The ratios, with where we want them to be."""
    out = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for name, right in (("ratio", False), ("measured", True), ("reach", True), ("", False)):
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    words = {True: "[green]reached[/]", False: "[yellow]not reached[/]", None: ""}
    for ratio, value in ratios(experiments, samples):
        table.add_row(ratio.key, f"{three_digits(value)}", ratio.reach, words[ratio.reached(value)])
    out.print(table)
