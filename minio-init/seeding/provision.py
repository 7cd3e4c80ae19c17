"""Buckets, versioning, policies and users, brought to the state they should have. Running it again changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

from seeding.mc import ALIAS, Mc, configured_mc
from seeding.policies import ATTACHED, policies
from weightless.settings import StoreSettings


def provision(settings: StoreSettings, mc_program: str, secrets: Path | None) -> list[str]:
    """Bring the store to its state and return what was made sure of, one line each.

    `settings` are those of a user who may do this (the root user of the bundled MinIO). `secrets` is the folder that
    `make_secrets` filled; without it, as with a store that is not ours, users and policies are left alone.

    Raises StoreUnavailable, AccessDenied, SettingsError.
    """
    with configured_mc(settings, mc_program) as mc:
        done = [_bucket(mc, bucket) for bucket in (settings.models_bucket, settings.releases_bucket)]
        if secrets is None:
            return done
        documents = policies(settings.models_bucket, settings.releases_bucket)
        for name, document in documents.items():
            file = mc.config_dir / f"{name}.json"
            file.write_text(json.dumps(document), encoding="utf-8")
            mc.run("admin", "policy", "create", ALIAS, name, str(file))
        done += [_user(mc, secrets / consumer, names) for consumer, names in ATTACHED.items()]
        return done


def _bucket(mc: Mc, bucket: str) -> str:
    mc.run("mb", "--ignore-existing", f"{ALIAS}/{bucket}")
    mc.run("version", "enable", f"{ALIAS}/{bucket}")
    return f"bucket {bucket}: versioned"


def _user(mc: Mc, folder: Path, names: tuple[str, ...]) -> str:
    access_key, secret_key = credentials_in(folder).credentials()
    # On standard input: an argument could be read by anybody who lists the processes.
    mc.run("admin", "user", "add", ALIAS, stdin=f"{access_key}\n{secret_key}\n")
    mc.run("admin", "policy", "attach", ALIAS, *names, "--user", access_key)
    return f"user {access_key}: {', '.join(names)}"


def credentials_in(folder: Path, like: StoreSettings | None = None) -> StoreSettings:
    """Settings with the keys that lie in `folder`; all else as in `like`, or by default."""
    others = {} if like is None else like.model_dump(exclude={"s3_access_key", "s3_secret_key", "s3_credentials_dir"})
    return StoreSettings.model_validate(others | {"s3_credentials_dir": folder})
