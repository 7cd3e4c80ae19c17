"""The load test's statistics, against cases computed by hand: a wrong percentile or ratio would be a wrong claim.

Nothing here may import locust: it would patch Python's sockets for every other test of the run.
"""

import json
import math

import pytest

from loadtest import terminal
from loadtest.charts import charts
from loadtest.coldstart import ColdStart
from loadtest.figures import Histogram, Spread, ratio, shown, three_digits
from loadtest.recorder import Key, Outcome, Recorder, Series
from loadtest.tables import cold_start, compare, due, inference, network, samples, streaming


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (4.5312, 4.53),
        (0.00123456, 0.00123),
        (147.3, 147),
        (3432, 3430),
        (58760, 58800),
        (99.96, 100),
        (0, 0),
        (-2.346, -2.35),
    ],
)
def test_three_digits(value: float, kept: float) -> None:
    assert three_digits(value) == kept


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        three_digits(math.nan)


def test_percentiles_are_nearest_rank() -> None:
    """Of 1 … 100 the 50th percentile is 50, the 95th 95, the 99th 99, the 100th 100."""
    histogram = Histogram()
    for value in range(100, 0, -1):
        histogram.add(value)
    assert [histogram.percentile(p) for p in (0.01, 0.5, 0.95, 0.99, 1)] == [1, 50, 95, 99, 100]
    assert histogram.mean == 50.5 and (histogram.low, histogram.high) == (1, 100)


def test_percentiles_of_few_values() -> None:
    """Of 10, 20, 30: p50 is the second (rank ceil(1.5)), p95 and p99 the third."""
    histogram = Histogram()
    for value in (10, 20, 30):
        histogram.add(value)
    assert [histogram.percentile(p) for p in (0.33, 0.5, 0.95, 0.99)] == [10, 20, 30, 30]
    assert Histogram().percentile(0.5) is None
    with pytest.raises(ValueError, match="above 0"):
        histogram.percentile(0)


def test_two_histograms_add_up_to_the_one_of_all_values() -> None:
    whole, left, right = Histogram(), Histogram(), Histogram()
    for i in range(1000):
        value = (i * 7919) % 4999 + 0.25
        whole.add(value)
        (left if i % 3 else right).add(value)
    left.merge(Histogram.from_dict(json.loads(json.dumps(right.as_dict()))))  # as a worker sends it
    assert left.buckets == whole.buckets and left.count == whole.count
    assert left.total == pytest.approx(whole.total) and (left.low, left.high) == (whole.low, whole.high)


def test_spread_and_ratio() -> None:
    slim, embedded = Spread.of([1.0, 1.4, None, 1.2]), Spread.of([12.0, 18.0])
    assert slim == Spread(3, 1.2, 1.0, 1.4)
    assert embedded is not None and embedded.median == 15.0
    assert ratio(slim, embedded) == pytest.approx(0.08)
    assert Spread.of([None]) is None and ratio(slim, None) is None


def test_shown() -> None:
    assert [shown(v) for v in (None, 0.31234, 12, 58_760)] == ["-", "0.312", "12", "58,800"]
    assert shown(1.234, "s") == "1.23 s"


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"arm": "zip", "ready_s": 1.0}, "found arm 'zip'"),
        ({}, "either an error or the time"),
        ({"ready_s": 1.0, "error": "no"}, "either an error or the time"),
        ({"ready_s": 2.0, "first_s": 1.0}, "first token after READY"),
        ({"ready_s": 1.0, "skipped": True}, "a reason"),
    ],
)
def test_a_start_that_contradicts_itself_is_refused(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ColdStart(**{"arm": "mar", "model": "m", "round": 1, "at": 0.0} | wrong)  # type: ignore[arg-type]


def start(arm: str, ready: float, first: float, **more: object) -> ColdStart:
    plain = {"arm": arm, "model": "m", "round": 1, "at": 0.0, "release": "v1", "ready_s": ready, "first_s": first}
    return ColdStart(**plain | more)  # type: ignore[arg-type]


def measured() -> Recorder:
    recorder = Recorder()
    for ready in (1.0, 1.5, 1.1):
        recorder.record_cold_start(
            start(
                "slim-cold",
                ready,
                ready + 0.5,
                bytes_from_store=960_000_000,
                disk_bytes=961_000_000,
                peak_memory_bytes=1_234_000_000,
                phases={"fetch": 0.7, "load": 0.1},
            )
        )
    for ready in (20.0, 10.0):
        built = 80.0 if ready == 20.0 else None
        recorder.record_cold_start(start("mar", ready, ready + 1, build_s=built, archive_bytes=764_000_000))
    recorder.record_cold_start(ColdStart(arm="mar", model="m", round=3, at=0.0, error="it did not start"))
    return recorder


def test_the_tables_of_cold_starts() -> None:
    slim, mar = cold_start(measured()).rows
    assert slim == {
        "what": "slim, empty cache", "model": "m v1", "good": 3, "failed": 0, "ready": 1.1, "ready_range": "1 to 1.5",
        "first": 1.6, "first_range": "1.5 to 2", "build": None, "archive": None, "disk": 961, "memory": 1230,
        "moved": 960, "note": "",
    }  # fmt: skip
    assert (mar["good"], mar["failed"], mar["ready"], mar["build"], mar["archive"]) == (2, 1, 15, 80, 764)
    assert mar["note"] == "it did not start"
    ready, first = compare(measured()).rows
    assert (ready["of"], ready["over"], ready["ratio"], ready["times"]) == (1.1, 15, 0.0733, 13.6)
    assert (first["of"], first["over"], first["ratio"]) == (1.6, 16, 0.1)


def test_what_is_due_to_the_zygote_and_what_to_the_bucket() -> None:
    """By hand: stock 15, on the zygote 10 (median of 9, 10 and 12), slim 1.1."""
    recorder = measured()
    assert due(recorder).rows == [], "two of the three say nothing"
    for ready in (9.0, 12.0, 10.0):
        recorder.record_cold_start(start("mar-zygote", ready, ready + 0.2))
    ready_row, first_row = due(recorder).rows
    assert ready_row == {
        "what": "embedded .mar, to READY", "model": "m v1", "built": 80, "stock": 15, "same": 10, "slim": 1.1,
        "zygote": 5, "bucket": 8.9,
    }  # fmt: skip
    assert (first_row["zygote"], first_row["bucket"]) == (5.8, 8.6)
    chart = next(chart for chart in charts(recorder) if chart.key == "due")
    assert [trace["x"] for trace in chart.data] == [[15], [10], [1.1]]


def test_what_minio_counted_goes_before_what_the_worker_counted() -> None:
    counted = start("slim-cold", 1, 2, bytes_from_store=960, store_sent_bytes=965)
    assert (counted.moved_bytes, start("slim-cold", 1, 2, bytes_from_store=960).moved_bytes) == (965, 960)


def test_a_terminal_shows_what_there_is_and_fits() -> None:
    lines = terminal.text(cold_start(measured())).splitlines()
    assert lines[1] == "Cold start: m v1"
    assert max(map(len, lines)) <= 120
    row = next(line for line in lines if line.startswith("embedded .mar "))
    assert row.split()[2:] == ["2", "1", "15", "10", "to", "20", "16", "11", "to", "21", "80", "764", "-", "-", "-"]
    assert lines[-1] == "embedded .mar: it did not start"


def test_every_start_is_in_the_csv() -> None:
    lines = samples(measured()).csv().splitlines()
    assert len(lines) == 7
    assert lines[0].endswith("retries,forked,phase_fetch_s,phase_load_s,error")
    assert lines[1].split(",")[-3:] == ["0.7", "0.1", ""] and lines[-1].endswith("it did not start")


def test_bars_by_phase_add_up_to_the_time_of_the_first_token() -> None:
    phases = next(chart for chart in charts(measured()) if chart.key == "phases")
    bars = {trace["name"]: trace["x"] for trace in phases.data}
    assert list(bars) == ["fetch", "load", "other, to READY", "READY to first token"]
    assert [sum(column) for column in zip(*bars.values(), strict=True)] == pytest.approx([1.6, 16.0])


def outcomes(recorder: Recorder) -> None:
    """Three streams of one user, one after another from second 100 on: 1 s, 3 s, and one that fails after 1 s."""
    recorder.record("stream", "m", "v1", Outcome(101.0, 1000, True, 3, 400.0, (300.0, 100.0)))
    recorder.record("stream", "m", "v1", Outcome(104.0, 3000, True, 5, 600.0, (200.0,) * 4))
    recorder.record("stream", "m", "v1", Outcome(105.0, 1000, False))


def test_requests_failures_rates_and_goodput() -> None:
    recorder = Recorder()
    recorder.slo_ms = 2000
    outcomes(recorder)
    (row,) = inference(recorder).rows
    assert row == {
        "what": "m v1 stream", "requests": 3, "failures": 1, "p50": 1000, "p95": 3000, "p99": 3000, "mean": 2000,
        "rate": 0.4, "good": 0.2, "tokens": 1.6,
    }  # fmt: skip
    (stream,) = streaming(recorder).rows
    assert (stream["first_p50"], stream["first_p95"], stream["gap_p50"], stream["gap_p99"]) == (400, 600, 200, 300)


def test_workers_hand_over_everything_once() -> None:
    master, worker, alone = Recorder(), Recorder(), Recorder()
    outcomes(alone)
    outcomes(worker)
    worker.record_cold_start(start("mar", 1, 2))
    master.merge(json.loads(json.dumps(worker.drain())))
    master.merge(json.loads(json.dumps(worker.drain())))
    assert inference(master).rows == inference(alone).rows and streaming(master).rows == streaming(alone).rows
    assert master.cold_starts == [start("mar", 1, 2)]


def test_points_hold_the_requests_of_their_interval() -> None:
    recorder = Recorder()
    recorder.record("generate", "m", "v1", Outcome(1.0, 10, True, 1))
    recorder.tick(2, now=recorder._ticked + 2)
    recorder.record("generate", "m", "v1", Outcome(3.0, 30, True, 2))
    recorder.tick(2, now=recorder._ticked + 2)
    first, second = recorder.points[Key("", "generate", "m", "v1")]
    assert (first.requests, first.p50_ms, first.tokens) == (1, 10, 1)
    assert (second.requests, second.p50_ms, second.tokens) == (1, 30, 2)
    assert second.seconds == pytest.approx(2)


def test_latency_over_load_counts_what_came_while_the_number_of_users_stood() -> None:
    """By hand: one user for two intervals of 2 s with one answer in all, 0.25/s; two users for one with two answers, 1/s."""
    recorder = Recorder()
    recorder.record("generate", "m", "v1", Outcome(1.0, 5, True))
    recorder.tick(1, now=recorder._ticked + 2)  # none before it: nobody knows how many users there were
    recorder.record("generate", "m", "v1", Outcome(3.0, 10, True))
    recorder.tick(1, now=recorder._ticked + 2)
    recorder.tick(1, now=recorder._ticked + 2)
    recorder.record("generate", "m", "v1", Outcome(7.0, 1000, True))
    recorder.tick(2, now=recorder._ticked + 2)  # the number changed on the way
    recorder.record("generate", "m", "v1", Outcome(8.0, 20, True))
    recorder.record("generate", "m", "v1", Outcome(9.0, 30, True))
    recorder.tick(2, now=recorder._ticked + 2)
    chart = next(chart for chart in charts(recorder) if chart.key == "load")
    (line,) = chart.data
    assert (line["x"], line["y"], line["text"]) == ([0.25, 1.0], [10, 30], ["1 user", "2 users"])
    recorder.record_cold_start(start("mar", 10, 11))  # users pause meanwhile
    assert "load" not in {chart.key for chart in charts(recorder)}


def test_a_shaped_network_says_the_rate_that_it_reached() -> None:
    """By hand: 343 MB/s are 2.74 Gb/s, whatever the start is called."""
    recorder = measured()
    assert network(recorder).rows == []
    recorder.record_cold_start(start("slim-10gbit", 3, 4, link_bytes_per_s=343e6, retries=2, phases={"fetch": 2.8}))
    loopback, shaped = network(recorder).rows
    assert (loopback["fetch"], loopback["rate"], loopback["moved"]) == (0.7, None, 960)
    assert (shaped["fetch"], shaped["rate"], shaped["retries"]) == (2.8, 2.74, 2)


def test_a_slower_start_is_not_called_faster() -> None:
    recorder = measured()
    recorder.record_cold_start(start("slim-1gbit", 9, 10))
    slower = next(row for row in compare(recorder).rows if "1 Gb/s" in str(row["what"]))
    assert (slower["ratio"], slower["times"]) == (8.18, None)


def test_the_end_of_the_warm_up_keeps_cold_starts() -> None:
    recorder = measured()
    outcomes(recorder)
    recorder.end_warmup(1)
    assert not recorder.series and len(recorder.cold_starts) == 6


def test_the_end_of_a_stages_warm_up_keeps_the_stages_before_it() -> None:
    recorder = Recorder()
    for recorder.stage in ("1 user", "2 users"):
        outcomes(recorder)
    recorder.end_warmup(1)
    assert [key.stage for key in recorder.series] == ["1 user"]


def test_what_a_worker_recorded_before_it_heard_of_the_end_of_the_warm_up_does_not_count() -> None:
    master, worker = Recorder(), Recorder()
    outcomes(worker)
    master.end_warmup(1)
    master.merge(worker.drain())
    assert not master.series
    worker.end_warmup(1)
    outcomes(worker)
    master.merge(worker.drain())
    assert [one.requests for one in master.series.values()] == [3]


def test_a_series_without_requests_has_no_rate() -> None:
    assert Series().rate(0) is None
