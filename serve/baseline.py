"""Stock TorchServe for comparison: `python -m serve.baseline`. No agent, no zygote; Java exactly as `torchserve` starts it, but in
the foreground, so that who stops this process stops the server (the command leaves it behind).

It serves embedded archives out of BASELINE_STORE, where the agent puts them. Nothing here is faster or slower than the stock:
only the addresses, the folders and the timeouts come from `config/baseline.properties`.
"""

import os
import sys
from pathlib import Path
from typing import NoReturn

from serve.agent.settings import ROOT, Port, child_environment
from serve.agent.torchserve import java_command
from weightless.errors import SettingsError
from weightless.settings import Settings


class BaselineSettings(Settings):
    """Where the baseline listens, and where its files lie."""

    baseline_host: str = "127.0.0.1"
    baseline_inference_port: Port = 8185
    baseline_management_port: Port = 8186
    baseline_metrics_port: Port = 8187
    baseline_worker_port: Port = 9700
    baseline_store: Path | None = None
    state_dir: Path = Path(".run/baseline")
    config_dir: Path = ROOT / "config"


def main() -> NoReturn:
    try:
        settings = BaselineSettings.load()
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    state = settings.state_dir.resolve()
    store, temp = settings.baseline_store or state / "store", state / "tmp"
    for folder in (store, temp):
        folder.mkdir(parents=True, exist_ok=True)
    environment = child_environment(
        {
            "TEMP": str(temp),
            "TMPDIR": str(temp),
            "LOG_LOCATION": str(state / "logs"),
            "METRICS_LOCATION": str(state / "logs"),
            **{
                name.upper(): str(getattr(settings, name))
                for name in type(settings).model_fields
                if name.endswith(("_port", "_host"))
            },
        }
    )
    environment.pop("PYTHONPATH", None)
    properties = settings.config_dir.resolve() / "baseline.properties"
    try:
        command = java_command([], sys.executable, properties, store, temp)
    except SettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    os.chdir(state)
    os.execve(command[0], command, environment)  # noqa: S606  it must be the process that is stopped


if __name__ == "__main__":
    main()
