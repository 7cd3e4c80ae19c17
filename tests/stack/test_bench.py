"""The benchmark, in small: its figures mean nothing at this size, but it must not be the benchmark that is broken."""

import json
import os
import subprocess
import sys
from pathlib import Path

from loadtest.bench.fetch import EXPERIMENT as FETCH
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


def test_an_experiment_that_nobody_knows_is_named(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    done = bench(tmp_path, "--only", "fetch,speed")
    assert done.returncode == 1 and "found speed" in done.stderr
