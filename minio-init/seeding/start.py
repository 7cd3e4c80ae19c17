"""What the first start of a stack needs: a provisioned store, and the sample models published and served."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from seeding.progress import Display
from seeding.provision import credentials_in, provision
from seeding.seed import Seeding, Wish
from seeding.settings import SeedSettings
from weightless.errors import InvalidFolder
from weightless.settings import StoreSettings
from weightless.store import Store

#: the samples that a fresh stack serves
BUILT_IN = ("falcon-tiny", "minilm")


def start(
    store: StoreSettings, settings: SeedSettings, secrets: Path | None, models: Iterable[str], display: Display
) -> list[str]:
    """Provision, then seed each of `models` that has no alias; one that has is left alone. Returns what was done.

    A later start therefore never undoes a promotion or a rollback, and costs one small read for each model.

    Raises WeightlessError.
    """
    for line in provision(store, settings.mc, secrets):
        display.say(line)
    publisher = store if secrets is None else credentials_in(secrets / "publisher", like=store)
    reader = Store(publisher)
    done = []
    for model in models:
        if reader.alias(model) is not None:
            display.say(f"{model}: has an alias, left alone")
            continue
        sample = settings.samples_dir / model
        if not sample.is_dir():
            raise InvalidFolder(
                f"sample {model}: required a folder {sample}, found none; make it with "
                f"`python -m seeding samples --out {settings.samples_dir}`, or set SAMPLES_DIR"
            )
        wish = Wish(model, origin=str(sample), only_first=True)
        seeded = Seeding(publisher, settings, display).seed(wish)
        display.say(f"{model}: release {seeded.release} published")
        done.append(f"{model} {seeded.release}")
    return done
