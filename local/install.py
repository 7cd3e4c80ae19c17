"""Installs into the checkout what the stack of processes needs, the independent parts side by side.

`.venv`: the locked Python packages. `.tools/bin`: minio, mc and, for the tests, toxiproxy-server: taken from PATH, or built by
Go at the versions that requirements/go.txt pins for the images too. Nothing is installed outside the checkout.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from local import say
from local.config import ROOT
from local.errors import LocalError

VENV = ROOT / ".venv"
TOOLS_DIR = ROOT / ".tools"
BIN = TOOLS_DIR / "bin"


@dataclass(frozen=True)
class Tool:
    """A Go program. `says` must stand in what it prints for --version: another program may have the same name."""

    name: str
    package: str
    says: str
    test_only: bool = False

    @property
    def path(self) -> Path:
        return BIN / self.name

    @property
    def module(self) -> str:
        """What `go install` takes, with the pinned version."""
        pins = (ROOT / "requirements/go.txt").read_text().split()
        return next(pin for pin in pins if pin.startswith(f"{self.package}@"))

    def installed(self) -> bool:
        stamp = BIN / f".{self.name}.version"
        return self.path.exists() and stamp.exists() and stamp.read_text() in (self.module, f"{self.path.resolve()}")

    def on_path(self) -> str | None:
        """Where PATH has it, if that is really the program we mean (mc may be Midnight Commander)."""
        elsewhere = os.pathsep.join(part for part in os.environ.get("PATH", "").split(os.pathsep) if part != str(BIN))
        found = shutil.which(self.name, path=elsewhere)
        if not found:
            return None
        try:
            said = subprocess.run([found, "--version"], capture_output=True, text=True, timeout=20, check=False).stdout
        except (OSError, subprocess.TimeoutExpired):
            return None
        return found if self.says in said else None

    def install(self, log: Log) -> str:
        """Link it from PATH or build it; what was done, in words."""
        BIN.mkdir(parents=True, exist_ok=True)
        stamp = BIN / f".{self.name}.version"
        found = self.on_path()
        if found:
            self.path.unlink(missing_ok=True)
            self.path.symlink_to(Path(found).resolve())
            stamp.write_text(f"{self.path.resolve()}")
            return f"taken from {found}"
        if not shutil.which("go"):
            raise LocalError(f"{self.name}: required Go 1.24 or newer to build it, found none; see make doctor")
        build = TOOLS_DIR / "build" / self.name
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir(parents=True)
        log.run(["go", "install", self.module], env={"GOBIN": str(build), "CGO_ENABLED": "0"})
        os.replace(next(build.iterdir()), self.path)  # noqa: PTH105 (whatever go named it, e.g. "server")
        stamp.write_text(self.module)
        return f"built, {self.module.rpartition('@')[2]}"


TOOLS = (
    Tool("minio", "github.com/minio/minio", "minio version"),
    Tool("mc", "github.com/minio/mc", "mc version"),
    Tool("toxiproxy-server", "github.com/Shopify/toxiproxy/v2/cmd/server", "toxiproxy", test_only=True),
)


@dataclass(frozen=True)
class Environment:
    """A Python environment, as one more thing to install: exactly what its locks say."""

    name: str
    folder: Path
    locks: tuple[Path, ...]

    def _stamp(self) -> str:
        return hashlib.sha256(b"".join(lock.read_bytes() for lock in self.locks)).hexdigest()

    def installed(self) -> bool:
        stamp = self.folder / ".weightless"
        return (self.folder / "bin/python").exists() and stamp.exists() and stamp.read_text() == self._stamp()

    def install(self, log: Log) -> str:
        uv = find_uv(log)
        python = self.folder / "bin/python"
        if not _is_wanted_python(python):
            log.run([uv, "venv", "--quiet", "--clear", "--python", "3.11", str(self.folder)])
        locks = map(str, self.locks)
        log.run([uv, "pip", "sync", "--no-progress", "--require-hashes", "--python", str(python), *locks])
        (self.folder / ".weightless").write_text(self._stamp())
        count = sum(1 for _ in (self.folder / "lib/python3.11/site-packages").glob("*.dist-info"))
        return f"{count} locked packages in {self.folder.relative_to(ROOT)}"


PYTHON = Environment("python", VENV, (ROOT / "requirements/dev.txt", ROOT / "requirements/samples.txt"))
# The clients that the fetch is measured against: boto3 beside transformers would slow every start of a worker.
PEERS = Environment(
    "peers", ROOT / "build/bench-peers", (ROOT / "requirements/bench.txt", ROOT / "requirements/streamer.txt")
)


def find_uv(log: Log) -> str:
    """uv from PATH, or the pinned one put into `.tools/uv` by pip."""
    own = TOOLS_DIR / "uv/bin/uv"
    for candidate in filter(None, (shutil.which("uv"), str(own) if own.exists() else None)):
        with contextlib.suppress(OSError):
            if subprocess.run([candidate, "--version"], capture_output=True, check=False).returncode == 0:
                return candidate
    pip = [sys.executable, "-m", "pip"]
    if subprocess.run([*pip, "--version"], capture_output=True, check=False).returncode != 0:
        raise LocalError("required uv or pip to install Python packages, found neither; apt-get install python3-pip")
    pins = str(ROOT / "requirements/uv.txt")
    log.run(
        [*pip, "install", "--quiet", "--target", str(TOOLS_DIR / "uv"), "--upgrade", "--require-hashes", "-r", pins]
    )
    return str(own)


class Log:
    """Runs the commands of one step into a log of its own, and knows the last line for the progress display."""

    def __init__(self, name: str, environ: Mapping[str, str]) -> None:
        self.environ = {key: value for key, value in environ.items() if value}  # an empty mirror is none
        self.path = TOOLS_DIR / "logs" / f"{name}.log"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("")
        self.last = ""

    def run(self, argv: list[str], env: dict[str, str] | None = None) -> None:
        """Run to the end; LocalError with the last lines of its output if it fails."""
        tail: deque[str] = deque(maxlen=12)
        # The machine's own trust store counts, so that packages also come through a proxy with a private CA.
        full = {"UV_SYSTEM_CERTS": "1", **self.environ, **(env or {})}
        with self.path.open("a") as log:
            process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=full)
            assert process.stdout is not None
            for line in process.stdout:
                log.write(line)
                tail.append(line.rstrip())
                self.last = line.strip() or self.last
            status = process.wait()
        if status != 0:
            said = "\n       ".join(tail)
            raise LocalError(
                f"{' '.join(argv[:3])} … ended with status {status}; the end of {self.path}:\n       {said}"
            )


class Step(threading.Thread):
    """One part being installed."""

    def __init__(self, part: Tool | Environment, environ: Mapping[str, str]) -> None:
        super().__init__(daemon=True)
        self.part = part
        self.log = Log(part.name, environ)
        self.began = time.monotonic()
        self.result: str | None = None
        self.error: LocalError | None = None

    def run(self) -> None:
        try:
            self.result = self.part.install(self.log)
        except LocalError as error:
            self.error = error
        except (OSError, StopIteration) as error:
            self.error = LocalError(f"{self.part.name}: {error}")


def missing(tests: bool = False) -> list[Tool | Environment]:
    """What is not installed yet; the tests and the benchmark want more than the stack does."""
    tools = (tool for tool in TOOLS if tests or not tool.test_only)
    parts: list[Tool | Environment] = [PYTHON, *([PEERS] if tests else []), *tools]
    return [part for part in parts if not part.installed()]


def install(environ: Mapping[str, str], tests: bool = False) -> None:
    """Install what is missing and say so; silent where nothing is. `environ` may name mirrors of the registries.

    Raises:
        LocalError: a part failed; the parts that were done stay, and are not done again.
    """
    if not missing(tests):
        return
    with _alone():
        parts = missing(tests)  # another may just have done it
        if parts:
            say.lines([say.bold("Installing into .venv and .tools ") + say.dim("(once; minio takes minutes to build)")])
            _install(parts, environ)


def _install(parts: list[Tool | Environment], environ: Mapping[str, str]) -> None:
    steps = [Step(part, environ) for part in parts]
    for step in steps:
        step.start()
    waiting = list(steps)
    while waiting:
        waiting[0].join(timeout=0.2)
        for step in [step for step in waiting if not step.is_alive()]:
            waiting.remove(step)
            took = f"{time.monotonic() - step.began:.1f} s"
            say.mark(
                "wrong" if step.error else "ok", step.part.name, f"{step.result or 'failed':<44} {say.dim(took)}", 17
            )
        if waiting:
            names = " ".join(step.part.name for step in waiting)
            say.busy(names, f"{time.monotonic() - steps[0].began:.0f} s  {waiting[0].log.last}", 17)
    errors = [str(step.error) for step in steps if step.error]
    if errors:
        raise LocalError("\n       ".join(errors))


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    TOOLS_DIR.mkdir(exist_ok=True)
    with (TOOLS_DIR / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say.lines(["another make is installing; waiting for it"])
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_wanted_python(python: Path) -> bool:
    if not python.exists():
        return False
    said = subprocess.run([str(python), "--version"], capture_output=True, text=True, check=False).stdout
    return said.startswith("Python 3.11.")
