"""Old releases, and the object versions that only they named, deleted for good."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from seeding.mc import ALIAS, Mc, configured_mc
from seeding.settings import SeedSettings
from weightless.errors import ModelNotFound, ObjectLocked
from weightless.publish import visible
from weightless.release import AliasVersion
from weightless.settings import StoreSettings
from weightless.store import ObjectVersion, Store

#: an object version younger than this may belong to a publication that has not written its manifest yet
GRACE = timedelta(hours=24)


@dataclass(frozen=True)
class Pruned:
    """What was deleted and what stays; bytes of the deleted object versions."""

    model: str
    deleted: list[str]
    kept: list[str]
    versions: int
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def prune(
    store_settings: StoreSettings,
    settings: SeedSettings,
    model: str,
    keep: int,
    grace: timedelta = GRACE,
    dry_run: bool = False,
) -> Pruned:
    """Keep the newest `keep` releases, the one served, its canary and the one that a rollback would serve; delete the others.

    Then delete every object version that no release names, unless a plain listing shows it or it is younger than
    `grace`. With `dry_run` only say what would go.

    Raises:
        ObjectLocked: naming the object versions that are locked, when all others are deleted. A release whose manifest is
            locked stays whole.
        ModelNotFound, StoreError.
    """
    store = Store(store_settings)
    store.check()
    names = store.releases(model)
    if not names:
        raise ModelNotFound(
            f"model {model}: no release exists, so there is nothing to prune; `make models` lists what there is"
        )
    kept = {*names[len(names) - keep :], *_pointed_at(store.alias_history(model))} & set(names)
    old = [name for name in names if name not in kept]
    if dry_run:
        unnamed = _unnamed(store, model, old, datetime.now(UTC) - grace)
        return _pruned(model, old, kept, names, unnamed)
    locked: list[str] = []
    with configured_mc(store_settings, settings.mc) as mc:
        # Manifests first: a release whose files are gone must not be there to be promoted.
        for name in old:
            _remove(mc, locked, store_settings.releases_bucket, f"{model}/{name}.json")
    unnamed = _unnamed(store, model, [], datetime.now(UTC) - grace)
    kept_anyway = store.delete_versions(unnamed)
    locked += [f"{store_settings.models_bucket}/{one.key} (version {one.version_id})" for one in kept_anyway]
    if locked:
        raise ObjectLocked(
            f"prune of {model}: required object versions that may be deleted, found {len(locked)} under object lock: "
            f"{', '.join(locked[:3])}{f' and {len(locked) - 3} more' if len(locked) > 3 else ''}; all others are deleted. "
            "`mc retention info` and `mc legalhold info` say why: prune again when the retention has ended or the hold is off"
        )
    return _pruned(model, old, kept, names, unnamed)


def _remove(mc: Mc, locked: list[str], bucket: str, key: str) -> None:
    """Delete all versions of an object for good; one that is locked is noted, and stays."""
    try:
        mc.run("rm", "--versions", "--force", f"{ALIAS}/{bucket}/{key}")
    except ObjectLocked as error:
        locked.append(f"{bucket}/{error}")


def _pruned(model: str, old: list[str], kept: set[str], names: list[str], unnamed: list[ObjectVersion]) -> Pruned:
    return Pruned(model, old, sorted(kept, key=names.index), len(unnamed), sum(version.size for version in unnamed))


def _pointed_at(history: list[AliasVersion]) -> list[str]:
    """The release that is served, the one before it, and the canary."""
    pointed = list(dict.fromkeys(version.alias.release for version in history if version.alias))[:2]
    now = history[0].alias if history else None
    return [*pointed, now.canary.release] if now and now.canary else pointed


def _unnamed(store: Store, model: str, going: list[str], before: datetime) -> list[ObjectVersion]:
    """The object versions that no release names but those that are `going`."""
    staying = [store.release(model, name) for name in store.releases(model) if name not in going]
    named = {pair for release in staying for pair in release.location.versions.items()}
    versions = store.object_versions(model)
    shown = {(version.key, version.version_id) for version in visible(versions)}
    return [
        version
        for version in versions
        if (version.key, version.version_id) not in named | shown
        # A deletion that hides an object must stay, else what it hides comes back into the listing.
        and not (version.deleted and version.latest)
        and version.modified < before
    ]
