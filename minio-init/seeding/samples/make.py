"""Make sample folders: each is written beside its final name and renamed, so a folder that exists is complete."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from seeding.samples import DEFAULT, KNOWN, LARGE
from weightless.errors import NotFound


def make_samples(out: Path, names: Iterable[str] = DEFAULT) -> list[Path]:
    """Make the named sample folders under `out`; one that exists is kept. Returns their paths, in order.

    Raises NotFound for an unknown name.
    """
    names = list(names)
    for name in names:
        if name not in (*DEFAULT, *LARGE):
            raise NotFound(f"unknown sample: required one of {', '.join((*DEFAULT, *LARGE))}, found {name!r}")
    out.mkdir(parents=True, exist_ok=True)
    return [_make(out, name) for name in names]


def _make(out: Path, name: str) -> Path:
    folder = out / name
    if folder.exists():
        return folder
    part = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=out))
    try:
        _write(part, name)
        # Folders of samples are read by other users: the seeding container, a TorchServe worker.
        for path in (part, *part.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        try:
            part.rename(folder)
        except OSError:
            if not folder.exists():  # else somebody else made the same folder meanwhile, and theirs will do
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _write(folder: Path, name: str) -> None:
    # Imported here: torch and transformers are wanted only by those who make a model.
    if name in KNOWN:
        from seeding.samples.falcon_tiny import make_falcon_tiny

        make_falcon_tiny(folder, name)
    elif name == "minilm":
        from seeding.samples.minilm import make_minilm

        make_minilm(folder)
    else:
        from seeding.samples.falcon_random import SHAPES, make_falcon_random

        make_falcon_random(folder, SHAPES[name])
