"""The environment of a load test, read once."""

from typing import Annotated

from pydantic import AnyHttpUrl, Field

from weightless.settings import ApiKeySettings


class LoadtestSettings(ApiKeySettings):
    """Where the front door is, and with which key (API_KEY, or the file that API_KEY_FILE names; empty: none)."""

    agent_url: AnyHttpUrl = AnyHttpUrl("http://127.0.0.1:8080")
    locust_port: Annotated[int, Field(ge=1, le=65535)] = 8089

    @property
    def url(self) -> str:
        """AGENT_URL without a slash at the end."""
        return str(self.agent_url).rstrip("/")

    def headers(self) -> dict[str, str]:
        """The headers that each request to the agent needs.

        Raises:
            SettingsError: the file of the key cannot be read.
        """
        key = self.key()
        return {"Authorization": f"Bearer {key}"} if key else {}
