"""The whole stack as plain processes, by the make commands that a person types: up, use, crash, down. In a folder of its own."""

import json
import os
import shutil
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from seeding.samples import KNOWN

from local import processes
from local.config import BASELINE, DOORS, INNER
from tests.services import ROOT, free_port, wait_for

pytestmark = pytest.mark.timeout(900)

PROMPT = KNOWN["falcon-tiny"].prompt
FIRST, SECOND = KNOWN["falcon-tiny"].sentence, KNOWN["falcon-tiny-v2"].sentence
KEY = "a-key-of-the-tests"


@dataclass
class Stack:
    """What `make` is told: another folder, other ports, a key."""

    run: Path
    env: dict[str, str]

    def make(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | self.env | more
        return subprocess.run(
            ["make", *words], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False
        )

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        env = os.environ | self.env
        return subprocess.run(
            ["bash", "-c", line], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
        )

    def up(self) -> str:
        """Up it is, quickly if it was; what was printed."""
        done = self.make("up")
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{self.log('agent')[-3000:]}"
        return done.stdout

    def say(self) -> str:
        done = self.make("predict", "MODEL=falcon-tiny", f"INPUT={PROMPT}", 'PARAMETERS={"do_sample": false}')
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.run / "state.json").read_text())
        return found

    def port(self, name: str) -> int:
        return int(self.env[name])

    def log(self, name: str) -> str:
        path = self.run / f"logs/{name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def left(self) -> list[int]:
        return processes.marked(f"WEIGHTLESS_RUN={self.run}")


@pytest.fixture(scope="module")
def stack(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run = tmp_path_factory.mktemp("stack").resolve()
    ports = {name: str(free_port()) for name in (*DOORS, *INNER, *BASELINE)}
    made = Stack(run, ports | {"ENGINE": "local", "RUN_DIR": str(run), "SAMPLES_DIR": str(samples), "API_KEY": KEY})
    yield made
    made.make("down")
    processes.end(made.left, grace=0)


def test_the_printed_curl_line_works_as_it_stands(stack: Stack) -> None:
    printed = stack.up()
    curl = next(line.strip() for line in printed.splitlines() if line.strip().startswith("curl "))
    assert KEY not in printed
    answered = stack.shell(curl)
    assert json.loads(answered.stdout) == [{"generated_text": FIRST}], answered.stderr
    assert f"→ {answered.stdout.strip()}" in printed
    for name in ("AGENT_PORT", "LOCUST_PORT", "MINIO_CONSOLE_PORT"):
        assert f"http://127.0.0.1:{stack.env[name]}" in printed
    with urllib.request.urlopen(f"http://127.0.0.1:{stack.env['LOCUST_PORT']}/", timeout=10) as page:
        assert b"Weightless load test" in page.read(), "the page that asks for the key"


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    stack.up()
    before = stack.state()["programs"]
    assert stack.up().startswith("The stack is up already.\n")
    assert stack.state()["programs"] == before


def test_a_new_release_answers_and_rollback_brings_the_old_one_back(stack: Stack, samples: Path) -> None:
    stack.up()
    seeded = stack.make("seed", "MODEL=falcon-tiny", f"FROM={samples / 'falcon-tiny-v2'}", "PROMOTE=no")
    assert seeded.returncode == 0, seeded.stderr
    assert stack.say() == FIRST
    promoted = stack.make("promote", "MODEL=falcon-tiny", "RELEASE=v2", "JSON=1")
    assert json.loads(promoted.stdout)["served"] is True, promoted.stderr
    assert stack.say() == SECOND
    rolled = stack.make("rollback", "MODEL=falcon-tiny")
    assert "v2 → v1" in rolled.stdout
    assert "v1 is served" in rolled.stdout
    assert stack.say() == FIRST
    shown = stack.make("models", "JSON=1").stdout
    assert {entry["model"]: entry["serving"] for entry in json.loads(shown)} == {"falcon-tiny": "v1", "minilm": "v1"}


def test_a_broken_release_is_refused_with_its_reason_and_the_old_one_serves(
    stack: Stack, samples: Path, tmp_path: Path
) -> None:
    stack.up()
    shutil.copytree(samples / "falcon-tiny", tmp_path / "broken")
    config = json.loads((tmp_path / "broken/config.json").read_text())
    (tmp_path / "broken/config.json").write_text(json.dumps(config | {"hidden_size": config["hidden_size"] * 2}))
    seeded = stack.make("seed", "MODEL=falcon-tiny", f"FROM={tmp_path / 'broken'}", "PROMOTE=no", "JSON=1")
    release = json.loads(seeded.stdout)["release"]
    promoted = stack.make("promote", "MODEL=falcon-tiny", f"RELEASE={release}")
    assert promoted.returncode != 0
    assert f"falcon-tiny {release} is not served: " in promoted.stderr
    assert "v1 is still served" in promoted.stderr
    assert stack.say() == FIRST
    assert release in stack.make("status").stderr
    assert stack.make("rollback", "MODEL=falcon-tiny").returncode == 0


def test_mar_status_and_credentials(stack: Stack, tmp_path: Path) -> None:
    stack.up()
    archive = tmp_path / "deep/tiny.mar"
    saved = stack.make("mar", "MODEL=falcon-tiny", f"TO={archive}")
    assert saved.returncode == 0, saved.stderr
    assert 1000 < archive.stat().st_size < 150_000
    failed = stack.make("mar", "MODEL=nope", f"TO={tmp_path / 'nope.mar'}")
    assert failed.returncode != 0
    assert not (tmp_path / "nope.mar").exists()
    status = json.loads(stack.make("status", "JSON=1").stdout)
    assert {name: entry["state"] for name, entry in status["models"].items()} == {
        "falcon-tiny": "serving",
        "minilm": "serving",
    }
    assert stack.make("credentials", "SHOW=api-key").stdout == f"{KEY}\n"
    login = json.loads(stack.make("credentials", "JSON=1").stdout)
    assert login["user"] == (stack.run / "secrets/minio/access_key").read_text().strip()
    assert "requires its API key" in stack.make("status", API_KEY="").stderr


def test_a_minio_that_dies_comes_back_and_models_serve_on(stack: Stack) -> None:
    stack.up()
    pid = stack.state()["programs"]["minio"]["pid"]
    os.kill(pid, signal.SIGKILL)
    assert stack.say() == FIRST
    wait_for(lambda: stack.state()["programs"]["minio"]["state"] == "ready", "MinIO to be ready again", 60)
    assert stack.state()["programs"]["minio"]["pid"] != pid
    wait_for(lambda: stack.make("models").returncode == 0, "the bucket", 60)


def test_a_killed_supervisor_leaves_nothing_behind(stack: Stack) -> None:
    """Else the next `up` would find ports in use by a stack that nobody can stop."""
    stack.up()
    assert len(stack.left()) >= 6  # MinIO, agent, zygote, Java, two workers, Locust
    os.kill(stack.state()["pid"], signal.SIGKILL)
    wait_for(lambda: stack.left() == [], "all processes to end", 60)
    assert stack.make("down").stdout == "Nothing runs.\n"


def test_down_stops_what_a_crash_left(stack: Stack) -> None:
    """The supervisor and the agent killed at once: nobody is there to pass the end on to workers that hang."""
    stack.up()
    marks = {"WEIGHTLESS_RUN": str(stack.run), "PATH": os.environ["PATH"]}
    hung = subprocess.Popen(["/bin/sh", "-c", "trap '' TERM; while :; do sleep 0.05; done"], env=marks)
    os.kill(stack.state()["pid"], signal.SIGKILL)
    os.kill(stack.state()["programs"]["agent"]["pid"], signal.SIGKILL)
    done = stack.make("down")
    assert done.returncode == 0
    assert "processes of an earlier stack were still there" in done.stdout
    assert hung.wait(10) == -signal.SIGKILL
    assert stack.left() == []


def test_a_port_in_use_is_named_with_its_holder_before_anything_starts(stack: Stack) -> None:
    stack.make("down")
    with socket.create_server(("127.0.0.1", stack.port("AGENT_PORT"))):
        done = stack.make("up")
        assert done.returncode != 0
        assert f"port {stack.port('AGENT_PORT')} (AGENT_PORT) is in use by pid {os.getpid()}" in done.stderr
        checked = json.loads(stack.make("doctor", "JSON=1").stdout)
    assert checked["ok"] is False
    assert [check["name"] for check in checked["checks"] if check["state"] == "wrong"] == ["ports"]
    assert stack.left() == []


def test_a_failure_on_the_way_up_shows_the_log_and_stops_the_rest(stack: Stack) -> None:
    stack.make("down")
    done = stack.make("up", SAMPLES_DIR="/proc/nowhere")
    assert done.returncode != 0
    assert "samples ended with status" in done.stderr
    assert "/proc/nowhere" in done.stderr
    assert stack.left() == []


def test_clean_asks_and_then_removes_all_data(stack: Stack) -> None:
    stack.make("down")
    refused = stack.make("clean")
    assert refused.returncode != 0
    assert (stack.run / "minio").exists()
    assert stack.make("clean", "YES=yes").returncode == 0
    assert not stack.run.exists()
