"""The command line: every refusal is one line that says what to do, exit status 1, and JSON for programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.services import ROOT, MinioServer, tool


def run(server: MinioServer, *arguments: str, **told: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(map(str, (ROOT, ROOT / "minio-init")))
    environment = os.environ | server.environment | {"PYTHONPATH": path, "MC": tool("mc")} | told
    return subprocess.run(
        [sys.executable, "-m", "seeding", *arguments], env=environment, capture_output=True, text=True, cwd=ROOT
    )


CASES = {
    "a model nobody knows": (("seed", "unheard-of"), {}, "ModelNotFound", "--hf org/repo"),
    "no such folder": (("seed", "x", "--from", "/nowhere"), {}, "InvalidFolder", "found nothing"),
    "nothing in the bucket": (("seed", "x", "--from", "bucket"), {}, "InvalidFolder", "upload one there"),
    "a name that no folder can have": (("seed", "../x"), {}, "SettingsError", "choose another name"),
    "a repository that is none": (("seed", "x", "--hf", "no-slash"), {}, "SettingsError", "org/repo@revision"),
    "wrong keys": (("seed", "x", "--from", "."), {"S3_SECRET_KEY": "wrong"}, "AccessDenied", "S3_CREDENTIALS_DIR"),
    "a store that is away": (
        ("seed", "x", "--from", "."),
        {"S3_ENDPOINT": "http://127.0.0.1:9"},
        "StoreUnavailable",
        "is it running?",
    ),
    "no mc": (("seed", "x", "--from", "."), {"MC": "/no/mc"}, "SettingsError", "make install"),
    "nothing to prune": (("prune", "x"), {}, "ModelNotFound", "nothing to prune"),
    "no samples": (("init", "--model", "falcon-tiny"), {"SAMPLES_DIR": "/nowhere"}, "InvalidFolder", "SAMPLES_DIR"),
}


@pytest.mark.parametrize("case", sorted(CASES))
def test_a_refusal_is_one_line_with_what_to_do(minio_server: MinioServer, case: str) -> None:
    arguments, told, kind, advice = CASES[case]
    ended = run(minio_server, *arguments, "--json", **told)
    assert ended.returncode == 1
    error = json.loads(ended.stdout)["error"]
    assert error["type"] == kind, error
    assert advice in error["message"]
    said = ended.stderr.strip().splitlines()
    assert said[-1] == f"error: {error['message']}"
    assert "Traceback" not in ended.stderr
    store = minio_server.store()
    assert store.models() == []


def test_what_was_done_is_said_in_a_line_and_in_json(minio_server: MinioServer, samples: Path) -> None:
    folder = str(samples / "falcon-tiny")
    first = run(minio_server, "seed", "falcon-tiny", "--from", folder)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("falcon-tiny: release v1 is new: 8 files, 1.7 MB, 1.7 MB uploaded in ")
    assert "needs up to 1.7 MB into the store" in first.stderr
    state = json.loads(run(minio_server, "seed", "falcon-tiny", "--from", folder, "--json").stdout)
    assert (state["release"], state["new"], state["uploaded"], state["serving"]) == ("v1", False, 0, "v1")


def test_a_sample_is_found_by_its_name(minio_server: MinioServer, samples: Path) -> None:
    ended = run(minio_server, "seed", "falcon-tiny", "--json", SAMPLES_DIR=str(samples))
    assert json.loads(ended.stdout)["source"] == {"sample": "falcon-tiny"}
    ended = run(
        minio_server, "seed", "falcon-tiny", "--from", "sample:falcon-tiny-v2", "--json", SAMPLES_DIR=str(samples)
    )
    assert json.loads(ended.stdout)["release"] == "v2"
    ended = run(minio_server, "seed", "falcon-tiny", "--from", "sample:falcon-99", SAMPLES_DIR=str(samples))
    assert (ended.returncode, "there are falcon-tiny, falcon-tiny-v2" in ended.stderr) == (1, True), ended.stderr
