"""The supervisor on real processes: order, what happens when one fails or dies, and that nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local import processes
from local.config import Setup
from local.stack import is_running
from tests.services import ROOT, wait_for

# The supervisor as shipped, with small programs in place of the stack's: each a shell line; `ready` is a file that it makes.
HARNESS = """
import sys
from pathlib import Path
from local import programs, stack
from local.programs import Program

folder = Path(sys.argv[1])
LINES = {lines!r}

def shell(name, line, once):
    ready = lambda: "" if (folder / name).exists() else None
    return Program(name, ("/bin/sh", "-c", line.replace("@", str(folder))), {{"PATH": "/usr/bin:/bin"}}, once, ready, 1.0)

programs.stack = lambda setup: [shell(*line) for line in LINES]
programs.baseline = lambda setup: shell("baseline", "touch @/baseline; exec sleep 600", False)
sys.exit(stack.main())
"""

Line = tuple[str, str, bool]
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a supervisor of these lines in tmp_path; ends what a test left."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*lines: Line) -> subprocess.Popen[bytes]:
        env = os.environ | {"RUN_DIR": str(tmp_path / "run"), "PYTHONPATH": str(ROOT)}
        code = HARNESS.format(lines=list(lines))
        log = (tmp_path / "supervisor.log").open("ab")
        started.append(subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=env, stdout=log, stderr=log))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.wait()
    processes.end(lambda: marked(tmp_path), grace=0)


def marked(folder: Path) -> list[int]:
    return processes.marked(f"WEIGHTLESS_RUN={folder / 'run'}")


def state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run/state.json").read_text())
    return found


def wait_phase(folder: Path, phase: str) -> dict[str, Any]:
    wait_for(lambda: state(folder)["phase"] == phase, f"phase {phase}", 20)
    return state(folder)


SERVER: Line = ("server", "touch @/server; exec sleep 600", False)


def test_each_starts_when_the_one_before_is_ready(start: Start, tmp_path: Path) -> None:
    """A server that begins before its keys exist would fail at random."""
    start(
        ("keys", "sleep 0.3; touch @/made", True),
        ("server", "test -e @/made && sleep 0.3 && touch @/server; exec sleep 600", False),
        ("after", "test -e @/server && touch @/after; exec sleep 600", False),
    )
    found = wait_phase(tmp_path, "running")["programs"]
    assert [entry["state"] for entry in found.values()] == ["done", "ready", "ready"]


def test_a_failure_before_it_is_up_stops_all_and_says_which(start: Start, tmp_path: Path) -> None:
    supervisor = start(SERVER, ("init", "exit 7", True), ("never", "touch @/never", True))
    assert supervisor.wait(20) == 1
    found = state(tmp_path)
    assert (found["phase"], found["programs"]["init"]["state"]) == ("failed", "failed")
    assert found["programs"]["init"]["remark"] == "ended with status 7"
    assert not (tmp_path / "never").exists()
    assert marked(tmp_path) == []


def test_what_dies_is_started_again(start: Start, tmp_path: Path) -> None:
    start(SERVER)
    pid = wait_phase(tmp_path, "running")["programs"]["server"]["pid"]
    (tmp_path / "server").unlink()
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: state(tmp_path)["programs"]["server"]["restarts"] == 1, "a restart", 20)
    wait_for(lambda: state(tmp_path)["programs"]["server"]["state"] == "ready", "ready again", 20)
    assert state(tmp_path)["programs"]["server"]["pid"] != pid


def test_sigterm_stops_all_in_reverse_also_what_ignores_it(start: Start, tmp_path: Path) -> None:
    supervisor = start(
        ("first", "trap 'date +%s%N >@/first.end; exit' TERM; touch @/first; while :; do sleep 0.05; done", False),
        ("second", "trap 'date +%s%N >@/second.end; exit' TERM; touch @/second; while :; do sleep 0.05; done", False),
        ("stubborn", "trap '' TERM; touch @/stubborn; while :; do sleep 0.05; done", False),
    )
    wait_phase(tmp_path, "running")
    supervisor.terminate()
    assert supervisor.wait(20) == 0
    assert marked(tmp_path) == []
    assert int((tmp_path / "second.end").read_text()) < int((tmp_path / "first.end").read_text())
    assert state(tmp_path)["phase"] == "stopped"


def test_killed_it_leaves_nothing_behind(start: Start, tmp_path: Path) -> None:
    """A stack that outlives its supervisor would hold the ports, and nobody would know it."""
    supervisor = start(SERVER, ("other", "touch @/other; exec sleep 600", False))
    wait_phase(tmp_path, "running")
    assert len(marked(tmp_path)) == 2
    supervisor.kill()
    supervisor.wait()
    wait_for(lambda: marked(tmp_path) == [], "children to end", 10)


def test_what_a_program_left_to_others_is_stopped_too(start: Start, tmp_path: Path) -> None:
    """TorchServe's workers, say, when the agent was killed: they belong to nobody then."""
    line = "(setsid sleep 600 &); touch @/server; exec sleep 600"
    supervisor = start(("server", line, False))
    wait_phase(tmp_path, "running")
    wait_for(lambda: len(marked(tmp_path)) == 2, "the detached child", 10)
    supervisor.terminate()
    supervisor.wait(20)
    assert marked(tmp_path) == []


def test_only_one_supervisor_runs_in_a_folder(start: Start, tmp_path: Path) -> None:
    start(SERVER)
    wait_phase(tmp_path, "running")
    second = start(SERVER)
    assert second.wait(20) == 1
    assert "another supervisor already runs" in (tmp_path / "supervisor.log").read_text()


def test_that_it_runs_is_known_from_its_lock_and_not_from_a_pid(start: Start, tmp_path: Path) -> None:
    setup = Setup.load({"RUN_DIR": str(tmp_path / "run")}, tmp_path)
    assert not is_running(setup)
    supervisor = start(SERVER)
    wait_phase(tmp_path, "running")
    assert is_running(setup)
    supervisor.kill()
    supervisor.wait()
    assert state(tmp_path)["phase"] == "running"  # the file is what a crash leaves; it must not be believed
    assert not is_running(setup)


def test_the_baseline_runs_while_it_is_wished_for(start: Start, tmp_path: Path) -> None:
    start(SERVER)
    wait_phase(tmp_path, "running")
    wish = tmp_path / "run/baseline.wanted"
    wish.touch()
    wait_for(lambda: state(tmp_path)["programs"]["baseline"]["state"] == "ready", "the baseline", 20)
    pid = state(tmp_path)["programs"]["baseline"]["pid"]
    wish.unlink()
    wait_for(lambda: "baseline" not in state(tmp_path)["programs"], "its end", 20)
    assert pid not in marked(tmp_path)
