"""What a person needs to log in: MinIO's console, and the API key of the door."""

from pathlib import Path
from typing import Annotated

import typer

from commands import output
from commands.options import Json
from commands.settings import CommandSettings
from weightless.errors import SettingsError


def credentials(
    show: Annotated[str, typer.Option(help="Only this one, bare: user, password or api-key.")] = "",
    of: Annotated[str, typer.Option(help="Whose keys: minio (the root user), publisher or node.")] = "minio",
    as_json: Json = False,
) -> None:
    """The login of MinIO's console, and the API key if one is set."""
    settings = CommandSettings.load()
    found = {"api-key": settings.key()} if show == "api-key" else _login(settings, of) | {"api-key": settings.key()}
    if show:
        if show not in ("user", "password", "api-key"):
            raise SettingsError(f"SHOW: required user, password or api-key, found {show!r}")
        if not found[show]:
            raise SettingsError(f"{show}: none is set; API_KEY in .env sets one")
        print(found[show])
    elif as_json:
        output.data(found)
    else:
        rows = [
            ("MinIO user", found["user"] or ""),
            ("MinIO password", found["password"] or ""),
            ("API key", found["api-key"] or "none is set: the doors are open on this machine only"),
        ]
        output.pairs(rows)


def _login(settings: CommandSettings, user: str) -> dict[str, str | None]:
    folder = settings.secrets_dir / user
    return {"user": _read(folder / "access_key"), "password": _read(folder / "secret_key")}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError(
            f"required the file {path}, found: {error.strerror}; the stack makes it at its first start: make up"
        ) from None
