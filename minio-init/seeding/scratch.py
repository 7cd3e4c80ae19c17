"""A folder for what one seeding needs while it runs: mc's configuration with the store's keys, and links to what it uploads.

It goes with its seeding. One that was killed leaves it, and the next seeding removes it: the lock on it died with its holder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from weightless.locks import open_locked

PREFIX = "weightless-seed-"


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder that only this user may open; those that killed seedings left are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # another user's
            if (lock := _locked(left)) is not None:
                _remove(left, lock)
    lock = None
    while lock is None:  # another seeding may see, and remove, a new one before it is locked
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        lock = _locked(folder)
    try:
        yield folder
    finally:
        _remove(folder, lock)


def _locked(folder: Path) -> int | None:
    """The folder's lock; None if somebody else has it, or it is gone."""
    with contextlib.suppress(FileNotFoundError):
        return open_locked(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, wait=False)
    return None


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
