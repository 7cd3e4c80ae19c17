"""The node's cache: what it holds, whether it still is what it should be, and making room."""

from typing import Annotated

import typer
from rich.text import Text

from commands import output
from commands.options import Json
from commands.output import Cell
from weightless.cache import NodeCache
from weightless.errors import VerificationFailed
from weightless.settings import CacheSettings


def cache(as_json: Json = False) -> None:
    """The releases in the cache, most recently used first."""
    held = NodeCache(CacheSettings.load())
    entries = held.entries()
    if as_json:
        output.data(
            [
                {
                    "model": entry.model,
                    "release": entry.name,
                    "digest": entry.digest,
                    "size": entry.size,
                    "own": entry.own,
                    "files": entry.files,
                    "complete": entry.complete,
                    "in_use": entry.in_use,
                    "last_used": entry.last_used.isoformat(),
                    "folder": str(entry.folder),
                }
                for entry in entries
            ]
        )
        return
    if not entries:
        output.say(f"The cache at {held.root} is empty.")
        return
    rows: list[list[Cell]] = [
        [
            Text(entry.model, style="bold"),
            entry.name,
            _state(entry.complete, entry.in_use),
            str(entry.files),
            output.size(entry.size),
            output.size(entry.own),
            output.when(entry.last_used),
        ]
        for entry in entries
    ]
    output.table(
        ["model", "release", "state", "files", "size", "own", "last used"], rows, right=["files", "size", "own"]
    )
    # A content that several releases share lies on the disk once.
    bound = output.size(held.max_bytes) if held.max_bytes else "no bound"
    output.say(Text(f"{output.size(used(held))} at {held.root}, CACHE_MAX_BYTES: {bound}", style="dim"))


def used(held: NodeCache) -> int:
    """Bytes of the blobs, each once."""
    sizes = {file.blake3: file.size for release in held.cached_manifests() for file in release.content.files}
    return sum(sizes.values())


def _state(complete: bool, in_use: bool) -> Text:
    if not complete:
        return Text("incomplete", style="yellow")
    return Text("in use", style="green") if in_use else Text("cached")


def cache_verify(as_json: Json = False) -> None:
    """Hash every cached file again and remove what is wrong; the next start fetches it anew."""
    held = NodeCache(CacheSettings.load())
    with output.waiting("" if as_json else "hashing") as tell:
        found = held.verify(lambda done, total: tell(f"{output.size(done)} of {output.size(total)}"))
    if as_json:
        output.data({"files": found.files, "size": found.size, "bad": list(found.bad)})
    else:
        output.say(f"{found.files} files, {output.size(found.size)}: {len(found.bad) or 'none'} wrong")
    if found.bad:
        raise VerificationFailed(
            f"{len(found.bad)} cached files were not what their digests say and were removed ({', '.join(found.bad[:3])}); "
            "they are fetched again at the next start; look at the disk's health"
        )


def cache_prune(
    keep: Annotated[int, typer.Option(help="Bytes to keep; by default what CACHE_MAX_BYTES allows.")] = -1,
    everything: Annotated[bool, typer.Option("--all", help="Every release that no worker uses.")] = False,
    as_json: Json = False,
) -> None:
    """Remove leftovers, and releases that are not in use beyond the bound, least recently used first."""
    done = NodeCache(CacheSettings.load()).prune(0 if everything else keep if keep >= 0 else None)
    if as_json:
        output.data({"releases": [f"{model} {name}" for model, name in done.releases], "size": done.size})
        return
    names = ", ".join(f"{model} {name}" for model, name in done.releases)
    output.say(f"removed {names or 'no release'}, {output.size(done.size)}")
