"""All releases with their files and histories into a folder, and back: the same names, contents, digests, running canaries
and removals.

The folder is laid out as a node's cache is, so each content lies in it once, a second backup brings only what is new, and a
node could use it as its CACHE_DIR. Object versions belong to one store; `restore` writes manifests that name the new ones.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from seeding.disk import check_space, store_space
from seeding.mc import configured_mc
from seeding.progress import Display
from seeding.settings import SeedSettings
from seeding.upload import McUploader

from commands import output
from commands.options import Json
from weightless.cache import NodeCache
from weightless.errors import Conflict, InvalidFolder, NotFound
from weightless.fetch import fetch_release
from weightless.publish import Source, publish_release
from weightless.release import Alias, Canary, Release
from weightless.settings import CacheSettings, FetchSettings, StoreSettings
from weightless.store import Store

INDEX = "backup.json"

Folder = Annotated[Path, typer.Argument(help="The backup's folder.")]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Trial(_Frozen):
    """A canary beside the release that was served."""

    release: str
    percent: int


class Event(_Frozen):
    """One value of an alias; without a release its removal."""

    at: str
    release: str | None
    by: str | None
    canary: Trial | None = None

    @classmethod
    def of(cls, at: datetime, alias: Alias | None) -> Self:
        """What the alias said from then on."""
        if alias is None:
            return cls(at=at.isoformat(), release=None, by=None)
        tried = alias.canary
        canary = Trial(release=tried.release, percent=tried.percent) if tried else None
        return cls(at=at.isoformat(), release=alias.release, by=alias.by, canary=canary)


class Model(_Frozen):
    """One model: digests of its releases by name, oldest first, and what its alias named, oldest first."""

    releases: dict[str, str]
    history: tuple[Event, ...]


class Index(_Frozen):
    """`backup.json`: what the folder holds, written last."""

    version: Literal[1] = 1
    models: dict[str, Model]


def backup(folder: Folder, as_json: Json = False) -> None:
    """Save all releases, their files and histories into a folder; what it holds already is not fetched again."""
    store, fetch = Store(StoreSettings.load()), FetchSettings.load()
    held = _held(folder)
    names = {model: store.releases(model) for model in store.models()}
    found = {model: [store.release(model, name) for name in releases] for model, releases in names.items()}
    if not any(found.values()):
        raise NotFound("there is nothing to save: the store has no release; publish one with make seed MODEL=…")
    received = 0
    with Display() as display:
        for model, releases in found.items():
            for release in releases:
                received += (came := _save(store, held, release, fetch, display))
                if not as_json:
                    display.say(f"{model} {release.name}: {output.size(release.content.size)}, {output.size(came)} new")
    index = Index(
        models={
            model: Model(releases=_digests(releases), history=_history(store, model))
            for model, releases in found.items()
        }
    )
    _write(folder / INDEX, index)
    count = sum(map(len, found.values()))
    if as_json:
        output.data({"folder": str(folder), "models": len(found), "releases": count, "fetched": received})
    else:
        output.say(f"saved {count} releases of {len(found)} models, {output.size(received)} of it new")


def _save(store: Store, held: NodeCache, release: Release, fetch: FetchSettings, display: Display) -> int:
    step = f"{release.model} {release.name}"
    total, done = release.content.size, 0
    display.begin(step, total=total)

    def advance(now: int) -> None:
        nonlocal done
        display.advance(step, now - done)
        done = now

    result = fetch_release(store, held, release, settings=fetch, progress=lambda progress: advance(progress.done))
    held.sync(release)  # a backup that a power cut can take back is none
    return result.bytes_from_store


def _held(folder: Path) -> NodeCache:
    return NodeCache(CacheSettings(cache_dir=folder, cache_max_bytes=0), evicts=False)


def _digests(releases: list[Release]) -> dict[str, str]:
    return {release.name: release.digest for release in releases}


def _history(store: Store, model: str) -> tuple[Event, ...]:
    entries = reversed(store.alias_history(model))
    return tuple(Event.of(entry.modified, entry.alias) for entry in entries if not entry.error)


def _write(path: Path, index: Index) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(index.model_dump_json(indent=1))
    fresh.replace(path)


# ---- and back


@dataclass(frozen=True)
class Plan:
    """What is to be brought back: releases in order, and those among them that the store lacks."""

    releases: dict[str, list[Release]]
    lacking: list[Release]


def restore(folder: Folder, as_json: Json = False) -> None:
    """Bring all releases of a backup into the store. What is there stays; an alias that exists is left alone."""
    settings, seeding = StoreSettings.load(), SeedSettings.load()
    store, held = Store(settings), _held(_existing(folder))
    index = _index(folder)
    plan = _plan(store, held, index)
    restored: dict[str, Any] = {"releases": [], "aliases": []}
    with Display() as display, configured_mc(settings, seeding.mc) as mc:
        check_space(0, folder, sum(release.content.size for release in plan.lacking), store_space(mc))
        upload = McUploader(mc, settings.models_bucket)
        for release in plan.lacking:
            _bring(store, held, release, upload, display)
            restored["releases"].append(f"{release.model} {release.name}")
    for model, entry in index.models.items():
        if _point(store, model, entry):
            restored["aliases"].append(model)
    if as_json:
        output.data(restored)
    else:
        there = sum(map(len, plan.releases.values())) - len(plan.lacking)
        output.say(
            f"restored {len(plan.lacking)} releases ({there} were there already) and {len(restored['aliases'])} aliases"
        )


def _bring(store: Store, held: NodeCache, release: Release, upload: McUploader, display: Display) -> None:
    def step(kind: str) -> str:
        return f"{release.model} {release.name} {kind}"

    display.begin(*map(step, ("hash", "upload", "verify")), total=release.content.size)
    source = Source(held.folder(release), {file.path: file.size for file in release.content.files})
    publish_release(
        store,
        release.name,
        release.content,
        source,
        upload,
        lambda kind, count: display.advance(step(kind), count),
    )


def _existing(folder: Path) -> Path:
    if not (folder / INDEX).is_file():
        raise InvalidFolder(f"{folder}: required a backup, found no {INDEX} in it; was the backup finished?")
    return folder


def _index(folder: Path) -> Index:
    try:
        return Index.model_validate_json((folder / INDEX).read_bytes())
    except ValidationError as error:
        raise InvalidFolder(
            f"{folder / INDEX}: {error.errors()[0]['msg']}; it is damaged, or a newer version wrote it"
        ) from None


def _plan(store: Store, held: NodeCache, index: Index) -> Plan:
    """Look at everything before anything is written: what the backup lacks, and what the store has under the same names.

    Raises:
        InvalidFolder, Conflict: the backup is incomplete, or the store has other releases of these names.
    """
    kept = {(release.model, release.name, release.digest): release for release in held.cached_manifests()}
    releases: dict[str, list[Release]] = {}
    lacking: list[Release] = []
    for model, entry in index.models.items():
        there = set(store.releases(model))
        for name, digest in entry.releases.items():
            release = kept.get((model, name, digest))
            if release is None or held.missing(release):
                raise InvalidFolder(
                    f"{held.root}: required release {name} of {model} whole, found files missing; nothing was restored"
                )
            releases.setdefault(model, []).append(release)
            if name not in there:
                lacking.append(release)
            elif (found := store.release(model, name).digest) != digest:
                raise Conflict(f"release {name} of {model}: the store has another one ({found}); nothing was restored")
    return Plan(releases, lacking)


def _point(store: Store, model: str, entry: Model) -> bool:
    """Write the alias's history anew where there is no alias, or where a restore was cut off in it; True if it was done."""
    there = {None, *entry.releases}
    wanted = [_restored(event, entry.releases) for event in entry.history if event.release in there]
    written = [event.model_copy(update={"at": ""}) for event in _history(store, model)]
    if written == wanted[: len(written)]:
        wanted = wanted[len(written) :]
    elif store.alias(model) is not None:
        return False
    for event in wanted:
        if event.release is None:
            store.remove_alias(model)
            continue
        tried = event.canary
        canary = Canary.of(store.release(model, tried.release), tried.percent) if tried else None
        store.put_alias(model, Alias.of(store.release(model, event.release), event.by, canary), store.alias(model))
    return bool(wanted)


def _restored(event: Event, releases: dict[str, str]) -> Event:
    """The value that is written for an event, whenever that is; a canary that was pruned since is none."""
    if event.release is None:
        return event.model_copy(update={"at": ""})
    tried = event.canary if event.canary and event.canary.release in releases else None
    return Event(at="", release=event.release, by=f"{event.by or 'unknown'} (restored)", canary=tried)
