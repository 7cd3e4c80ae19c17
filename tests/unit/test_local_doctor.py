"""`make doctor`: what is missing is named with the way to get it, on a machine whose PATH holds only what a test puts there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.services import ROOT, free_port

PORTS = ("MINIO_PORT", "MINIO_CONSOLE_PORT", "AGENT_PORT", "LOCUST_PORT", "TORCHSERVE_INFERENCE_PORT")


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """An empty folder that is all of PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder


def stand_in(folder: Path, name: str, line: str) -> None:
    """A program that only prints, to standard error as java does."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{line}' >&2\n")
    path.chmod(0o755)


def doctor(programs: Path, **environ: str) -> tuple[int, dict[str, dict[str, Any]]]:
    env = (
        {name: str(free_port()) for name in PORTS} | {"PATH": str(programs), "RUN_DIR": str(programs / "run")} | environ
    )
    argv = [sys.executable, "-m", "local", "doctor", "--json"]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    document = json.loads(done.stdout)
    assert document["ok"] is (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in document["checks"]}


def test_a_missing_java_is_named_with_its_package(programs: Path) -> None:
    status, checks = doctor(programs)
    assert (status, checks["java"]["state"], checks["java"]["found"]) == (1, "wrong", "not found")
    assert "openjdk-17-jre-headless" in checks["java"]["fix"]
    assert "docker is not installed" in checks["engine"]["found"]


def test_an_old_java_is_told_from_a_good_one(programs: Path) -> None:
    stand_in(programs, "java", 'openjdk version "11.0.2" 2019-01-15')
    assert doctor(programs)[1]["java"] == {
        "name": "java",
        "state": "wrong",
        "found": "Java 11.0.2; required 17 or newer",
        "fix": "apt-get install openjdk-17-jre-headless",
    }
    stand_in(programs, "java", 'openjdk version "21.0.1" 2023-10-17')
    assert doctor(programs)[1]["java"]["state"] == "ok"


def test_no_gpu_is_a_note_unless_one_is_required(programs: Path) -> None:
    assert doctor(programs)[1]["gpu"]["state"] == "note"
    assert doctor(programs, REQUIRE_GPU="1")[1]["gpu"]["state"] == "wrong"


def test_a_driver_that_is_too_old_is_told_from_no_gpu(programs: Path) -> None:
    stand_in(programs, "nvidia-smi", "NVIDIA A10, 535.104.05, 23028 MiB")
    found = doctor(programs, REQUIRE_GPU="1")[1]["gpu"]
    assert found["state"] == "wrong"
    assert found["found"] == "1 x NVIDIA A10, 23028 MiB, driver 535.104.05; required driver 580 or newer"
    stand_in(programs, "nvidia-smi", "NVIDIA A10, 580.65.06, 23028 MiB")
    assert doctor(programs, REQUIRE_GPU="1")[1]["gpu"]["state"] == "ok"


def test_an_engine_that_is_asked_for_and_does_not_answer_is_an_error(programs: Path) -> None:
    env = {"PATH": str(programs), "ENGINE": "docker"}
    argv = [sys.executable, "-m", "local", "engine"]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        done.stderr
        == "error: ENGINE=docker, but no engine answers: docker is not installed; start it, or use ENGINE=local\n"
    )
    env["ENGINE"] = "podman"
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == "error: ENGINE: required docker or local, found 'podman'\n"


def test_midnight_commander_is_not_mistaken_for_the_store_s_client(
    programs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from local.install import TOOLS

    mc = next(tool for tool in TOOLS if tool.name == "mc")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}/usr/bin")
    stand_in(programs, "mc", "GNU Midnight Commander 4.8.29")
    assert mc.on_path() is None
    (programs / "mc").write_text("#!/bin/sh\necho 'mc version RELEASE.2025-01-01T00-00-00Z'\n")
    assert mc.on_path() == str(programs / "mc")
