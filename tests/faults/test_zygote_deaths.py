"""Whoever of TorchServe's launcher, the zygote and the worker dies, and whenever: no worker is left over, and no second one
runs beside a first. A leftover worker holds memory, a GPU and the socket of the next one."""

import os
import random
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import wait_for
from tests.zygotes import ZygoteProcess, alive, first_line, running_zygote, wait_gone

SLEEP = """
import os, signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(number, signal.SIG_IGN)
print(os.getpid(), flush=True)
while True: signal.pause()
"""
# Holds a lock for as long as it lives; a second copy beside it cannot have it and says so.
ALONE = """
import fcntl, os, sys
with open(os.environ["LOG"], "a") as log:
    try: fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError: os.write(log.fileno(), b"TWO AT ONCE "); os._exit(1)
    os.write(log.fileno(), b"started ")
    print(os.getpid(), flush=True)
    import signal
    while True: signal.pause()
"""


@pytest.fixture
def zygote(tmp_path: Path) -> Iterator[ZygoteProcess]:
    with running_zygote(tmp_path) as running:
        running.event("ready")
        yield running


def test_a_worker_dies_with_its_launcher(zygote: ZygoteProcess) -> None:
    """TorchServe ends a worker by killing the process that it started."""
    launched = [zygote.launch(SLEEP) for _ in range(3)]
    workers = [int(first_line(launcher)) for launcher in launched]
    launched[1].kill()
    launched[1].wait(20)
    wait_gone(workers[1], "the worker of a killed launcher")
    assert alive(workers[0])
    assert alive(workers[2])
    zygote.event("ended")
    wait_for(lambda: len(zygote.workers()) == 2, "the zygote to have buried it", 10)


def test_workers_die_with_their_zygote_and_their_launchers_after_them(zygote: ZygoteProcess) -> None:
    launched = [zygote.launch(SLEEP) for _ in range(3)]
    workers = [int(first_line(launcher)) for launcher in launched]
    zygote.process.kill()
    for launcher, worker in zip(launched, workers, strict=True):
        assert launcher.wait(20) == 137
        assert not alive(worker)  # no waiting: when the launcher has left, TorchServe may start the next worker at once


def test_a_worker_dies_with_its_zygote_whatever_its_launcher_does(zygote: ZygoteProcess) -> None:
    launcher = zygote.launch(SLEEP)
    worker = int(first_line(launcher))
    launcher.send_signal(signal.SIGSTOP)
    zygote.process.kill()
    wait_gone(worker, "the worker of a killed zygote")
    launcher.send_signal(signal.SIGCONT)
    assert launcher.wait(20) == 137


def test_a_worker_runs_nothing_before_its_launcher_holds_it(zygote: ZygoteProcess, tmp_path: Path) -> None:
    """The launcher's part is played here: between `worker` and `go` it may die or give up."""
    ran = tmp_path / "ran"
    environment = zygote.environment | {"PROBE": f"open({str(ran)!r}, 'w').close()"}
    words = ["1", str(tmp_path), str(zygote.script), *(f"{name}={value}" for name, value in environment.items())]
    for allow in (False, True):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
            connection.connect(str(zygote.socket))
            socket.send_fds(connection, ["\0".join(words).encode()], [0, 1, 2])
            said, passed, _, _ = socket.recv_fds(connection, 100, 1)
            assert said == b"worker"
            ended = select.poll()
            ended.register(passed[0], select.POLLIN)
            if allow:
                connection.send(b"go")
                assert connection.recv(10) == b"0"
            else:
                assert ended.poll(500) == []  # it waits
                assert not ran.exists()
        assert ended.poll(10_000)  # and leaves, when the launcher has
        os.close(passed[0])
        assert ran.exists() == allow


def test_a_launcher_without_a_zygote_waits_for_a_worker_that_dies_slowly(zygote: ZygoteProcess) -> None:
    """A stopped process does not die of the kernel's signal before it is written out; here: one that nothing but SIGKILL ends."""
    launcher = zygote.launch(
        "import ctypes; ctypes.CDLL(None).prctl(1, 0, 0, 0, 0)\n" + SLEEP
    )  # deaf to the zygote's death
    worker = int(first_line(launcher))
    zygote.process.kill()
    assert launcher.wait(20) == 137
    assert not alive(worker)


def test_the_zygote_leaves_when_its_supervisor_does(zygote: ZygoteProcess) -> None:
    launcher = zygote.launch(SLEEP)
    worker = int(first_line(launcher))
    zygote.stop()
    assert zygote.process.returncode == 0
    assert launcher.wait(20) == 137
    assert not alive(worker)


def test_a_launcher_that_is_killed_before_it_said_go_leaves_no_worker(zygote: ZygoteProcess, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    for _ in range(40):
        launcher = zygote.launch(f"open({str(mark)!r}, 'a').write('x'); import signal; signal.pause()")
        time.sleep(random.uniform(0.0, 0.06))
        launcher.kill()
        launcher.wait(20)
    wait_for(lambda: not zygote.workers(), "all workers of killed launchers to be gone", 20)
    assert zygote.run("print('next')").stdout == b"next\n"


def kill_and_restart_at_random(zygote: ZygoteProcess, tmp_path: Path, rounds: int, seed: int) -> None:
    """TorchServe's part is played as TorchServe plays it: when a launcher has left, the next one comes."""
    chance = random.Random(seed)
    log = tmp_path / "log"
    for _ in range(rounds):
        launcher = zygote.launch(ALONE, environment={"LOG": str(log)})
        time.sleep(chance.uniform(0.0, 0.12))
        if chance.random() < 0.5:
            zygote.process.kill()
            zygote.process.wait(20)
            if not _left(launcher, 1.0):  # it lost the zygote before it had a worker, and became a stock one
                launcher.kill()
            launcher.wait(20)
            zygote.start()
        else:
            launcher.kill()
            launcher.wait(20)
            wait_for(lambda: not zygote.workers(), "the worker to die with its launcher", 10, 0.002)
    said = log.read_text() if log.exists() else ""
    assert "TWO" not in said, said
    assert said.count("started") >= rounds // 4, f"the test hardly started a worker: {said}"
    wait_for(lambda: not zygote.workers(), "no worker to be left", 10)


def _left(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def test_killed_at_random_there_are_never_two_copies(zygote: ZygoteProcess, tmp_path: Path) -> None:
    kill_and_restart_at_random(zygote, tmp_path, rounds=8, seed=1)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", range(5))
def test_killed_at_random_there_are_never_two_copies_long(zygote: ZygoteProcess, tmp_path: Path, seed: int) -> None:
    kill_and_restart_at_random(zygote, tmp_path, rounds=50, seed=seed)


def test_a_worker_that_dies_does_not_touch_its_siblings(zygote: ZygoteProcess) -> None:
    launched = [zygote.launch(SLEEP) for _ in range(2)]
    workers = [int(first_line(launcher)) for launcher in launched]
    os.kill(workers[0], signal.SIGKILL)
    assert launched[0].wait(20) == 137
    assert alive(workers[1])
    assert launched[1].poll() is None
    launched[1].kill()
    wait_gone(workers[1], "the other worker")
