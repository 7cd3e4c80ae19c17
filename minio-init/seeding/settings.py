"""What seeding needs to be told, beside the store's own settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from weightless.settings import Settings, who


class SeedSettings(Settings):
    """MC is the client program; DOWNLOAD_DIR holds what is on its way from the hub to the store."""

    mc: str = "mc"
    download_dir: Path = Path(".run/downloads")
    samples_dir: Path = Path("build/samples")
    s3_access_key: str | None = None  # given: the store is not the stack's own
    models_config_dir: Path = Path("config/models")
    hf_token: SecretStr | None = None
    hf_endpoint: str = "https://huggingface.co"
    by: str = Field(default_factory=who, validation_alias="SEED_BY")
