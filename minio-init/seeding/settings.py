"""What seeding needs to be told, beside the store's own settings."""

from __future__ import annotations

import getpass
import socket
from pathlib import Path

from pydantic import Field, SecretStr

from weightless.settings import Settings


class SeedSettings(Settings):
    """MC is the client program; DOWNLOAD_DIR holds what is on its way from the hub to the store."""

    mc: str = "mc"
    download_dir: Path = Path(".run/downloads")
    samples_dir: Path = Path("build/samples")
    s3_access_key: str | None = None  # given: the store is not the stack's own
    models_config_dir: Path = Path("config/models")
    hf_token: SecretStr | None = None
    hf_endpoint: str = "https://huggingface.co"
    by: str = Field(default_factory=lambda: _who(), validation_alias="SEED_BY")


def _who() -> str:
    """user@host, for the history of an alias."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
