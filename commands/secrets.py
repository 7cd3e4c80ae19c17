"""What a person needs to log in: MinIO's console, and the API key of the door."""

from pathlib import Path
from typing import Annotated

import typer

from commands import output
from commands.options import Json
from commands.settings import CommandSettings
from weightless.errors import SettingsError
from weightless.settings import StoreSettings

SHOWN = ("user", "password", "api-key")


def credentials(
    show: Annotated[str, typer.Option(help="Only this one, bare: user, password or api-key.")] = "",
    of: Annotated[str, typer.Option(help="Whose keys: minio (the root user), publisher or node.")] = "minio",
    as_json: Json = False,
) -> None:
    """The login of MinIO's console, and the API key if one is set."""
    settings = CommandSettings.load()
    if show and show not in SHOWN:
        raise SettingsError(f"SHOW: required {', '.join(SHOWN[:-1])} or {SHOWN[-1]}, found {show!r}")
    found = {"api-key": settings.key()} if show == "api-key" else _login(settings, of) | {"api-key": settings.key()}
    if show:
        if not found[show]:
            raise SettingsError(f"{show}: none is set; API_KEY in .env sets one")
        print(found[show])
    elif as_json:
        output.data(found)
    else:
        key = found["api-key"] or "none is set: the doors are open on this machine only"
        output.pairs(
            [("MinIO user", found["user"] or ""), ("MinIO password", found["password"] or ""), ("API key", key)]
        )


def _login(settings: CommandSettings, user: str) -> dict[str, str | None]:
    """The pair that the first start made; of a store that is not ours, what the settings say."""
    folder = settings.secrets_dir / user
    if not folder.exists() and (store := StoreSettings.load()).s3_access_key and store.s3_secret_key:
        return {"user": store.s3_access_key, "password": store.s3_secret_key.get_secret_value()}
    return {"user": _read(folder / "access_key"), "password": _read(folder / "secret_key")}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise SettingsError(
            f"required the file {path}, found: {error.strerror}; the stack makes it at its first start: make up"
        ) from None
