"""The benchmark, in small: its figures mean nothing at this size, but it must not be the benchmark that is broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from loadtest.bench.coldstart import EXPERIMENT as COLDSTART
from loadtest.bench.coldstart import STARTS
from loadtest.bench.fetch import EXPERIMENT as FETCH
from loadtest.bench.growth import EXPERIMENT as GROWTH
from loadtest.bench.turnaround import EXPERIMENT as TURNAROUND
from tests.services import ROOT


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    scratch = folder / "scratch"
    command = [sys.executable, "-m", "loadtest.bench", "--out", str(folder / "out"), "--scratch", str(scratch)]
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT}/handler:{ROOT}/minio-init"}
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert not list(scratch.iterdir()), "gigabytes are left behind"
    return done


def test_the_fetch_gives_every_key_and_sample(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "fetch", "--samples", "2", "--scale", "0.004")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert set(found["ratios"]) == {ratio.key for ratio in FETCH.ratios}
    assert all(value > 0 for value in found["ratios"].values()), found["ratios"]
    arms = [sample["arm"] for sample in found["samples"]]
    for workload in ("two", "one", "small"):
        for client in (
            "weightless",
            "mc mirror",
            "s5cmd",
            "minio-py ranges",
            "boto3",
            "obstore",
            "runai to memory",
            "server limit",
        ):
            assert arms.count(f"{client}, {workload}") == 2
    page = (tmp_path / "out/index.html").read_text()
    assert all(f"<code>{key}</code>" in page for key in found["ratios"])
    assert page.count("<circle") >= len(arms) - 1
    assert all(key in done.stdout for key in found["ratios"])


@pytest.mark.long
@pytest.mark.timeout(900)
def test_cold_starts_and_turnaround_give_every_key(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "coldstart,turnaround", "--samples", "1", "--scale", "0.004")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert set(found["ratios"]) == {ratio.key for one in (COLDSTART, TURNAROUND) for ratio in one.ratios}
    assert found["ratios"]["second_worker_bytes"] == 0
    assert found["ratios"]["concurrent_workers_bytes"] == 1, "four cold workers fetched something twice"
    assert found["ratios"]["swap_failed_requests"] == 0, done.stdout
    assert set(found["facts"]["coldstart"]["phases"]) == set(STARTS)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_growth_gives_every_key_and_leaves_nothing_in_the_bucket(tmp_path: Path) -> None:
    done = bench(tmp_path, "--only", "growth", "--samples", "1", "--scale", "0.05")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert set(found["ratios"]) == {ratio.key for ratio in GROWTH.ratios}
    sizes = {sample["figures"]["size_gb"] for sample in found["samples"]}
    assert len(sizes) == 3 and min(sizes) > 0.008


def test_an_experiment_that_nobody_knows_is_named(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    done = bench(tmp_path, "--only", "fetch,speed")
    assert done.returncode == 1 and "found speed" in done.stderr
