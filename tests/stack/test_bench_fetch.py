"""The benchmark of the fetch, in small: its figures mean nothing at this size, but it must not be the benchmark that is broken."""

import json
import sys
from pathlib import Path

import pytest

from loadtest.bench import fetch as bench


def test_it_runs_and_gives_every_key_and_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out" / "fetch.json"
    monkeypatch.setattr(
        sys, "argv", ["fetch", "--mib", "4", "--samples", "2", "--scratch", str(tmp_path), "--out", str(out)]
    )
    bench.main()
    found = json.loads(out.read_text())
    assert set(found["ratios"]) >= {"fetch_vs_best_peer", "fetch_vs_server_limit", "fetch_peak_extra_mib"}
    for workload, of in found["fetch"].items():
        assert set(of["seconds"]) == {"weightless", "mc mirror", "server limit"}
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in of["seconds"].values()), workload
    assert found["fetch"]["two"]["bytes"] == 8 << 20
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "gigabytes are left behind"


def test_the_ratio_is_over_the_best_of_the_others_and_the_worst_workload_counts() -> None:
    measured = {
        "two": {"seconds": {"weightless": [2, 1, 9], "mc": [4, 4, 4], "s5cmd": [3, 3, 3], "server limit": [1, 1, 1]}},
        "one": {"seconds": {"weightless": [4, 4, 4], "mc": [2, 2, 2], "s5cmd": [8, 8, 8], "server limit": [1, 1, 1]}},
    }
    found = bench.ratios(measured)
    assert found["fetch_vs_best_peer_two"] == 1.5
    assert found["fetch_vs_best_peer"] == found["fetch_vs_best_peer_one"] == 0.5
    assert found["fetch_vs_server_limit"] == 0.25
