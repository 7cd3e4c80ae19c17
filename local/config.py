"""The settings of a stack on this machine: `.env`, overridden by the environment, as Compose reads them.

`Setup` is made once per process; nothing else in this package reads the environment.
"""

from __future__ import annotations

import getpass
import hashlib
import ipaddress
import os
import re
import shlex
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local.errors import LocalError

ROOT = Path(__file__).resolve().parent.parent
OFF = {"", "0", "no", "false", "off"}

# Published doors first; TorchServe's own three, and its workers' first, listen on loopback whatever BIND says.
DOORS = {"MINIO_PORT": 9000, "MINIO_CONSOLE_PORT": 9001, "AGENT_PORT": 8080, "LOCUST_PORT": 8089}
INNER = {
    "TORCHSERVE_INFERENCE_PORT": 8085,
    "TORCHSERVE_MANAGEMENT_PORT": 8086,
    "TORCHSERVE_METRICS_PORT": 8087,
    "TORCHSERVE_WORKER_PORT": 9500,
}
BASELINE = {
    "BASELINE_INFERENCE_PORT": 8185,
    "BASELINE_MANAGEMENT_PORT": 8186,
    "BASELINE_METRICS_PORT": 8187,
    "BASELINE_USAGE_PORT": 8188,
    "BASELINE_WORKER_PORT": 9700,
}


@dataclass(frozen=True)
class Setup:
    """`values` holds every setting that was given; `run` is the folder with all that the processes keep."""

    values: Mapping[str, str]
    run: Path
    bind: str
    ports: Mapping[str, int]
    api_key: str | None

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, root: Path = ROOT) -> Setup:
        """Read `.env` and the environment.

        Raises:
            LocalError: a line of `.env`, a port or BIND is wrong, or the stack would be open to the network without a key.
        """
        values = read_env_file(root / ".env") | dict(os.environ if environ is None else environ)
        ports = {name: _port(name, values.get(name), default) for name, default in (DOORS | INNER | BASELINE).items()}
        _distinct(ports)
        bind = values.get("BIND") or "127.0.0.1"
        api_key = _api_key(values, root)
        if not is_loopback(bind) and not api_key:
            raise LocalError(
                f"BIND is {bind}, which is reachable from other machines, and no API_KEY is set; "
                "set API_KEY in .env, or leave BIND at 127.0.0.1"
            )
        return cls(values, (root / (values.get("RUN_DIR") or ".run")).resolve(), bind, ports, api_key)

    def flag(self, name: str) -> bool:
        return self.values.get(name, "").strip().lower() not in OFF

    @property
    def host(self) -> str:
        """The address at which this machine reaches what is published."""
        if self.bind in ("0.0.0.0", "::"):  # noqa: S104
            return "127.0.0.1"
        return f"[{self.bind}]" if ":" in self.bind else self.bind

    def url(self, port: str) -> str:
        return f"http://{self.host}:{self.ports[port]}"

    @property
    def own_store(self) -> bool:
        """Whether the bundled MinIO is the store; false once S3_ENDPOINT names another."""
        return not self.values.get("S3_ENDPOINT")

    @property
    def by(self) -> str:
        """Who does this, for the history of an alias."""
        try:
            user = getpass.getuser()
        except (KeyError, OSError):  # a container's user id without a name
            user = str(os.getuid())
        return self.values.get("SEED_BY") or f"{user}@{socket.gethostname()}"

    @property
    def fingerprint(self) -> str:
        """Changes when a setting that `.env.example` lists changes: a running stack would then be another."""
        given = {name: self.values[name] for name in sorted(known_settings()) if self.values.get(name)}
        return hashlib.sha256(repr(given).encode()).hexdigest()


def known_settings(root: Path = ROOT) -> set[str]:
    """The names that `.env.example` explains."""
    try:
        text = (root / ".env.example").read_text()
    except FileNotFoundError:
        return set(DOORS) | set(INNER) | {"BIND", "API_KEY"}
    names = (line.lstrip("# ").partition("=")[0] for line in text.splitlines() if "=" in line)
    return {name for name in names if name.isidentifier() and name.isupper()}


def read_env_file(path: Path) -> dict[str, str]:
    """NAME=value lines, quoted or not, as Compose reads the simple ones; {} where there is no file."""
    values: dict[str, str] = {}
    try:
        text = path.read_text()
    except FileNotFoundError:
        return values
    except (OSError, UnicodeDecodeError) as error:
        raise LocalError(f"{path}: required a readable file of NAME=value lines, found: {error}") from None
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip().removeprefix("export ")
        if not stripped or stripped.startswith("#"):
            continue
        name, equals, value = stripped.partition("=")
        if not equals or not name.strip().isidentifier():
            raise LocalError(f"{path}:{number}: required NAME=value, found {line!r}")
        try:
            values[name.strip()] = _value(value.strip())
        except ValueError as error:
            raise LocalError(f"{path}:{number}: {error} in the value of {name.strip()}") from None
    return values


def _value(text: str) -> str:
    """As Compose reads it: quotes are taken off, and a comment begins at a # with a blank before it."""
    if text.startswith(("'", '"')):
        return " ".join(shlex.split(text, comments=True))
    return re.sub(r"(^|\s+)#.*$", "", text)


def is_loopback(address: str) -> bool:
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        raise LocalError(f"BIND: required an address such as 127.0.0.1 or 0.0.0.0, found {address!r}") from None


def _port(name: str, text: str | None, default: int) -> int:
    if not text:
        return default
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise LocalError(f"{name}: required a port from 1 to 65535, found {text!r}")
    return int(text)


def _distinct(ports: Mapping[str, int]) -> None:
    seen: dict[int, str] = {}
    for name, port in ports.items():
        if port in seen:
            raise LocalError(f"{name} and {seen[port]} are both {port}; give each a port of its own in .env")
        seen[port] = name


def _api_key(values: Mapping[str, str], root: Path) -> str | None:
    if values.get("API_KEY"):
        return values["API_KEY"]
    if not values.get("API_KEY_FILE"):
        return None
    path = root / values["API_KEY_FILE"]
    try:
        return path.read_text().strip() or None
    except OSError as error:
        raise LocalError(f"API_KEY_FILE: required a readable file, found {path}: {error.strerror}") from None
