"""Releases and the alias that says which one is served: models, history, promote, rollback."""

from typing import Annotated, Any

import typer
from rich.text import Text

from commands import output
from commands.door import Door, describe
from commands.errors import AgentUnavailable
from commands.options import Json, Model
from commands.output import Cell
from commands.settings import CommandSettings
from weightless.errors import Conflict, InvalidRelease, ModelNotFound
from weightless.release import Alias, AliasVersion, Release
from weightless.settings import StoreSettings
from weightless.store import Store

Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the node serves it.")]
Timeout = Annotated[float, typer.Option(help="Seconds to wait at most.")]


def models(
    model: Annotated[str, typer.Argument(help="One model: all its releases.")] = "", as_json: Json = False
) -> None:
    """Models in the bucket with their releases, and which one is served."""
    store = Store(StoreSettings.load())
    names = [model] if model else store.models()
    found = [_described(store, name) for name in names]
    if model and not found[0]["releases"]:
        raise ModelNotFound(f"model {model}: no release exists; publish one with `make seed MODEL={model}`")
    if as_json:
        output.data(found[0] if model else found)
    elif model:
        _show_releases(found[0])
    elif not found:
        output.say("No models yet. Publish one: make seed MODEL=falcon-tiny")
    else:
        _show_models(found)


def _described(store: Store, model: str) -> dict[str, Any]:
    alias = store.alias(model)
    serving = alias.alias.release if alias and alias.alias else None
    releases = [_release(store, model, name, serving) for name in store.releases(model)]
    return {"model": model, "serving": serving, "releases": releases}


def _release(store: Store, model: str, name: str, serving: str | None) -> dict[str, Any]:
    try:
        release = store.release(model, name)
    except InvalidRelease as error:  # shown, and the others too
        return {"release": name, "serving": name == serving, "error": str(error)}
    content = release.content
    return {
        "release": release.name,
        "serving": release.name == serving,
        "digest": release.digest,
        "created": content.created,
        "task": content.settings.task,
        "files": len(content.files),
        "size": content.size,
        "source": content.source,
    }


def _show_models(found: list[dict[str, Any]]) -> None:
    rows: list[list[Cell]] = []
    for entry in found:
        releases = entry["releases"]
        names = [one["release"] for one in releases]
        span = " … ".join(dict.fromkeys((names[0], names[-1]))) if names else "-"
        shown = next((one for one in releases if one["serving"]), releases[-1] if releases else {"error": ""})
        serving = Text(entry["serving"] or "-", style="green" if entry["serving"] else "dim")
        rows.append([Text(entry["model"], style="bold"), serving, span, *_content(shown)])
    output.table(["model", "serving", "releases", *CONTENT], rows, right=["files", "size"])


def _show_releases(entry: dict[str, Any]) -> None:
    rows: list[list[Cell]] = []
    for one in reversed(entry["releases"]):
        name = Text(f"{one['release']} ← serving", style="green") if one["serving"] else one["release"]
        made = [output.when(one["created"]), output.digest(one["digest"])] if "error" not in one else ["", ""]
        rows.append([name, *made, *_content(one)])
    output.table(["release", "created", "digest", *CONTENT], rows, right=["files", "size"])
    for one in entry["releases"]:
        if "error" in one:
            output.warn(one["error"])


CONTENT = ("task", "files", "size", "source")


def _content(one: dict[str, Any]) -> list[Cell]:
    if "error" in one:
        return [Text("invalid" if one["error"] else "-", style="red"), "", "", ""]
    return [one["task"], str(one["files"]), output.size(one["size"]), _source(one["source"])]


def _source(source: dict[str, str | None]) -> str:
    """Where a release came from: huggingface tiiuae/falcon-7b@ec89142b67."""
    kind, value = next(iter(source.items()), ("", ""))
    revision = source.get("revision")
    return f"{kind} {value or ''}{f'@{revision[:10]}' if revision else ''}".strip()


def history(model: Model, as_json: Json = False) -> None:
    """Every value that a model's alias ever had, newest first."""
    entries = Store(StoreSettings.load()).alias_history(model)
    if not entries:
        raise ModelNotFound(f"model {model}: never was served; publish it with `make seed MODEL={model}`")
    if as_json:
        output.data([_event(entry) for entry in entries])
        return
    rows: list[list[Cell]] = []
    for entry in entries:
        alias = entry.alias
        name = Text(alias.release if alias else "removed", style="green" if entry.latest and alias else "")
        rows.append(
            [
                output.when(entry.modified),
                name,
                output.digest(alias.digest) if alias else "",
                (alias.by if alias else "") or "",
            ]
        )
    output.table(["when", "serving", "digest", "by"], rows)


def _event(entry: AliasVersion) -> dict[str, Any]:
    alias = entry.alias
    said = (
        {"release": alias.release, "digest": alias.digest, "by": alias.by}
        if alias
        else {"release": None, "digest": None, "by": None}
    )
    return {"at": entry.modified.isoformat(), **said, "latest": entry.latest, "version_id": entry.version_id}


def promote(
    model: Model,
    release: Annotated[str, typer.Argument(help="The release to serve, such as v3.")],
    wait: Wait = True,
    timeout: Timeout = 900,
    as_json: Json = False,
) -> None:
    """Let the alias name a release, and wait until the node serves it."""
    store, settings = Store(StoreSettings.load()), CommandSettings.load()
    _move(store, settings, store.release(model, release), store.alias(model), wait, timeout, as_json)


def rollback(model: Model, wait: Wait = True, timeout: Timeout = 900, as_json: Json = False) -> None:
    """Let the alias name what it named before, and wait until the node serves it."""
    store, settings = Store(StoreSettings.load()), CommandSettings.load()
    entries = store.alias_history(model)
    if not entries:
        raise ModelNotFound(f"model {model}: never was served; publish it with `make seed MODEL={model}`")
    now = entries[0]
    before = next((entry.alias for entry in entries[1:] if entry.alias and not _same(entry.alias, now.alias)), None)
    if before is None:
        served = now.alias.release if now.alias else "nothing"
        raise ModelNotFound(f"model {model}: there is nothing to go back to; it never served anything but {served}")
    release = store.release(model, before.release, version_id=before.manifest_version, digest=before.digest)
    _move(store, settings, release, store.alias(model), wait, timeout, as_json)


def _same(one: Alias, other: Alias | None) -> bool:
    return other is not None and (one.release, one.digest) == (other.release, other.digest)


def _move(
    store: Store,
    settings: CommandSettings,
    release: Release,
    seen: AliasVersion | None,
    wait: bool,
    timeout: float,
    as_json: bool,
) -> None:
    model, wanted = release.model, Alias.of(release, settings.by)
    before = seen.alias.release if seen and seen.alias else None
    moved = not (seen and seen.alias and _same(wanted, seen.alias))
    if moved:
        try:
            store.put_alias(model, wanted, seen)
        except Conflict:
            now = store.alias(model)
            other = (
                f"{now.alias.by or 'somebody'} moved it to {now.alias.release}"
                if now and now.alias
                else "somebody removed it"
            )
            raise Conflict(
                f"alias of {model}: {other} at the same time; look at make history MODEL={model}, and try again"
            ) from None
    result: dict[str, Any] = {
        "model": model,
        "before": before,
        "release": release.name,
        "moved": moved,
        "by": settings.by,
    }
    if not as_json:
        what = f"{before or 'nothing'} → {release.name}" if moved else f"{release.name} is what it names already"
        output.say(Text.assemble((model, "bold"), f"  {what}"))
    if wait:
        result |= _await(settings, model, release.name, timeout, as_json)
    if as_json:
        output.data(result)


def _await(settings: CommandSettings, model: str, release: str, timeout: float, quiet: bool) -> dict[str, Any]:
    try:
        door = Door(settings)
        with output.waiting("" if quiet else f"{release} …") as tell:
            served = door.wait(model, release, lambda entry: tell(doing(entry)), timeout)
    except AgentUnavailable as error:
        output.warn(f"the alias is moved, but {error}")
        return {"served": False}
    if not quiet:
        output.say(Text.assemble(("✓ ", "green"), f"{release} is served, after {output.seconds(served.seconds)}"))
    return {"served": True, "seconds": round(served.seconds, 3)}


def doing(entry: dict[str, Any]) -> str:
    """What a model's entry of /status says is going on, in a few words."""
    progress = entry.get("progress")
    if entry.get("error"):
        return describe(entry["error"])
    if progress and progress.get("total"):
        share = 100 * progress["done"] // progress["total"]
        eta = f", {output.seconds(progress['eta_s'])} left" if progress.get("eta_s") else ""
        return (
            f"fetching {share} % of {output.size(progress['total'])}, {output.size(progress.get('rate') or 0)}/s{eta}"
        )
    return str(entry.get("state", "waiting for the agent"))
