"""What the commands need to be told, beside the store's own settings."""

from pathlib import Path

from pydantic import AnyHttpUrl, Field

from weightless.settings import ApiKeySettings, who


class CommandSettings(ApiKeySettings):
    """AGENT_URL is the front door; SECRETS_DIR holds what `seeding secrets` made, one folder for each user."""

    agent_url: AnyHttpUrl = AnyHttpUrl("http://127.0.0.1:8080")
    secrets_dir: Path = Path(".run/secrets")
    by: str = Field(default_factory=who, validation_alias="SEED_BY")

    @property
    def url(self) -> str:
        """AGENT_URL without a slash at its end."""
        return str(self.agent_url).rstrip("/")
