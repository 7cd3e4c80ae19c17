"""Releases and the alias that says which one is served: models, history, promote, rollback, canary."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.text import Text

from commands import output
from commands.door import Door, Wish, describe
from commands.errors import AgentUnavailable
from commands.options import Json, Model
from commands.output import Cell
from commands.settings import CommandSettings
from weightless.errors import Conflict, InvalidRelease, ModelNotFound, SettingsError
from weightless.release import Alias, AliasVersion, Canary
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
    for entry in found if not as_json else []:
        if "error" in entry:
            output.warn(entry["error"])


def _described(store: Store, model: str) -> dict[str, Any]:
    alias = _alias(store, model)
    serving = alias.alias.release if alias and alias.alias else None
    releases = [_release(store, model, name, serving) for name in store.releases(model)]
    wrong = {"error": alias.error} if alias and alias.error else {}
    return {"model": model, "serving": serving, "releases": releases} | wrong


def _alias(store: Store, model: str) -> AliasVersion | None:
    """What the alias says now. One that cannot be read must not keep anybody from writing it anew: its `error` says why."""
    try:
        return store.alias(model)
    except InvalidRelease:
        return store.alias_history(model)[0]


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
        raise ModelNotFound(f"model {model}: was never served; publish it with `make seed MODEL={model}`")
    if as_json:
        output.data([_event(entry) for entry in entries])
        return
    rows = [_line(entry) for entry in entries]
    columns = ["when", "serving", "canary", "digest", "by"]
    if not any(row[2] for row in rows):
        columns, rows = [*columns[:2], *columns[3:]], [[*row[:2], *row[3:]] for row in rows]
    output.table(columns, rows)


def _line(entry: AliasVersion) -> list[Cell]:
    alias = entry.alias
    if alias is None:
        return [output.when(entry.modified), "invalid" if entry.error else "removed", "", "", ""]
    name = Text(alias.release, style="green" if entry.latest else "")
    canary = f"{alias.canary.release} {alias.canary.percent} %" if alias.canary else ""
    return [output.when(entry.modified), name, canary, output.digest(alias.digest), alias.by or ""]


def _event(entry: AliasVersion) -> dict[str, Any]:
    alias = entry.alias
    canary = alias.canary if alias else None
    return {
        "at": entry.modified.isoformat(),
        "release": alias.release if alias else None,
        "digest": alias.digest if alias else None,
        "canary": {"release": canary.release, "percent": canary.percent} if canary else None,
        "by": alias.by if alias else None,
        "error": entry.error,
        "latest": entry.latest,
        "version_id": entry.version_id,
    }


def promote(
    model: Model,
    release: Annotated[str, typer.Argument(help="The release to serve, such as v3.")],
    wait: Wait = True,
    timeout: Timeout = 900,
    as_json: Json = False,
) -> None:
    """Let the alias name a release, its canary or another, and wait until the node serves it. The trial of a canary ends."""
    store, settings = Store(StoreSettings.load()), CommandSettings.load()
    wanted = Alias.of(store.release(model, release), settings.by)
    _move(store, settings, model, wanted, _alias(store, model), Waiting(wait, timeout, as_json))


def rollback(model: Model, wait: Wait = True, timeout: Timeout = 900, as_json: Json = False) -> None:
    """End the canary if there is one; else let the alias name what it named before. Wait until the node serves it."""
    store, settings = Store(StoreSettings.load()), CommandSettings.load()
    entries = store.alias_history(model)
    if not entries:
        raise ModelNotFound(f"model {model}: was never served; publish it with `make seed MODEL={model}`")
    now = entries[0].alias
    if now is not None and now.canary is not None:
        _move(store, settings, model, _alone(now, settings), _alias(store, model), Waiting(wait, timeout, as_json))
        return
    before = next((entry.alias for entry in entries[1:] if entry.alias and not entry.alias.same_as(now)), None)
    if before is None:
        served = now.release if now else "nothing"
        raise ModelNotFound(f"model {model}: there is nothing to go back to; it never served anything but {served}")
    release = store.release(model, before.release, version_id=before.manifest_version, digest=before.digest)
    _move(store, settings, model, Alias.of(release, settings.by), _alias(store, model), Waiting(wait, timeout, as_json))


def canary(
    model: Model,
    release: Annotated[str, typer.Argument(help="The release to try, such as v3; not needed to end a trial.")] = "",
    percent: Annotated[int, typer.Option(help="How many of 100 requests it answers; 0 ends the trial.")] = 10,
    wait: Wait = True,
    timeout: Timeout = 900,
    as_json: Json = False,
) -> None:
    """Let a release answer a share of the requests beside the one that is served; promote or rollback ends it."""
    store, settings = Store(StoreSettings.load()), CommandSettings.load()
    seen = store.alias(model)
    if seen is None or seen.alias is None:
        raise ModelNotFound(
            f"model {model}: required a release that is served, to try another beside it; found none: make promote first"
        )
    if not 0 <= percent <= 99:
        raise SettingsError(f"PERCENT: required 0 to 99, found {percent}; make promote gives a release all requests")
    if percent == 0:
        wanted = _alone(seen.alias, settings)
    elif not release:
        raise SettingsError("RELEASE: required the release to try, such as v3, found none; make models lists them")
    else:
        tried = Canary.of(store.release(model, release), percent)
        if tried.same_as(seen.alias):
            raise SettingsError(f"RELEASE: required another release than the one that is served, found {release}")
        wanted = seen.alias.model_copy(update={"canary": tried, "by": settings.by})
    _move(store, settings, model, wanted, seen, Waiting(wait, timeout, as_json))


def _alone(alias: Alias, settings: CommandSettings) -> Alias:
    """The same release with no canary beside it."""
    return alias.model_copy(update={"canary": None, "by": settings.by})


@dataclass(frozen=True)
class Waiting:
    """Whether to wait for the node, for how many seconds at most, and whether a machine reads what comes of it."""

    wait: bool
    timeout: float
    as_json: bool


def _move(
    store: Store, settings: CommandSettings, model: str, wanted: Alias, seen: AliasVersion | None, waiting: Waiting
) -> None:
    """Write the alias if it says something else, tell the node, and wait for it."""
    before = seen.alias if seen else None
    moved = before is None or not (wanted.same_as(before) and wanted.canary == before.canary)
    door = Door(settings)
    if moved:
        _write(store, model, wanted, seen)
        door.refresh()
    tried = {"release": wanted.canary.release, "percent": wanted.canary.percent} if wanted.canary else None
    result: dict[str, Any] = {
        "model": model,
        "before": before.release if before else None,
        "release": wanted.release,
        "canary": tried,
        "moved": moved,
        "by": settings.by,
    }
    if not waiting.as_json:
        output.say(Text.assemble((model, "bold"), f"  {_said(before, wanted) if moved else _already(wanted)}"))
    if waiting.wait:
        result |= _await(door, model, wanted, waiting)
    if waiting.as_json:
        output.data(result)


def _write(store: Store, model: str, wanted: Alias, seen: AliasVersion | None) -> None:
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


def _said(before: Alias | None, wanted: Alias) -> str:
    """What the write changed: v1 → v2; v1, canary v2 10 %; v1, canary v2 ended."""
    ended = before.canary if before else None
    moved = (
        wanted.release
        if before and wanted.same_as(before)
        else f"{before.release if before else 'nothing'} → {wanted.release}"
    )
    if wanted.canary is not None:
        return f"{moved}, canary {wanted.canary.release} {wanted.canary.percent} %"
    if ended is None or ended.same_as(wanted):
        return moved
    return f"{moved}, canary {ended.release} ended"


def _already(wanted: Alias) -> str:
    tried = f" with canary {wanted.canary.release} {wanted.canary.percent} %" if wanted.canary else ""
    return f"the alias already names {wanted.release}{tried}"


def _await(door: Door, model: str, wanted: Alias, waiting: Waiting) -> dict[str, Any]:
    tried = wanted.canary
    wish = Wish(wanted.release, tried.release, tried.percent) if tried else Wish(wanted.release)
    try:
        with output.waiting("" if waiting.as_json else f"{wish.canary or wish.release} …") as tell:
            seconds = door.wait(model, wish, lambda entry: tell(doing(entry)), waiting.timeout)
    except AgentUnavailable as error:
        output.warn(f"the alias names {wanted.release}, but {error}")
        return {"served": False}
    if not waiting.as_json:
        what = f"{tried.release} answers {tried.percent} of 100 requests" if tried else f"{wanted.release} is served"
        output.say(Text.assemble(("✓ ", "green"), f"{what}, after {output.seconds(seconds)}"))
    return {"served": True, "seconds": round(seconds, 3)}


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
    return str(entry.get("state") or entry.get("step") or "waiting for the agent")
