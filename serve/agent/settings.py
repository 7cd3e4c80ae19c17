"""The agent's settings, from the environment, and the environment of the processes that it starts."""

import ipaddress
import os
import sys
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, HttpUrl, model_validator

from weightless.paths import checked_model
from weightless.settings import MIB, ApiKeySettings

ROOT = Path(__file__).resolve().parents[2]

Port = Annotated[int, Field(ge=1, le=65535)]
_OURS_ALONE = ("API_KEY", "API_KEY_FILE", "HF_TOKEN")  # no worker needs them: a handler could be anybody's code


class AgentSettings(ApiKeySettings):
    """Where the agent listens, where TorchServe does, and what is served. `.env.example` explains each."""

    bind: str = "127.0.0.1"
    agent_host: str = "127.0.0.1"
    agent_port: Port = 8080
    torchserve_inference_port: Port = 8085
    torchserve_management_port: Port = 8086
    torchserve_metrics_port: Port = 8087
    torchserve_worker_port: Port = 9500
    state_dir: Path = Path(".run/serve")
    handler_dir: Path = ROOT / "handler"
    config_dir: Path = ROOT / "config"
    models_config_dir: Path = ROOT / "config" / "models"
    serve_models: str = ""
    max_inflight: Annotated[int, Field(ge=1)] = 256
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 * MIB
    client_seconds: Annotated[float, Field(gt=0)] = 30.0
    poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    parallel_rollouts: Annotated[int, Field(ge=1)] = 2
    hold_seconds: Annotated[float, Field(ge=0)] = 10.0
    zygote: bool = True
    require_gpu: bool = False
    baseline_inference_url: HttpUrl | None = None
    baseline_management_url: HttpUrl | None = None
    baseline_usage_url: HttpUrl | None = None
    baseline_store: Path | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.key() is None and not is_loopback(self.bind):
            raise ValueError(
                f"BIND={self.bind} publishes the agent beyond this machine: required API_KEY or API_KEY_FILE, found neither; "
                "set one, or remove BIND"
            )
        baseline = (self.baseline_inference_url, self.baseline_management_url, self.baseline_store)
        if any(baseline) and not all(baseline):
            raise ValueError(
                "required BASELINE_INFERENCE_URL, BASELINE_MANAGEMENT_URL and BASELINE_STORE together, found only some of them"
            )
        for name in self.wanted_models():
            checked_model(name)
        return self

    def wanted_models(self) -> tuple[str, ...]:
        """SERVE_MODELS as names; empty: every model that has an alias."""
        return tuple(name for part in self.serve_models.split(",") if (name := part.strip()))

    @property
    def inference_url(self) -> str:
        return f"http://127.0.0.1:{self.torchserve_inference_port}"

    @property
    def management_url(self) -> str:
        return f"http://127.0.0.1:{self.torchserve_management_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://127.0.0.1:{self.torchserve_metrics_port}"

    @property
    def model_store(self) -> Path:
        """Absolute folder from which TorchServe registers archives."""
        return self.state_dir.resolve() / "model-store"

    @property
    def log_dir(self) -> Path:
        return self.state_dir.resolve() / "logs"

    def ledger_dir(self, model: str, version: str) -> Path:
        """Where the workers of one registered version write the phases of their start, `<pid>.json` each."""
        return self.state_dir.resolve() / "ledger" / model / version


def is_loopback(address: str) -> bool:
    """Whether only this machine can connect to an address that is listened on."""
    if address == "localhost":
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def child_environment(extra: dict[str, str] | None = None) -> dict[str, str]:
    """The environment for TorchServe, its workers and our helpers: ours, without the secrets that are the agent's alone."""
    return {name: value for name, value in os.environ.items() if name not in _OURS_ALONE} | (extra or {})


def python() -> str:
    """The interpreter that children run, the one that we run."""
    return sys.executable
