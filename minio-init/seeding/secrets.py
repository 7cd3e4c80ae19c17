"""Keys for the store, made once: one folder per consumer, each holding `access_key` and `secret_key`.

A folder whose two files exist is never touched again, so a second start keeps what the first one made.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from weightless.errors import SettingsError

#: consumer → its access key. `minio` is the root user; the others are made by `provision`.
ACCESS_KEYS = {
    "minio": "weightless-root",
    "publisher": "weightless-publisher",
    "node": "weightless-node",
}
#: MinIO takes at most 40 characters
_SECRET_BYTES = 30


def make_secrets(root: Path, owners: Mapping[str, int] | None = None) -> list[str]:
    """Make what is missing under `root` and return the consumers that got new keys.

    `owners` maps a consumer to the user id that its folder and files are to belong to (the ids of the services that
    read them); it needs root. Files get mode 0600, folders 0700. Raises SettingsError when a folder cannot be written.
    """
    owners = owners or {}
    unknown = sorted(set(owners) - set(ACCESS_KEYS))
    if unknown:
        raise SettingsError(f"owner of {unknown[0]!r}: required one of {', '.join(ACCESS_KEYS)}")
    made = []
    for consumer, access_key in ACCESS_KEYS.items():
        try:
            if _make(root / consumer, access_key, owners.get(consumer)):
                made.append(consumer)
        except OSError as error:
            raise SettingsError(
                f"secrets: required to write {error.filename}, found: {error.strerror}; "
                "give a folder that this user may write to"
            ) from error
    return made


def _make(folder: Path, access_key: str, owner: int | None) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    values = {"access_key": access_key, "secret_key": secrets.token_urlsafe(_SECRET_BYTES)}
    # The secret comes first and appears whole or not at all: a crash between the two leaves a pair to be completed.
    made = [_write_once(folder / name, values[name], owner) for name in ("secret_key", "access_key")]
    folder.chmod(0o700)
    if owner is not None:
        os.chown(folder, owner, owner)
    return any(made)


def _write_once(path: Path, value: str, owner: int | None) -> bool:
    """Write the file under another name and link it to its own, which fails if that exists: nobody's key is replaced."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    try:
        part.write_text(value, encoding="ascii")
        if owner is not None:
            os.chown(part, owner, owner)
        os.link(part, path)
    except FileExistsError:
        return False
    finally:
        part.unlink()
    return True


def owners_of(pairs: list[str]) -> dict[str, int]:
    """`["minio=1000"]` → `{"minio": 1000}`; SettingsError for anything else."""
    owners = {}
    for pair in pairs:
        consumer, separator, number = pair.partition("=")
        if not separator or not number.isdecimal():
            raise SettingsError(f"--owner: required CONSUMER=UID, as in minio=1000, found {pair!r}")
        owners[consumer] = int(number)
    return owners
