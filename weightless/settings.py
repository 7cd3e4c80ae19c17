"""The environment, read once into typed settings: the store, the node cache, the fetch.

Each process makes the settings it needs at its start and passes them on; nothing else reads the environment.
"""

import getpass
import socket
from pathlib import Path
from typing import Annotated, Self

from pydantic import AnyHttpUrl, Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from weightless.errors import SettingsError

MIB = 1 << 20


class Settings(BaseSettings):
    """Base: empty variables count as not set, and a wrong value is one clear SettingsError."""

    model_config = SettingsConfigDict(
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        populate_by_name=True,
        defer_build=True,  # of the validators: a process builds those that it uses
    )

    @classmethod
    def load(cls) -> Self:
        """Read the environment.

        Raises:
            SettingsError: naming each variable, what was required and what was found.
        """
        try:
            return cls()
        except ValidationError as error:
            wrong = "; ".join(
                f"{'.'.join(map(str, e['loc'])).upper() or 'settings'}: {e['msg']}" for e in error.errors()
            )
            raise SettingsError(f"{wrong}; .env.example explains every setting") from None


class ApiKeySettings(Settings):
    """For whoever asks for the front door's key, or has to show it: API_KEY, or a file that holds it; neither: none is set."""

    api_key: SecretStr | None = None
    api_key_file: Path | None = None

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


def who() -> str:
    """user@host: who moves an alias, unless SEED_BY says so."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


class StoreSettings(Settings):
    """Where the buckets are, and with whose keys. S3_CREDENTIALS_DIR holds the files `access_key` and `secret_key`."""

    s3_endpoint: AnyHttpUrl = AnyHttpUrl("http://127.0.0.1:9000")
    s3_region: str = "us-east-1"
    s3_access_key: str | None = None
    s3_secret_key: SecretStr | None = None
    s3_credentials_dir: Path | None = None
    s3_ca_bundle: Path | None = None
    models_bucket: str = "models"
    releases_bucket: str = "releases"

    @field_validator("s3_endpoint")
    @classmethod
    def _no_path(cls, url: AnyHttpUrl) -> AnyHttpUrl:
        if url.path not in (None, "", "/") or url.query or url.username:
            raise ValueError(f"required scheme, host and port only, found {str(url)!r}")
        return url

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = (self.s3_access_key is not None, self.s3_secret_key is not None)
        if any(given) and not all(given):
            raise ValueError("required S3_ACCESS_KEY and S3_SECRET_KEY together, found only one of them")
        if not any(given) and self.s3_credentials_dir is None:
            raise ValueError("required S3_ACCESS_KEY and S3_SECRET_KEY, or S3_CREDENTIALS_DIR; found neither")
        if self.s3_ca_bundle is not None and not self.s3_ca_bundle.is_file():
            raise ValueError(f"required a file of certificates in S3_CA_BUNDLE, found none at {self.s3_ca_bundle}")
        return self

    @property
    def secure(self) -> bool:
        return self.s3_endpoint.scheme == "https"

    @property
    def netloc(self) -> str:
        """Host and port, as minio-py wants them."""
        return f"{self.s3_endpoint.host}:{self.s3_endpoint.port}"

    def credentials(self) -> tuple[str, str]:
        """Access key and secret key.

        Raises:
            SettingsError: the folder of credentials lacks a file, or it cannot be read.
        """
        if self.s3_access_key is not None and self.s3_secret_key is not None:
            return self.s3_access_key, self.s3_secret_key.get_secret_value()
        assert self.s3_credentials_dir is not None
        access_key, secret_key = (self._secret(self.s3_credentials_dir / name) for name in ("access_key", "secret_key"))
        return access_key, secret_key

    @staticmethod
    def _secret(path: Path) -> str:
        try:
            text = path.read_text().strip()
        except OSError as error:
            raise SettingsError(
                f"S3_CREDENTIALS_DIR: required a readable file {path}, found: {error.strerror}"
            ) from error
        if not text:
            raise SettingsError(f"S3_CREDENTIALS_DIR: required a key in {path}, found an empty file")
        return text


class CacheSettings(Settings):
    """Where this node keeps the files of releases, and how many bytes they may take (0: as many as the disk has)."""

    cache_dir: Path = Path("/var/cache/weightless")
    cache_max_bytes: Annotated[int, Field(ge=0)] = 0


class FetchSettings(Settings):
    """How a release is fetched. Defaults are measured on loopback; see docs/performance.md."""

    fetch_connections: Annotated[int, Field(ge=1, le=64)] = 4
    fetch_part_bytes: Annotated[int, Field(ge=MIB)] = 64 * MIB
    fetch_stall_seconds: Annotated[float, Field(gt=0)] = 10.0
    fetch_attempts: Annotated[int, Field(ge=1)] = 6
