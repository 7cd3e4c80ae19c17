"""The command line of seeding: `python -m seeding --help`."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from seeding.samples import DEFAULT, LARGE
from weightless.errors import WeightlessError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
Json = Annotated[bool, typer.Option("--json", help="Print the end state, or the error, as one JSON object.")]


@app.command("secrets")
def secrets_command(
    directory: Annotated[Path, typer.Option("--dir", help="Folder that gets one folder per consumer.")],
    owner: Annotated[list[str] | None, typer.Option(help="CONSUMER=UID: whom its files shall belong to.")] = None,
    as_json: Json = False,
) -> None:
    """Make the keys of the store, once; what exists is kept."""
    from seeding.secrets import make_secrets, owners_of

    with _reporting(as_json):
        made = make_secrets(directory, owners_of(owner or []))
        _end(as_json, {"made": made}, f"new keys: {', '.join(made) or 'none, all exist'}")


@app.command("init")
def init_command(
    secrets: Annotated[Path | None, typer.Option(help="Folder of `secrets`; without it users are left alone.")] = None,
    model: Annotated[list[str] | None, typer.Option(help="Samples to seed where no alias exists.")] = None,
    as_json: Json = False,
) -> None:
    """Make buckets, users and policies, and seed the samples that have no alias yet."""
    from seeding.progress import Display
    from seeding.provision import credentials_in
    from seeding.settings import SeedSettings
    from seeding.start import BUILT_IN, start
    from weightless.settings import StoreSettings

    with _reporting(as_json), Display() as display:
        settings = SeedSettings.load()
        if settings.s3_access_key is not None:
            secrets = None  # somebody else's store: its users and policies are theirs
        store = StoreSettings.load() if secrets is None else credentials_in(secrets / "minio")
        done = start(store, settings, secrets, BUILT_IN if model is None else model, display)
        _end(as_json, {"seeded": done}, f"ready; seeded {', '.join(done) or 'nothing new'}")


@app.command("seed")
def seed_command(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    hf: Annotated[str | None, typer.Option(help="org/repo[@revision] on the Hugging Face Hub.")] = None,
    origin: Annotated[
        str | None, typer.Option("--from", help="A folder; `bucket`: what lies there; or `sample:NAME`.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Such as text-generation; else inferred.")] = None,
    promote: Annotated[bool, typer.Option(help="Let the alias name the release.")] = True,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the download.")] = False,
    as_json: Json = False,
) -> None:
    """Publish a release of a model."""
    from commands.door import Door
    from commands.settings import CommandSettings
    from seeding.progress import Display, size
    from seeding.seed import Seeding, Wish
    from seeding.settings import SeedSettings
    from weightless.settings import StoreSettings

    with _reporting(as_json), Display() as display:
        if hf is not None and origin is not None:
            raise typer.BadParameter("required one of --hf and --from, found both")
        seeding = Seeding(StoreSettings.load(), SeedSettings.load(), display)
        seeded = seeding.seed(Wish(model, hf, origin, task, promote, keep))
        if seeded.promoted:
            Door(CommandSettings.load()).refresh()
        state = "is new" if seeded.new else "already is this folder"
        text = (
            f"{model}: release {seeded.release} {state}: {seeded.files} files, {size(seeded.bytes)}, "
            f"{size(seeded.uploaded)} uploaded in {seeded.seconds:.1f} s; serving {seeded.serving or 'nothing'}"
        )
        _end(as_json, seeded.as_dict(), text)


@app.command("samples")
def samples_command(
    out: Annotated[Path, typer.Option(help="Folder that gets one folder per sample.")],
    only: Annotated[list[str] | None, typer.Option(help=f"One of {', '.join((*DEFAULT, *LARGE))}.")] = None,
    as_json: Json = False,
) -> None:
    """Make the sample models; what exists is kept."""
    from seeding.samples.make import make_samples

    with _reporting(as_json):
        names = list(DEFAULT)
        if only:
            names = [name for one in only for name in ((one, f"{one}-v2") if one == "falcon-tiny" else (one,))]
        folders = [str(folder) for folder in make_samples(out, names)]
        _end(as_json, {"folders": folders}, "\n".join(folders))


@app.command("prune")
def prune_command(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    keep: Annotated[int, typer.Option(min=1, help="How many of the newest releases stay.")] = 3,
    grace_hours: Annotated[float, typer.Option(min=0, help="Object versions younger than this stay.")] = 24,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: Json = False,
) -> None:
    """Delete old releases and the object versions that no kept release names."""
    from datetime import timedelta

    from seeding.progress import size
    from seeding.prune import prune
    from seeding.settings import SeedSettings
    from weightless.settings import StoreSettings

    with _reporting(as_json):
        settings = SeedSettings.load()
        pruned = prune(StoreSettings.load(), settings, model, keep, timedelta(hours=grace_hours), dry_run)
        does = "would delete" if dry_run else "deleted"
        what = f"releases {', '.join(pruned.deleted) or 'none'} and {pruned.versions} object versions ({size(pruned.bytes)})"
        text = f"{model}: {does} {what}; kept {', '.join(pruned.kept)}"
        _end(as_json, pruned.as_dict(), text)


def _end(as_json: bool, state: dict[str, Any], text: str) -> None:
    print(json.dumps(state) if as_json else text)


@contextmanager
def _reporting(as_json: bool) -> Iterator[None]:
    """One clear message and exit status 1 for every refusal; 130 when a person stopped it."""
    signal.signal(signal.SIGTERM, _interrupt)  # a container's stop ends as Ctrl-C does: uploads are ended too
    try:
        yield
    except WeightlessError as error:
        if as_json:
            print(json.dumps({"error": {"type": type(error).__name__, "message": str(error)}}))
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        print("stopped; nothing half-made was published, seed again to go on", file=sys.stderr)
        raise typer.Exit(130) from None


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    app()
