"""The README's own commands, in its order, on a stack that was just started: what it shows is what they print."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from local.config import BASELINE, DOORS, INNER
from tests.readme import Command, commands, python_program
from tests.services import free_port
from tests.stack.test_local_stack import Stack

pytestmark = pytest.mark.timeout(900)

SHOWN = [*commands("Quick start"), *commands("Change the weights, and change them back")]


@pytest.fixture(scope="module")
def stack(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    run = tmp_path_factory.mktemp("readme").resolve()
    ports = {name: str(free_port()) for name in (*DOORS, *INNER, *BASELINE)}
    made = Stack(run, ports | {"ENGINE": "local", "RUN_DIR": str(run), "SAMPLES_DIR": str(samples)})
    yield made
    made.make("down")


@pytest.mark.parametrize("command", SHOWN, ids=lambda command: command.line[:60])
def test_the_command_prints_what_is_shown(stack: Stack, command: Command) -> None:
    """One after another, as a reader types them; `docker compose` is the compose tests' part."""
    if command.line.startswith("make "):
        done = stack.make(*shlex.split(command.line)[1:])
    elif command.line.startswith("curl "):
        done = stack.shell(command.line.replace(":8080/", f":{stack.env['AGENT_PORT']}/"))
    else:
        assert command.line == "docker compose up --wait", "a command that no test runs"
        return
    assert done.returncode == 0, done.stderr
    for name, port in {"AGENT_PORT": 8080, "LOCUST_PORT": 8089, "MINIO_PORT": 9000}.items():
        done.stdout = done.stdout.replace(f":{stack.env[name]}", f":{port}")
    assert command.shows(done.stdout), f"shown:\n{chr(10).join(command.output)}\nprinted:\n{done.stdout}"


def test_the_openai_program_prints_what_is_shown(stack: Stack) -> None:
    program = python_program("OpenAI clients")
    code = program.line.replace(":8080/", f":{stack.env['AGENT_PORT']}/")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert program.shows(done.stdout), done.stdout
