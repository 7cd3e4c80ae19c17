"""A real zygote for the tests, forking a stand-in for TorchServe's worker module: a script that runs the code it is given.

The real worker module is used in tests/stack; here the script says what it sees, so that a fork can be compared with the same
script started by a new interpreter.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.services import ROOT, wait_for

LAUNCHER = ROOT / "serve" / "zygote" / "launcher.py"
WORKER = """
import os
if __name__ == "__main__":
    exec(compile(os.environ["PROBE"], "probe", "exec"))
"""


class ZygoteProcess:
    """`python -m serve.zygote` with the stand-in `ts` package, and what it reported so far."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str] | None = None, imports: tuple[str, ...] = ()
    ) -> None:
        self.folder = folder
        package = folder / "stand-in" / "ts"
        (package / "torch_handler").mkdir(parents=True, exist_ok=True)
        for name in ("__init__.py", "torch_handler/__init__.py", "torch_handler/base_handler.py"):
            (package / name).touch()
        self.script = package / "model_service_worker.py"
        self.script.write_text(WORKER)
        self.socket = folder / "zygote.sock"
        inherited = {
            name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"
        }  # would hide lost output
        self.environment = inherited | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(package.parent),
            "WEIGHTLESS_ZYGOTE_SOCKET": str(self.socket),
            "WEIGHTLESS_PYTHON": sys.executable,
            **(environment or {}),
        }
        self.imports = ("torch", "ts.model_service_worker", "ts.torch_handler.base_handler", "numpy", *imports)
        self.events: list[dict[str, Any]] = []
        self._unread = b""
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serve.zygote", str(self.socket), *self.imports],
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def event(self, wanted: str, timeout: float = 90, skip: int = 0) -> dict[str, Any]:
        """The first report of that name after the first `skip` ones; AssertionError when it does not come."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout
        while True:
            found = [event for event in self.events if event["event"] == wanted]
            if len(found) > skip:
                return found[skip]
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise AssertionError(f"waited {timeout} s for the report {wanted!r}, found {self.events}")
            read = os.read(self.process.stdout.fileno(), 1 << 16)
            *lines, self._unread = (self._unread + read).split(b"\n")
            self.events += [json.loads(line) for line in lines]
            if not read:
                raise AssertionError(f"the zygote ended without the report {wanted!r}; it said {self.events}")

    def warm(self, *imports: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(imports).encode() + b"\n")
        self.process.stdin.flush()

    def launch(
        self,
        code: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        stock: bool = False,
        launcher: Path = LAUNCHER,
        script: Path | None = None,
        **options: Any,
    ) -> subprocess.Popen[bytes]:
        """Start the stand-in worker as TorchServe would, through the launcher; stock: with a new interpreter."""
        interpreter = sys.executable if stock else str(launcher)
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        command = [interpreter, str(script or self.script), *arguments]
        started: subprocess.Popen[bytes] = subprocess.Popen(
            command, env=self.environment | {"PROBE": code} | dict(environment or {}), **(pipes | options)
        )
        return started

    def run(self, code: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
        """As launch, to the end."""
        process = self.launch(code, *arguments, **options)
        output, errors = process.communicate(timeout=90)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def workers(self) -> list[int]:
        return children(self.process.pid)

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)


@contextmanager
def running_zygote(
    folder: Path, environment: Mapping[str, str] | None = None, imports: tuple[str, ...] = ()
) -> Iterator[ZygoteProcess]:
    zygote = ZygoteProcess(folder, environment, imports)
    try:
        yield zygote
    finally:
        zygote.process.kill()
        zygote.process.wait(20)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.exists() else []


def alive(pid: int) -> bool:
    """Whether the process runs: not gone, and not a zombie that nobody asked about yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_gone(pid: int, what: str, timeout: float = 10) -> None:
    wait_for(lambda: not alive(pid), f"{what} (process {pid}) to be gone", timeout, 0.005)


def first_line(process: subprocess.Popen[bytes], condition: Callable[[bytes], bool] = bool) -> str:
    """The first line of the worker's output that holds; AssertionError at its end."""
    assert process.stdout is not None
    for line in process.stdout:
        if condition(line):
            return line.decode().strip()
    raise AssertionError(f"the worker ended with {process.wait(20)}, no such line in its output")
