"""The programs of the stack: how each is started, what it may know, and how one sees that it is ready."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local.config import ROOT, Setup
from local.install import BIN, VENV

PYTHON = str(VENV / "bin/python")


@dataclass(frozen=True)
class Program:
    """`once`: it must end with status 0 before the next one starts; else `ready` says so (None: not yet, else a remark)."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    once: bool = False
    ready: Callable[[], str | None] = lambda: ""
    stop_seconds: float = 10.0


def stack(setup: Setup) -> list[Program]:
    """What runs, in the order in which it starts."""
    bundled = [secrets(setup), minio(setup)] if setup.own_store else []
    return [*bundled, samples(setup), seed(setup), agent(setup), locust(setup)]


def environment(setup: Setup, user: str) -> dict[str, str]:
    """What every program is told, with the S3 keys of `user`: "publisher" may write, "node" may read."""
    env = {name: value for name, value in setup.values.items() if value}
    env |= {
        "PYTHONPATH": ":".join(str(ROOT / part) for part in (".", "handler", "minio-init")),
        "PATH": f"{BIN}:{VENV / 'bin'}:{setup.values.get('PATH', '/usr/local/bin:/usr/bin:/bin')}",
        "PYTHONUNBUFFERED": "1",
        "AGENT_URL": setup.values.get("AGENT_URL") or setup.url("AGENT_PORT"),
        "SECRETS_DIR": str(setup.run / "secrets"),
        "SAMPLES_DIR": samples_dir(setup),
        "DOWNLOAD_DIR": setup.values.get("DOWNLOAD_DIR") or str(setup.run / "downloads"),
        "MODELS_CONFIG_DIR": setup.values.get("MODELS_CONFIG_DIR") or str(ROOT / "config/models"),
        "CACHE_DIR": setup.values.get("CACHE_DIR") or str(setup.run / "cache"),
    }
    if setup.api_key:
        env["API_KEY"] = setup.api_key
        env.pop("API_KEY_FILE", None)
    if setup.own_store:
        env |= {"S3_ENDPOINT": setup.url("MINIO_PORT"), "S3_CREDENTIALS_DIR": str(setup.run / "secrets" / user)}
    return env


def secrets(setup: Setup) -> Program:
    argv = (PYTHON, "-m", "seeding", "secrets", "--dir", str(setup.run / "secrets"))
    return Program("secrets", argv, environment(setup, "publisher"), once=True)


def minio(setup: Setup) -> Program:
    # --no-compat, as in the image: ETags are drawn, not MD5 sums, which cost half of an upload. docs/decisions/0009
    address, console = (f"{setup.bind}:{setup.ports[name]}" for name in ("MINIO_PORT", "MINIO_CONSOLE_PORT"))
    keys = setup.run / "secrets/minio"
    env = {name: setup.values[name] for name in ("PATH", "HOME", "TMPDIR", "LANG") if name in setup.values}
    env |= {"MINIO_ROOT_USER_FILE": str(keys / "access_key"), "MINIO_ROOT_PASSWORD_FILE": str(keys / "secret_key")}
    env |= {"MINIO_PROMETHEUS_AUTH_TYPE": "jwt", "MINIO_UPDATE": "off"}
    argv = (
        str(BIN / "minio"),
        "server",
        "--no-compat",
        "--quiet",
        "--address",
        address,
        "--console-address",
        console,
        str(setup.run / "minio"),
    )
    return Program("minio", argv, env, ready=lambda: answers(f"{setup.url('MINIO_PORT')}/minio/health/ready"))


def seed(setup: Setup) -> Program:
    """Buckets, users, policies, and the built-in models where no alias exists. Users of a store that is not ours are not."""
    users = ("--secrets", str(setup.run / "secrets")) if setup.own_store else ()
    return Program("minio-init", (PYTHON, "-m", "seeding", "init", *users), environment(setup, "publisher"), once=True)


def samples(setup: Setup) -> Program:
    """The built-in models as folders, made once."""
    argv = (PYTHON, "-m", "seeding", "samples", "--out", samples_dir(setup))
    return Program("samples", argv, environment(setup, "publisher"), once=True)


def samples_dir(setup: Setup) -> str:
    return setup.values.get("SAMPLES_DIR") or str(ROOT / "build/samples")


def agent(setup: Setup) -> Program:
    host = setup.bind
    env = environment(setup, "node") | {
        "AGENT_HOST": host,
        "STATE_DIR": str(setup.run / "serve"),
        "HANDLER_DIR": setup.values.get("HANDLER_DIR") or str(ROOT / "handler"),
        "BASELINE_INFERENCE_URL": f"http://127.0.0.1:{setup.ports['BASELINE_INFERENCE_PORT']}",
        "BASELINE_MANAGEMENT_URL": f"http://127.0.0.1:{setup.ports['BASELINE_MANAGEMENT_PORT']}",
        "BASELINE_USAGE_URL": f"http://127.0.0.1:{setup.ports['BASELINE_USAGE_PORT']}",
        "BASELINE_STORE": str(setup.run / "baseline/store"),
    }
    return Program("agent", (PYTHON, "-m", "serve.agent"), env, ready=lambda: models_answer(setup), stop_seconds=30)


def locust(setup: Setup) -> Program:
    argv: tuple[str, ...] = (
        PYTHON,
        "-m",
        "locust",
        "--locustfile",
        str(ROOT / "loadtest/locustfile.py"),
        "--web-host",
        setup.bind,
    )
    argv += ("--web-port", str(setup.ports["LOCUST_PORT"]))
    return Program("locust", argv, environment(setup, "node"), ready=lambda: answers(setup.url("LOCUST_PORT")))


def baseline(setup: Setup) -> Program:
    """Stock TorchServe, for embedded archives: no agent, no zygote."""
    env = environment(setup, "node")
    env |= {"STATE_DIR": str(setup.run / "baseline"), "BASELINE_STORE": str(setup.run / "baseline/store")}
    url = f"http://127.0.0.1:{setup.ports['BASELINE_INFERENCE_PORT']}/ping"
    return Program("baseline", (PYTHON, "-m", "serve.baseline"), env, ready=lambda: answers(url), stop_seconds=20)


# ---- readiness


def answers(url: str) -> str | None:
    """ "" once the URL answers 200, None before."""
    return "" if get(url)[0] == 200 else None


def models_answer(setup: Setup) -> str | None:
    """ "" once all models are served; a remark once the rest has failed, so that a broken one does not hold up the stack."""
    if get(f"{setup.url('AGENT_PORT')}/healthz")[0] == 200:
        return ""
    models = agent_status(setup).get("models", {})
    failed = [name for name, model in models.items() if model.get("state") == "failed"]
    pending = [name for name, model in models.items() if model.get("state") in ("starting", "fetching")]
    if (
        failed
        and not pending
        and all(model.get("state") in ("failed", "serving", "stopped") for model in models.values())
    ):
        return f"{', '.join(failed)} failed; make status says why"
    return None


def agent_status(setup: Setup) -> dict[str, Any]:
    """The agent's /status; {} while it does not answer."""
    status, body = get(f"{setup.url('AGENT_PORT')}/status", setup.api_key)
    try:
        document = json.loads(body) if status == 200 else {}
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def get(url: str, key: str | None = None, timeout: float = 2.0) -> tuple[int, bytes]:
    """Status and body; 0 where nothing answers."""
    return _ask(urllib.request.Request(url), key, timeout)  # noqa: S310


def post(url: str, body: object, key: str | None = None, timeout: float = 120.0) -> tuple[int, bytes]:
    """The same, with a JSON body."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})  # noqa: S310
    return _ask(request, key, timeout)


def _ask(request: urllib.request.Request, key: str | None, timeout: float) -> tuple[int, bytes]:
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    try:
        with _DIRECT.open(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (OSError, ValueError):
        return 0, b""


_DIRECT = urllib.request.build_opener(
    urllib.request.ProxyHandler({})
)  # this machine's own doors are never behind a proxy


def log_path(setup: Setup, name: str) -> Path:
    return setup.run / "logs" / f"{name}.log"
