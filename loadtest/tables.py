"""The recorder as tables, the same ones for the page's tabs, the CSV files and the report."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loadtest.coldstart import ARMS, FORMS, PAIRS, SAME_WORKERS, ColdStart
from loadtest.figures import Spread, ratio, three_digits
from loadtest.recorder import Key, Recorder

MEGA = 1e6
STAGES = (("ready_s", "to READY"), ("first_s", "to first token"))
Cell = str | float | None


@dataclass(frozen=True)
class Table:
    """Columns (key, heading) and rows, and the tab it belongs under. Numbers have three digits; None was not measured.
    `empty`: what is said in place of rows.

    No column is called `name`: Locust's page would sort the rows by it, and ours have an order.
    """

    key: str
    title: str
    columns: tuple[tuple[str, str], ...]
    rows: list[dict[str, Cell]]
    tab: str
    empty: str = ""

    def csv(self) -> str:
        """Comma-separated, with the headings in the first line and nothing for what was not measured."""
        out = io.StringIO()
        writer = csv.writer(out)
        writer.writerow([heading for _, heading in self.columns])
        writer.writerows([["" if row[key] is None else row[key] for key, _ in self.columns] for row in self.rows])
        return out.getvalue()


def groups(starts: Sequence[ColdStart]) -> dict[tuple[str, str, str], list[ColdStart]]:
    """Starts by model, release and arm, arms in their fixed order. Failed starts of a group that has others are in it."""
    order = {name: i for i, name in enumerate(ARMS)}
    releases = {(s.model, s.arm): s.release for s in starts if s.release}
    found: dict[tuple[str, str, str], list[ColdStart]] = {}
    for start in starts:
        release = start.release or releases.get((start.model, start.arm)) or "-"
        found.setdefault((start.model, release, start.arm), []).append(start)
    return dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][1], order[item[0][2]])))


def spread(starts: Sequence[ColdStart], what: str) -> Spread | None:
    """Median, min and max of one figure of a group of starts."""
    return Spread.of(getattr(start, what) for start in starts)


def _three(value: float | None, over: float = 1.0) -> float | None:
    return None if value is None else three_digits(value / over)


def cold_start(recorder: Recorder) -> Table:
    columns = (
        ("what", "Start"),
        ("model", "Model"),
        ("good", "Starts"),
        ("failed", "Failed"),
        ("ready", "To READY, median s"),
        ("ready_range", "min to max"),
        ("first", "To first token, median s"),
        ("first_range", "min to max "),
        ("build", "Archive built in s"),
        ("archive", "Archive MB"),
        ("disk", "On disk MB"),
        ("memory", "Peak memory MB"),
        ("moved", "Out of the store MB"),
        ("note", "Note"),
    )
    rows: list[dict[str, Cell]] = []
    for (model, release, arm), starts in groups(recorder.cold_starts).items():
        ready, first = spread(starts, "ready_s"), spread(starts, "first_s")
        errors = [start.error for start in starts if start.error]
        rows.append(
            {
                "what": ARMS[arm].title,
                "model": model if release == "-" else f"{model} {release}",
                "good": len(starts) - len(errors),
                "failed": sum(start.error is not None and not start.skipped for start in starts),
                "ready": _three(ready.median if ready else None),
                "ready_range": _range(ready),
                "first": _three(first.median if first else None),
                "first_range": _range(first),
                "build": _three(_median(starts, "build_s")),
                "archive": _three(_median(starts, "archive_bytes"), MEGA),
                "disk": _three(_median(starts, "disk_bytes"), MEGA),
                "memory": _three(_median(starts, "peak_memory_bytes"), MEGA),
                "moved": _three(_median(starts, "moved_bytes"), MEGA),
                "note": errors[-1] if errors else "",
            }
        )
    return Table("cold-start", "Cold start", columns, rows, "cold-start", "No start yet: ColdStartUser makes them.")


def _range(found: Spread | None) -> str | None:
    return f"{three_digits(found.low):g} to {three_digits(found.high):g}" if found else None


def _median(starts: Sequence[ColdStart], what: str) -> float | None:
    found = spread(starts, what)
    return found.median if found else None


def samples(recorder: Recorder) -> Table:
    """Every cold start by itself, with its phases."""
    phases = list(dict.fromkeys(name for start in recorder.cold_starts for name in start.phases))
    plain = (
        "at",
        "arm",
        "model",
        "release",
        "round",
        "ready_s",
        "first_s",
        "build_s",
        "archive_bytes",
        "bytes_from_store",
        "store_sent_bytes",
        "disk_bytes",
        "peak_memory_bytes",
        "link_bytes_per_s",
        "retries",
        "forked",
    )
    columns = [(name, name) for name in plain] + [(f"phase_{p}", f"phase_{p}_s") for p in phases] + [("error", "error")]
    rows = [
        {**{n: getattr(s, n) for n in plain}, **{f"phase_{p}": s.phases.get(p) for p in phases}, "error": s.error}
        for s in recorder.cold_starts
    ]
    return Table("samples", "Each cold start", tuple(columns), rows, "cold-start")


def compare(recorder: Recorder) -> Table:
    """Ratios of medians, for the pairs of arms that were both measured with one release."""
    columns = (
        ("what", "Compared: one over another"),
        ("model", "Model"),
        ("of", "The one, median s"),
        ("over", "The other, median s"),
        ("ratio", "Ratio"),
        ("times", "Times faster"),
    )
    by = groups(recorder.cold_starts)
    rows: list[dict[str, Cell]] = []
    for model, release in dict.fromkeys((model, release) for model, release, _ in by):
        for one, other in PAIRS:
            for what, label in STAGES:
                of, over = (spread(by.get((model, release, arm), []), what) for arm in (one, other))
                share = ratio(of, over)
                if of is None or over is None or share is None:
                    continue
                rows.append(
                    {
                        "what": f"{ARMS[one].title} over {ARMS[other].title}, {label}",
                        "model": f"{model} {release}",
                        "of": three_digits(of.median),
                        "over": three_digits(over.median),
                        "ratio": three_digits(share),
                        "times": three_digits(1 / share) if share < 1 else None,
                    }
                )
    empty = "No two ways to start were measured yet: ColdStartUser, with two of them that are compared, fills this."
    return Table("compare", "Compare", columns, rows, "compare", empty)


def due(recorder: Recorder) -> Table:
    """What the zygote saves and what the bucket saves, apart: the embedded form on stock, the same on the zygote, and slim.

    Below nothing: it costs that much. The fetch of a folder that lies on the disk already is such a cost of the bucket's.
    """
    columns = (
        ("what", "Form"),
        ("model", "Model"),
        ("built", "Archive built in s"),
        ("stock", "Stock s"),
        ("same", "On the zygote s"),
        ("slim", "Slim, empty cache s"),
        ("zygote", "Saved by the zygote s"),
        ("bucket", "Saved by the bucket s"),
    )
    by = groups(recorder.cold_starts)
    rows: list[dict[str, Cell]] = []
    for model, release in dict.fromkeys((model, release) for model, release, _ in by):
        for form, title in FORMS.items():
            for what, label in STAGES:
                arms = (form, form + SAME_WORKERS, "slim-cold")
                stock, same, slim = (_median(by.get((model, release, arm), []), what) for arm in arms)
                if stock is None or same is None or slim is None:
                    continue
                rows.append(
                    {
                        "what": f"{title}, {label}",
                        "model": f"{model} {release}",
                        "built": _three(_median(by[model, release, form], "build_s")),
                        "stock": three_digits(stock),
                        "same": three_digits(same),
                        "slim": three_digits(slim),
                        "zygote": three_digits(stock - same),
                        "bucket": three_digits(same - slim),
                    }
                )
    return Table("due", "What it is due to", columns, rows, "compare")


def network(recorder: Recorder) -> Table:
    """What the network and the store did to slim starts, where one of them was shaped."""
    columns = (
        ("what", "Start"),
        ("model", "Model"),
        ("fetch", "Fetch, median s"),
        ("rate", "Rate reached Gb/s"),
        ("moved", "Out of the store MB"),
        ("retries", "Requests tried again"),
    )
    by = groups([start for start in recorder.cold_starts if start.error is None])
    rows: list[dict[str, Cell]] = []
    for (model, release, arm), starts in by.items():
        if arm != "slim-cold" and not ARMS[arm].link:
            continue
        fetch = Spread.of(start.phases.get("fetch") for start in starts)
        rows.append(
            {
                "what": ARMS[arm].title,
                "model": f"{model} {release}",
                "fetch": _three(fetch.median if fetch else None),
                "rate": _three(_median(starts, "link_bytes_per_s"), 1e9 / 8),
                "moved": _three(_median(starts, "moved_bytes"), MEGA),
                "retries": _three(_median(starts, "retries")),
            }
        )
    shaped = any(ARMS[arm].link for _, _, arm in by)
    return Table("network", "Network", columns, rows if shaped else [], "cold-start")


def _name(key: Key) -> str:
    stage = key.stage if key.stage != key.kind else ""
    return " ".join(part for part in (key.model, key.release, key.kind, f"({stage})" if stage else "") if part)


def inference(recorder: Recorder) -> Table:
    columns = (
        ("what", "Request"),
        ("requests", "Requests"),
        ("failures", "Failed"),
        ("p50", "p50 ms"),
        ("p95", "p95 ms"),
        ("p99", "p99 ms"),
        ("mean", "Mean ms"),
        ("rate", "Requests/s"),
        ("good", f"Good/s (within {recorder.slo_ms:g} ms)"),
        ("tokens", "Tokens/s"),
    )
    rows: list[dict[str, Cell]] = []
    for key, one in recorder.series.items():
        rows.append(
            {
                "what": _name(key),
                "requests": one.requests,
                "failures": one.failures,
                "p50": one.latency.percentile(0.5),
                "p95": one.latency.percentile(0.95),
                "p99": one.latency.percentile(0.99),
                "mean": _three(one.latency.mean),
                "rate": _three(one.rate(one.requests - one.failures)),
                "good": _three(one.rate(one.good)),
                "tokens": _three(one.rate(one.tokens)) if one.tokens else None,
            }
        )
    return Table("inference", "Inference", columns, rows, "streaming")


def streaming(recorder: Recorder) -> Table:
    columns = (
        ("what", "Stream"),
        ("streams", "Streams"),
        ("failures", "Failed"),
        ("first_p50", "First token p50 ms"),
        ("first_p95", "p95 ms"),
        ("first_p99", "p99 ms"),
        ("gap_p50", "Between tokens p50 ms"),
        ("gap_p95", "p95 ms "),
        ("gap_p99", "p99 ms "),
        ("tokens", "Tokens/s, all users"),
    )
    rows: list[dict[str, Cell]] = []
    for key, one in recorder.series.items():
        if key.kind != "stream":
            continue
        rows.append(
            {
                "what": _name(key),
                "streams": one.requests,
                "failures": one.failures,
                **{f"first_p{p}": one.first.percentile(p / 100) for p in (50, 95, 99)},
                **{f"gap_p{p}": one.gaps.percentile(p / 100) for p in (50, 95, 99)},
                "tokens": _three(one.rate(one.tokens)),
            }
        )
    return Table("streaming", "Streaming", columns, rows, "streaming", "No stream yet: StreamingUser reads them.")


def shown_tables(recorder: Recorder) -> list[Table]:
    """The tables that the page and the report show, in order."""
    return [
        cold_start(recorder),
        network(recorder),
        compare(recorder),
        due(recorder),
        streaming(recorder),
        inference(recorder),
    ]


def plain(recorder: Recorder) -> dict[str, Any]:
    """Every table as plain data, for JSON."""
    return {table.key: table.rows for table in (*shown_tables(recorder), samples(recorder))}
