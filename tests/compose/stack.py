"""The compose file as shipped, driven as a person drives it, under a project name and on ports of its own."""

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.services import ROOT, free_port

PROJECT = "weightless-test"  # always the same, so that a run finds the images of the one before
DOORS = ("AGENT_PORT", "LOCUST_PORT", "MINIO_PORT", "MINIO_CONSOLE_PORT")


def clone_into(folder: Path) -> None:
    """What git tracks, as it is in the work tree now: a clean clone with the changes that are being tested."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of an HTTP answer, whatever the status."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Stack:
    """One project on the engine. `settings` are what a person would write into .env."""

    folder: Path
    settings: dict[str, str] = field(default_factory=lambda: {name: str(free_port()) for name in DOORS})

    # ---- compose

    def compose(
        self, *words: str, settings: Mapping[str, str] | None = None, check: bool = True, timeout: float = 3000
    ) -> "subprocess.CompletedProcess[str]":
        """`docker compose WORDS` with more settings for this call alone; AssertionError with all it said if it fails."""
        # The machine's own settings for the stack must not reach this one.
        env = {name: value for name, value in os.environ.items() if not name.startswith(("S3_", "API_KEY", "COMPOSE_"))}
        env |= {"COMPOSE_PROJECT_NAME": PROJECT, "COMPOSE_PROGRESS": "plain"} | self.settings | dict(settings or {})
        done = subprocess.run(
            ["docker", "compose", *words], cwd=self.folder, env=env, capture_output=True, text=True, timeout=timeout,
            stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            said = (done.stdout + done.stderr)[-6000:]
            raise AssertionError(
                f"docker compose {' '.join(words)}: status {done.returncode}\n{said}\n{self.logs()[-6000:]}"
            )
        return done

    def up(self, *words: str, **settings: str) -> None:
        """Returns once every service is healthy."""
        self.compose("up", "--detach", "--wait", *words, settings=settings)

    def command(self, *words: str) -> str:
        """A Python command in the seeding image, as `make` runs it; what it printed."""
        return self.compose("run", "--rm", "--no-deps", "-T", "minio-init", *words).stdout

    def logs(self, *services: str) -> str:
        return self.compose("--profile", "*", "logs", "--no-color", *services, check=False).stdout

    def containers(self) -> dict[str, dict[str, Any]]:
        """Each container as compose lists it, by service; also those that have ended."""
        lines = self.compose("ps", "--all", "--format", "json").stdout.splitlines()
        return {entry["Service"]: entry for entry in map(json.loads, lines)}

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows of a service's container."""
        return inspect(self.compose("ps", "--all", "--quiet", service).stdout.strip())

    # ---- the doors

    def url(self, door: str, path: str = "") -> str:
        return f"http://127.0.0.1:{self.settings[door]}{path}"

    def get(self, path: str, key: str | None = None, door: str = "AGENT_PORT") -> Answer:
        return ask(self.url(door, path), None, key)

    def post(self, path: str, body: object, key: str | None = None) -> Answer:
        return ask(self.url("AGENT_PORT", path), body, key)

    def generate(self, prompt: str) -> str:
        """What falcon-tiny makes of a prompt, greedily."""
        body = {"input": prompt, "parameters": {"do_sample": False, "max_new_tokens": 40}}
        answer = self.post("/predictions/falcon-tiny", body)
        assert answer.status == 200, answer.body
        return str(answer.json()[0]["generated_text"])

    def embed(self, text: str) -> list[float]:
        answer = self.post("/predictions/minilm", {"input": text})
        assert answer.status == 200, answer.body
        vector: list[float] = answer.json()["embedding"]
        return vector


def ask(url: str, body: object, key: str | None) -> Answer:
    """GET, or POST of a JSON body."""
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    if key is not None:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with urllib.request.urlopen(request, timeout=600) as answer:
            return Answer(answer.status, dict(answer.headers), answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, dict(error.headers), error.read())


def inspect(thing: str) -> dict[str, Any]:
    """What the engine knows of a container or an image."""
    found: list[dict[str, Any]] = json.loads(docker("inspect", thing))
    return found[0]


def docker(*words: str) -> str:
    return subprocess.run(["docker", *words], check=True, capture_output=True, text=True).stdout


def images() -> Iterable[str]:
    """The names of this project's images."""
    return docker("images", "--format", "{{.Repository}}", "--filter", f"reference={PROJECT}-*").split()
