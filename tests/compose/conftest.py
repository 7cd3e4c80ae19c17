"""One stack for the whole run, brought up once from a clean clone; what tests change about it, they change back."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.stack import Stack, clone_into
from tests.services import ROOT


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine: the machine's own, or one that is set up now."""
    done = subprocess.run([ROOT / "tests/compose/engine.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def fresh_stack(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A clean clone and nothing of an earlier run but its images."""
    folder: Path = tmp_path_factory.mktemp("clone")
    clone_into(folder)
    stack = Stack(folder)
    stack.compose("--profile", "*", "down", "--volumes", "--remove-orphans")
    try:
        yield stack
    finally:
        stack.compose("--profile", "*", "down", "--volumes", "--remove-orphans")


@pytest.fixture(scope="session")
def stack(fresh_stack: Stack) -> Stack:
    """Up, with the built-in models served. Built always: compose takes the images of an earlier run for what is asked for."""
    fresh_stack.up("--build")
    return fresh_stack
