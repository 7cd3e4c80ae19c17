"""What the commands need to be told, beside the store's own settings."""

import getpass
import socket
from pathlib import Path

from pydantic import AnyHttpUrl, Field, SecretStr

from weightless.errors import SettingsError
from weightless.settings import Settings


class CommandSettings(Settings):
    """AGENT_URL is the front door; SECRETS_DIR holds what `seeding secrets` made, one folder for each user."""

    agent_url: AnyHttpUrl = AnyHttpUrl("http://127.0.0.1:8080")
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    secrets_dir: Path = Path(".run/secrets")
    by: str = Field(default_factory=lambda: _who(), validation_alias="SEED_BY")

    @property
    def url(self) -> str:
        """AGENT_URL without a slash at its end."""
        return str(self.agent_url).rstrip("/")

    def key(self) -> str | None:
        """The API key, or None if none is set.

        Raises:
            SettingsError: the file that API_KEY_FILE names cannot be read.
        """
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        if self.api_key_file is None:
            return None
        try:
            return self.api_key_file.read_text().strip() or None
        except OSError as error:
            raise SettingsError(
                f"API_KEY_FILE: required a readable file {self.api_key_file}, found: {error.strerror}"
            ) from error


def _who() -> str:
    """user@host, for the history of an alias."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
