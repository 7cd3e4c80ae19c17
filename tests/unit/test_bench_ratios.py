"""The ratios of the benchmark, against samples whose ratios can be told by hand."""

import subprocess
from pathlib import Path

from loadtest.bench import fetch
from loadtest.bench.__main__ import our_version
from loadtest.bench.experiment import Bench, Experiment, Ratio, over
from loadtest.bench.results import ratios


def taken(arms: dict[str, list[float]], figure: str = "seconds_s", experiment: str = "fetch") -> Bench:
    def record(bench: Bench) -> None:
        for arm, values in arms.items():
            for value in values:
                bench.record(arm, **{figure: value})

    bench = Bench(Path("/nowhere"), tell=lambda text: None)
    bench.run(Experiment(experiment, "", record, ()))
    return bench


def test_the_fetch_is_compared_with_the_best_of_the_others_and_the_worst_workload_counts() -> None:
    two: dict[str, list[float]] = {
        "weightless, two": [2, 1, 9],
        "mc mirror, two": [4, 4, 4],
        "s5cmd, two": [3, 3, 3],
        "server limit, two": [1, 1, 1],
    }
    one: dict[str, list[float]] = {
        "weightless, one": [4],
        "mc mirror, one": [2],
        "s5cmd, one": [8],
        "server limit, one": [1],
    }
    small: dict[str, list[float]] = {"weightless, small": [1], "mc mirror, small": [3], "server limit, small": [0.5]}
    bench = taken({**two, **one, **small})
    found = {ratio.key: value for ratio, value in ratios([fetch.EXPERIMENT], bench.samples)}
    assert found["fetch_vs_best_peer_two"] == 1.5
    assert found["fetch_vs_best_peer"] == found["fetch_vs_best_peer_one"] == 0.5
    assert found["fetch_vs_best_peer_small"] == 3
    assert found["fetch_vs_server_limit"] == 0.25
    assert "fetch_peak_extra_mib" not in found, "it was not measured"


def test_a_ratio_is_of_medians_and_says_whether_it_is_where_we_want_it() -> None:
    bench = taken({"slim": [1, 2, 100], "mar": [10, 20, 30]}, "ready_s", "coldstart")
    ratio = Ratio("cold_ready_vs_mar", "", over("slim", "mar", "ready_s"), at_most=0.08)
    assert ratio.value(bench.samples) == 0.1
    assert ratio.reached(0.1) is False and ratio.reached(0.08) is True
    assert Ratio("said", "", ratio.value).reached(0.1) is None


def test_results_say_which_commit_was_measured_and_whether_it_was_changed(tmp_path: Path) -> None:
    assert our_version(tmp_path) == {}, "no git here"

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "first")
    clean = our_version(tmp_path)["weightless"]
    assert len(clean) == 12
    (tmp_path / "file").write_text("b")
    assert our_version(tmp_path) == {"weightless": f"{clean}-dirty"}
