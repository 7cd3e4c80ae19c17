"""Bytes into the bucket, by mc. Whether they arrived whole is for the reader to say: see `weightless.publish`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from seeding.mc import ALIAS, Mc
from weightless.publish import Upload
from weightless.store import COPIED_FROM

_AT_ONCE = 500  # keys for one program, whose arguments are bounded


class McUploader:
    """Uploads with `mc cp`, which has parts of a large file, and several small files, on their way at a time.

    Not `mc mirror`: it decides by size and time what need not be copied, and a changed file can have both in common with
    the one before.
    """

    def __init__(self, mc: Mc, bucket: str) -> None:
        self._mc = mc
        self._bucket = f"{ALIAS}/{bucket}"

    def __call__(self, files: Sequence[Upload], moved: Callable[[int], None]) -> None:
        """Put each file at its key; `moved` is told the bytes. Raises StoreError and what lies below it."""
        total = sum(file.size for file in files)
        counted = 0

        def watch(pid: int) -> None:
            nonlocal counted
            now = min(_bytes_read(pid), total)
            moved(max(now - counted, 0))
            counted = max(now, counted)

        # One folder of links with the names that the objects are to have: one program run for all files, in any folders.
        with tempfile.TemporaryDirectory(dir=self._mc.config_dir) as staging:
            for file in files:
                link = Path(staging) / file.key
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(file.source.absolute())
            self._mc.run_watched("cp", "--recursive", f"{staging}/", f"{self._bucket}/", watch=watch)
        moved(total - counted)

    def hide(self, keys: Sequence[str]) -> None:
        """Take keys out of the bucket's listing. Their versions stay, and with them every release."""
        for first in range(0, len(keys), _AT_ONCE):
            self._mc.run("rm", *(f"{self._bucket}/{key}" for key in keys[first : first + _AT_ONCE]))

    def show(self, key: str, version_id: str) -> None:
        """Let a key show what an older version of it holds: a copy made inside the store, which says what it is of."""
        target = f"{self._bucket}/{key}"
        self._mc.run("cp", "--version-id", version_id, "--attr", f"{COPIED_FROM}={version_id}", target, target)


def _bytes_read(pid: int) -> int:
    """What a process has read so far: mc says nothing while it uploads. 0 where the kernel does not tell."""
    try:
        lines = Path(f"/proc/{pid}/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return int(lines[0].removeprefix("rchar: "))
