"""The model that cold starts are measured with: made on this machine and published when a load test needs it and it is absent."""

from __future__ import annotations

import shutil

from local import say
from local.config import Setup
from local.errors import LocalError
from local.run import Wanted, ask, run

MODEL = "falcon-1g"


def publish(setup: Setup) -> int:
    """Make sure that the model has a release; it gets no alias, so that nobody serves it.

    Raises:
        LocalError: the store cannot be asked.
    """
    known = ask(setup, Wanted(["-m", "commands", "models", MODEL, "--json"]))
    if known.returncode == 0:
        return 0
    if "no release exists" not in known.stderr:
        raise LocalError(f"the releases of {MODEL} cannot be read: {known.stderr.strip()}")
    say.lines([f"{MODEL} is not in the bucket yet: making it (1 GB of random weights) and publishing a release of it."])
    folder = setup.run / "measured"
    try:
        make = ["-m", "seeding", "samples", "--only", MODEL, "--out", "{folder}"]
        seed = ["-m", "seeding", "seed", MODEL, "--from", f"{{folder}}/{MODEL}", "--no-promote"]
        return run(setup, Wanted(make, service="samples", writable=str(folder))) or run(
            setup, Wanted(seed, folder=str(folder))
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
