"""Which engine runs the stack, and how it is asked: the only place, with `processes` below it, that knows one from the other.

A Docker engine where `docker compose` answers and no stack of processes runs here; else plain processes. ENGINE=docker or
ENGINE=local decides it by hand.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
from pathlib import Path

from local import stack
from local.config import ROOT, Setup
from local.errors import LocalError

ENGINES = ("docker", "local")


def choose(setup: Setup) -> str:
    """ "docker" or "local".

    Raises:
        LocalError: ENGINE is another word, or asks for an engine that does not answer.
    """
    forced = setup.values.get("ENGINE", "")
    if forced and forced not in ENGINES:
        raise LocalError(f"ENGINE: required docker or local, found {forced!r}")
    if forced == "docker" and not docker_version():
        raise LocalError(f"ENGINE=docker, but no engine answers: {why_not()}; start it, or use ENGINE=local")
    if forced:
        return forced
    return "docker" if not stack.is_running(setup) and docker_version() else "local"


@functools.cache
def docker_version() -> str | None:
    """The engine's version, if both it and `docker compose` answer."""
    engine = _docker("version", "--format", "{{.Server.Version}}")
    return engine.stdout.strip() if engine and engine.returncode == 0 and not _compose_missing() else None


@functools.cache
def why_not() -> str:
    """Why no engine can be used, in words."""
    if not shutil.which("docker"):
        return "docker is not installed"
    answer = _docker("version", "--format", "{{.Server.Version}}")
    if answer is None:
        return "docker does not answer within 10 s"
    if answer.returncode != 0:
        said = (answer.stderr.strip() or "no answer").splitlines()[-1]
        return (
            "no permission; add yourself to the group docker"
            if "permission denied" in said.lower()
            else said[:100].rstrip(".")
        )
    return "the compose plugin is missing; apt-get install docker-compose-plugin"


def docker_runtimes() -> set[str]:
    answer = _docker("info", "--format", "{{json .Runtimes}}")
    return set(json.loads(answer.stdout)) if answer and answer.returncode == 0 and answer.stdout.strip() else set()


def docker_root() -> Path:
    """Where the engine keeps its data, if it is on this machine; else the checkout."""
    answer = _docker("info", "--format", "{{.DockerRootDir}}")
    folder = Path(answer.stdout.strip() or ROOT) if answer and answer.returncode == 0 else ROOT
    return folder if os.access(folder, os.X_OK) else ROOT


def images_built() -> bool:
    answer = _docker("compose", "images", "--quiet")
    return bool(answer and answer.returncode == 0 and answer.stdout.strip())


def is_up(setup: Setup, engine: str) -> bool:
    """Whether the stack's long-running programs are there."""
    return (
        stack.is_running(setup)
        if engine == "local"
        else "minio" in running_services() or "torchserve" in running_services()
    )


def running_services() -> set[str]:
    answer = _docker("compose", "ps", "--services", "--status", "running")
    return set(answer.stdout.split()) if answer and answer.returncode == 0 else set()


def compose_containers() -> bool:
    """Whether this project has any container, running or not."""
    answer = _docker("compose", "--profile", "*", "ps", "--all", "--quiet")
    return bool(answer and answer.returncode == 0 and answer.stdout.strip())


def volumes() -> list[str]:
    """The project's volumes on the engine."""
    answer = _docker("volume", "ls", "--quiet", "--filter", f"label=com.docker.compose.project={project()}")
    return answer.stdout.split() if answer and answer.returncode == 0 else []


@functools.cache
def project() -> str:
    """The Compose project's name, which its volumes carry.

    Raises:
        LocalError: the compose file cannot be read with these settings.
    """
    answer = _docker("compose", "config", "--format", "json")
    if answer is None or answer.returncode != 0:
        raise LocalError(f"docker compose config: {answer.stderr.strip() if answer else 'no answer within 10 s'}")
    return str(json.loads(answer.stdout)["name"])


def environment(setup: Setup) -> dict[str, str]:
    """What every start of a service is told: the settings, and the engine's nvidia runtime if it has one and none was chosen."""
    env = dict(setup.values)
    if not env.get("TORCHSERVE_RUNTIME") and "nvidia" in docker_runtimes():
        env["TORCHSERVE_RUNTIME"] = "nvidia"
    return env


def compose(*words: str, quiet: bool = False) -> list[str]:
    return ["docker", "compose", *(("--progress", "quiet") if quiet else ()), *words]


def _compose_missing() -> bool:
    answer = _docker("compose", "version", "--short")
    return answer is None or answer.returncode != 0


def _docker(*words: str) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(["docker", *words], capture_output=True, text=True, timeout=10, cwd=ROOT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
