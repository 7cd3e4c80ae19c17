"""Runs a Python command of the project where the stack runs: in a container of it, or in `.venv`.

The words after `--` are the interpreter's. `{folder}` among them stands for the folder that --folder or --writable names, which a
container sees mounted. --save takes what the command writes to its standard output into a file, whole or not at all.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from local import engine, install, programs, say
from local.config import ROOT, Setup
from local.errors import LocalError

OWN = {
    "app",
    "opt",
    "usr",
    "etc",
    "bin",
    "sbin",
    "lib",
    "lib64",
    "proc",
    "sys",
    "dev",
    "secrets",
    "samples",
}  # an image's
SEEDING = "minio-init"  # the image with the commands
CACHE = "/var/cache/weightless"


@dataclass(frozen=True)
class Wanted:
    """What is to be run, with which folder or file of this machine ("": none), and whether it needs the node's cache."""

    words: list[str]
    service: str = SEEDING
    folder: str = ""
    writable: str = ""
    save: str = ""
    cache: bool = False

    @property
    def place(self) -> Path | None:
        """The folder, absolute; the one to be written is made.

        Raises:
            LocalError: there is no such folder, or it cannot be made.
        """
        place = Path(self.writable or self.folder).expanduser().resolve()
        if self.writable:
            try:
                place.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LocalError(f"required a folder that can be written at {place}, found: {error.strerror}") from None
        elif self.folder and not place.is_dir():
            raise LocalError(f"required a folder, found {'a file' if place.exists() else 'nothing'} at {place}")
        return place if self.writable or self.folder else None

    def filled(self, folder: Path | str | None) -> list[str]:
        return [word.replace("{folder}", str(folder)) for word in self.words] if folder else list(self.words)


def run(setup: Setup, wanted: Wanted, *, last: bool = False) -> int:
    """Run it and return its exit status; with `last`, where nothing is left to be done after it, it may leave by itself."""
    prepare = _in_container if engine.choose(setup) == "docker" else _in_venv
    argv, env = prepare(setup, wanted)
    sys.stdout.flush()
    if last and argv[:3] == [sys.executable, "-m", "commands"] and not wanted.save:
        _become_commands(argv[3:], env)
    try:
        return (
            _save(argv, env, Path(wanted.save))
            if wanted.save
            else subprocess.run(argv, cwd=ROOT, env=env, check=False).returncode
        )
    except KeyboardInterrupt:
        return 130


def ask(setup: Setup, wanted: Wanted) -> subprocess.CompletedProcess[str]:
    """Run it with nothing shown; what it said is in the answer."""
    prepare = _in_container if engine.choose(setup) == "docker" else _in_venv
    argv, env = prepare(setup, wanted)
    return subprocess.run(argv, cwd=ROOT, env=env, check=False, capture_output=True, text=True)


def _in_venv(setup: Setup, wanted: Wanted) -> tuple[list[str], dict[str, str]]:
    if not (ROOT / ".venv/bin/python").exists():
        install.install(setup.values)
    user = "publisher" if wanted.service == SEEDING else "node"
    return [programs.PYTHON, *wanted.filled(wanted.place)], programs.environment(setup, user) | {"SEED_BY": setup.by}


def _become_commands(words: list[str], env: dict[str, str]) -> NoReturn:
    """Run the command in this process: another would import much of the same again, 0.56 s of processor time instead of 0.64.

    The others stay apart: seeding is stopped by signals, and the load test patches modules that we have imported.
    """
    os.environ.clear()
    os.environ.update(env)
    os.chdir(ROOT)
    sys.path[:0] = env["PYTHONPATH"].split(":")
    sys.argv = ["commands", *words]
    runpy.run_module("commands", run_name="__main__", alter_sys=True)
    sys.exit(0)


def _in_container(setup: Setup, wanted: Wanted) -> tuple[list[str], dict[str, str]]:
    if "minio" not in engine.running_services() and setup.own_store:
        raise LocalError("the stack is not up on the Docker engine; start it with make up")
    options = ["--rm", "--no-deps", "-e", f"SEED_BY={setup.by}"]
    env = dict(setup.values)
    if wanted.save or not (sys.stdout.isatty() and sys.stdin.isatty()):
        options.append("-T")
    if wanted.writable:
        # The folder belongs to who types the command, so the container runs as them; they cannot read the keys' volume.
        options += ["--user", f"{os.getuid()}:{os.getgid()}", "-e", "S3_ACCESS_KEY", "-e", "S3_SECRET_KEY"]
        env |= _publisher_keys(env) if setup.own_store and wanted.service == SEEDING else {}
    if wanted.cache:
        options += ["--volume", f"{engine.project()}_cache:{CACHE}", "-e", f"CACHE_DIR={CACHE}"]
    inside = _inside(wanted.place) if wanted.place else None
    if inside:
        options += ["--volume", f"{wanted.place}:{inside}{'' if wanted.writable else ':ro'}"]
    return engine.compose("run", *options, wanted.service, *wanted.filled(inside), quiet=True), env


def _inside(place: Path) -> Path:
    """Where a container sees a folder: under the same name, for what is said about it, unless its own files lie there."""
    if ":" in str(place):
        raise LocalError(f"required a path without a colon, which Docker cannot mount, found {place}")
    return Path("/mnt") / place.relative_to("/") if len(place.parts) < 3 or place.parts[1] in OWN else place


def _publisher_keys(env: dict[str, str]) -> dict[str, str]:
    words = (
        "run",
        "--rm",
        "--no-deps",
        "-T",
        "minio-init",
        "-m",
        "commands",
        "credentials",
        "--of",
        "publisher",
        "--json",
    )
    found = subprocess.run(
        engine.compose(*words, quiet=True), cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    if found.returncode != 0:
        raise LocalError(f"the publisher's keys cannot be read: {found.stderr.strip()}")
    login = json.loads(found.stdout)
    return {"S3_ACCESS_KEY": login["user"], "S3_SECRET_KEY": login["password"]}


def _save(argv: list[str], env: dict[str, str], target: Path) -> int:
    target = target.expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as output:
        fresh = Path(output.name)
        try:
            status = subprocess.run(argv, cwd=ROOT, env=env, stdout=output, check=False).returncode
            if status == 0:
                fresh.chmod(0o644)
                os.replace(fresh, target)  # noqa: PTH105
                say.lines([f"{target}  {say.dim(say.size(target.stat().st_size))}"])
        finally:
            fresh.unlink(missing_ok=True)
    return status
