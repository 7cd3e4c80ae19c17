"""The commands as the make targets run them: a process of their own, its words and its exit status."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from tests.services import ROOT, TOOLS, MinioServer, free_port

BY = {"SEED_BY": "anna@desk"}


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def command(environment: dict[str, str], *words: str, stdin: str = "") -> Ran:
    """Run `python -m commands …` with nothing but this environment. No output may ever hold a traceback."""
    clean = {name: value for name, value in os.environ.items() if name in ("HOME", "LANG", "TMPDIR")}
    paths = {
        "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(str(ROOT / part) for part in (".", "handler", "minio-init")),
    }
    argv = [sys.executable, "-m", "commands", *words]
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env=clean | paths | environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def run(server: MinioServer, *words: str, **environment: str) -> Ran:
    """A command on this store, with no agent."""
    nobody = {"AGENT_URL": f"http://127.0.0.1:{free_port()}"}
    return command(server.environment | nobody | BY | environment, *words)
