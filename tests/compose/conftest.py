"""One stack for the whole run, brought up once from a clean clone; what tests change about it, they change back."""

import fcntl
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.stack import PROJECT, Stack, clone_into
from tests.services import ROOT


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine: the machine's own, or one that is set up now."""
    done = subprocess.run([ROOT / "tests/compose/engine.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def fresh_stack(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A clean clone and nothing of an earlier run but its images. A second run at the same time waits for the first to end."""
    folder: Path = tmp_path_factory.mktemp("clone")
    clone_into(folder)
    stack = Stack(folder)
    with (Path(tempfile.gettempdir()) / f"{PROJECT}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stack.compose("--profile", "*", "down", "--volumes", "--remove-orphans")
        try:
            yield stack
        finally:
            stack.compose("--profile", "*", "down", "--volumes", "--remove-orphans")


@pytest.fixture(scope="session")
def stack(fresh_stack: Stack) -> Stack:
    """Up, with the built-in models served."""
    # Compose would take the images of an earlier run. Not `up --build`: after a build that changed an image, compose 2.26 makes
    # every container anew at the next `up` as well.
    fresh_stack.compose("build")
    fresh_stack.up()
    return fresh_stack
