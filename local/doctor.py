"""Checks the machine, changes nothing: what is here, what is missing, how to get it."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from local import engine, ports, say, stack
from local.config import DOORS, INNER, ROOT, Setup
from local.errors import LocalError

GB = 10**9
FIRST_INSTALL = (
    9 * GB
)  # measured: 5.6 GB of packages, of which torch with its CUDA libraries 4.6; 1.7 GB of Go sources and builds
WITH_IMAGES = 20 * GB
JAVA, GO = 17, (1, 24)
CUDA_DRIVER = 580  # what torch's build for CUDA 13 needs


State = Literal["ok", "note", "wrong"]


@dataclass(frozen=True)
class Check:
    """`wrong` must be mended first; `note` only changes what is done."""

    name: str
    state: State
    found: str
    fix: str = ""


def main(setup: Setup, as_json: bool) -> int:
    """Print all checks; 1 if any is wrong."""
    checks = run(setup)
    bad = [check for check in checks if check.state == "wrong"]
    if as_json:
        print(json.dumps({"ok": not bad, "checks": [asdict(check) for check in checks]}, indent=1))
        return 1 if bad else 0
    for check in checks:
        say.mark(check.state, check.name, check.found, width=9)
        if check.fix:
            say.lines([say.dim(f"{'':14}{check.fix}")])
    say.lines(
        [
            "",
            say.bold("Ready: make up")
            if not bad
            else say.bold(f"{len(bad)} to mend: ") + ", ".join(c.name for c in bad),
        ]
    )
    return 1 if bad else 0


def run(setup: Setup) -> list[Check]:
    """Every check that matters for the engine that would be used."""
    chosen = engine.choose(setup)
    checks = [system(), engine_check(setup, chosen), disk(chosen), gpu(setup, chosen)]
    if chosen == "local":
        checks += [python(), java(), *go_tools()]
    return [*checks, ports_check(setup, chosen)]


def require(checks: list[Check]) -> None:
    """Raise one error that names all that is wrong."""
    wrong = [check for check in checks if check.state == "wrong"]
    if wrong:
        raise LocalError("\n       ".join(f"{check.name}: {check.found}. {check.fix}" for check in wrong))


def system() -> Check:
    found = f"{platform.system()} {platform.machine()}, {_cores()} cores, {say.size(_memory())} of memory"
    if platform.system() != "Linux":
        return Check(
            "machine", "wrong", found, "Linux is required; on another system use a Docker engine in a Linux machine"
        )
    return Check("machine", "ok", found)


def engine_check(setup: Setup, chosen: str) -> Check:
    version = engine.docker_version()
    if chosen == "docker":
        return Check("engine", "ok", f"Docker {version}")
    why = (
        "a stack of processes is running"
        if stack.is_running(setup)
        else f"no Docker engine answers ({engine.why_not()})"
    )
    if version:
        why = f"Docker {version} answers, but " + ("ENGINE=local" if setup.values.get("ENGINE") == "local" else why)
    return Check("engine", "note", f"{why}; the stack runs as plain processes")


def disk(chosen: str) -> Check:
    folder = engine.docker_root() if chosen == "docker" else ROOT
    free = shutil.disk_usage(folder).free
    done = (ROOT / ".venv/bin/python").exists() if chosen == "local" else engine.images_built()
    need = GB if done else WITH_IMAGES if chosen == "docker" else FIRST_INSTALL
    found = f"{say.size(free)} free at {folder}, {say.size(need)} required"
    if free < need:
        return Check("disk", "wrong", found, "free some, or move the checkout to a larger disk")
    return Check("disk", "ok", found)


def gpu(setup: Setup, chosen: str) -> Check:
    state: State = "wrong" if setup.flag("REQUIRE_GPU") else "note"
    listed = _output(["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"])
    if not listed:
        return Check("gpu", state, "none (nvidia-smi names none); models run on the CPU")
    name, driver, memory = (part.strip() for part in listed.splitlines()[0].split(",")[:3])
    found = f"{len(listed.splitlines())} x {name}, {memory}, driver {driver}"
    if int(driver.split(".")[0]) < CUDA_DRIVER:
        return Check(
            "gpu", state, f"{found}; required driver {CUDA_DRIVER} or newer", "update the driver, or run on the CPU"
        )
    if chosen == "docker" and "nvidia" not in engine.docker_runtimes():
        return Check("gpu", state, f"{found}, but the engine has no nvidia runtime", "install nvidia-container-toolkit")
    return Check("gpu", "ok", found)


def python() -> Check:
    found = f"Python {platform.python_version()} at {sys.executable}"
    if (ROOT / ".venv/bin/python").exists():
        return Check("python", "ok", f"{found}, and the environment in .venv")
    if sys.version_info[:2] != (3, 11) and not shutil.which("python3.11"):
        return Check(
            "python", "note", f"{found}; 3.11 is required and uv will download it", "or: apt-get install python3.11"
        )
    if not shutil.which("uv") and not _works([sys.executable, "-m", "pip", "--version"]):
        return Check("python", "wrong", f"{found}, but neither uv nor pip", "apt-get install python3-pip")
    return Check("python", "ok", found)


def java() -> Check:
    text = _output(["java", "-version"])
    version = re.search(r'version "((\d+)[^"]*)"', text)
    if not version:
        return Check("java", "wrong", "not found", "apt-get install openjdk-17-jre-headless")
    if int(version[2]) < JAVA:
        return Check(
            "java", "wrong", f"Java {version[1]}; required {JAVA} or newer", "apt-get install openjdk-17-jre-headless"
        )
    return Check("java", "ok", f"Java {version[1]}")


def go_tools() -> list[Check]:
    """Go is needed only where minio and mc are neither built nor on PATH."""
    from local import install

    missing = [
        tool.name for tool in install.TOOLS if not tool.test_only and not tool.installed() and not tool.on_path()
    ]
    if not missing:
        return [Check("minio", "ok", "minio and mc are built or on PATH")]
    version = re.search(r"go(\d+)\.(\d+)\S*", _output(["go", "version"]))
    to_get = "install Go 1.24 or newer from go.dev/dl, or put minio and mc on PATH"
    if not version:
        return [Check("go", "wrong", f"not found, and needed to build {' and '.join(missing)}", to_get)]
    if (int(version[1]), int(version[2])) < GO:
        return [Check("go", "wrong", f"{version[0]}; required 1.24 or newer to build {' and '.join(missing)}", to_get)]
    return [Check("go", "ok", f"{version[0]}, to build {' and '.join(missing)}")]


def ports_check(setup: Setup, chosen: str) -> Check:
    wanted = setup.ports if chosen == "local" else {name: setup.ports[name] for name in DOORS}
    wanted = {name: port for name, port in wanted.items() if name in DOORS or name in INNER}
    if engine.is_up(setup, chosen):
        return Check("ports", "ok", "held by the running stack")
    taken = ports.busy(wanted, setup.bind)
    if taken:
        said = "; ".join(f"{setup.ports[name]} ({name}) is in use by {who}" for name, who in taken.items())
        return Check("ports", "wrong", said, f"stop it, or set another port, for example make up {next(iter(taken))}=…")
    return Check("ports", "ok", " ".join(str(port) for port in wanted.values()))


def _cores() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int:
    try:
        rows = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    return int(re.search(r"MemTotal:\s+(\d+)", rows)[1]) * 1024  # type: ignore[index]


def _output(argv: list[str]) -> str:
    """What a program says on both streams; empty if it is missing or fails."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return (done.stdout + done.stderr).strip() if done.returncode == 0 else ""


def _works(argv: list[str]) -> bool:
    return bool(_output(argv))
